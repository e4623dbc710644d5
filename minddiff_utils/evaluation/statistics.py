"""How sure is a mean over images? Bootstrap intervals, permutation tests, Holm's correction."""

from typing import NamedTuple

import numpy as np
from scipy import stats

from minddiff_utils.io import InputError

# Features that vary less count as constant.
LEAST_TRUE, LEAST_PREDICTED = 1e-4, 1e-7
# Values at a time, which bounds the memory.
VALUES = 2048
ROUNDING = 1e-12  # variance below this share of the mean square is rounding: all rows are equal


def bootstrap_interval(
    values: np.ndarray, level: float = 0.95, n_resamples: int = 9999, seed: int = 0
) -> tuple[float, float]:
    """Interval of the mean over images: bias-corrected and accelerated bootstrap.

    Efron 1987, through `scipy.stats.bootstrap`. NaN values are left out.

    Parameters
    ----------
    values : float (n,)
        One value an image.
    level : float
        Confidence level, between 0 and 1.
    n_resamples : int
        Bootstrap samples.
    seed : int
        Same seed, same interval.

    Returns
    -------
    low, high : float
        (NaN, NaN) for fewer than two values; both equal to the mean if all values are equal.
    """
    values = finite(values)
    if len(values) < 2:
        return np.nan, np.nan
    if np.ptp(values) < 1e-12:  # BCa divides by the spread
        return float(values[0]), float(values[0])
    rng = np.random.default_rng(seed)
    low, high = stats.bootstrap(
        (values,), np.mean, confidence_level=level, n_resamples=n_resamples, batch=1000, rng=rng
    ).confidence_interval
    return float(low), float(high)


def hit_interval(values: np.ndarray, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    r"""Interval of a mean over images of chances to be right, each from 0 to 1.

    As `bootstrap_interval`, but for the case that no image was right, or every one: resampling
    equal values cannot tell how sure that is. There it is Clopper & Pearson's exact interval
    (1934), which for none of n images reaches up to :math:`1 - ((1 - \text{level}) / 2)^{1/n}`.

    Parameters
    ----------
    values : float (n,)
        From 0 to 1.
    level : float
    seed : int

    Returns
    -------
    low, high : float
        As `bootstrap_interval`.
    """
    found = finite(values)
    hits = found.sum()
    if len(found) < 2 or hits not in (0, len(found)):
        return bootstrap_interval(found, level, seed=seed)
    exact = stats.binomtest(int(hits), len(found)).proportion_ci(level, "exact")
    return float(exact.low), float(exact.high)


def paired_difference(a: np.ndarray, b: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Mean of `a - b` over images, its 95 % BCa interval and a sign-flip permutation p-value.

    Under the null hypothesis that the two methods are exchangeable, each image's difference is
    as likely as its negative. All 2^n flips are tried if there are at most 9,999 of them, else that
    many random ones.

    Parameters
    ----------
    a, b : float (n,)
        Values of two methods for the same images. Pairs with a NaN are left out.
    seed : int
        Same seed, same numbers.

    Returns
    -------
    dict
        `n` pairs, `mean`, `low`, `high`, and the two-sided `p` (NaN for fewer than two pairs).
    """
    if np.shape(a) != np.shape(b):
        raise InputError(f"Paired values need one shape, not {np.shape(a)} and {np.shape(b)}.")
    values = finite(np.asarray(a, dtype=float) - np.asarray(b, dtype=float))
    low, high = bootstrap_interval(values, seed=seed)
    mean = float(values.mean()) if len(values) else np.nan
    found = {"n": len(values), "mean": mean, "low": low, "high": high, "p": np.nan}
    if len(values) > 1:
        rng = np.random.default_rng(seed)
        flips = {"permutation_type": "samples", "n_resamples": 9999, "batch": 1000}
        test = stats.permutation_test((values,), np.mean, **flips, rng=rng)
        found["p"] = float(test.pvalue)
    return found


def group_difference(a: np.ndarray, b: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Difference of the means of two groups of images, its 95 % interval and a permutation p.

    Images are resampled within each group (BCa bootstrap); for the p-value they are assigned to
    the two groups at random.

    Parameters
    ----------
    a, b : float (n_a,), (n_b,)
        Values of the two groups, two of each at least; NaN are left out.
    seed : int

    Returns
    -------
    dict
        `difference` of the means, its `low` and `high`, and the two-sided `p`; these are NaN
        where all values of a group are equal.
    """
    a, b = finite(a), finite(b)
    found = {"difference": a.mean() - b.mean(), "low": np.nan, "high": np.nan, "p": np.nan}
    if np.ptp(a) > 0 and np.ptp(b) > 0:  # BCa divides by the spread
        one, two = np.random.default_rng(seed), np.random.default_rng(seed)
        resampled = stats.bootstrap((a, b), _difference, n_resamples=4999, batch=1000, rng=one)
        test = stats.permutation_test((a, b), _difference, n_resamples=4999, batch=1000, rng=two)
        low, high = resampled.confidence_interval
        found |= {"low": low, "high": high, "p": test.pvalue}
    return found


def _difference(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
    return a.mean(axis) - b.mean(axis)


def finite(values: np.ndarray) -> np.ndarray:
    """Return the values that are not NaN as float64 (n,)."""
    values = np.asarray(values, dtype=float).ravel()
    return values[~np.isnan(values)]


def holm(p: np.ndarray) -> np.ndarray:
    r"""Adjust p-values for their number, so that the chance of any false finding stays bounded.

    Holm 1979. With the :math:`m` values sorted, :math:`p_{(1)} \le \dots \le p_{(m)}`,

    .. math:: \tilde p_{(i)} = \min\Bigl(1, \max_{j \le i} (m - j + 1)\, p_{(j)}\Bigr).

    Parameters
    ----------
    p : float array, any shape
        NaN where no test could be made; it does not count as a test.

    Returns
    -------
    float64 array of the shape of `p`
    """
    p = np.asarray(p, dtype=np.float64)
    flat, out = p.ravel(), np.full(p.size, np.nan)
    tested = np.flatnonzero(~np.isnan(flat))
    order = tested[np.argsort(flat[tested], kind="stable")]
    out[order] = np.maximum.accumulate(flat[order] * np.arange(len(order), 0, -1)).clip(max=1)
    return out.reshape(p.shape)


class PermutationTest(NamedTuple):
    """A statistic, its values under the null hypothesis, and how rare it is among them."""

    observed: float
    null: np.ndarray
    p: float


def permutation_test(
    similarity: np.ndarray, n_permutations: int = 9999, seed: int = 0
) -> PermutationTest:
    """Test whether reconstructions are closer to their own images than to others.

    The statistic is the mean similarity of matched pairs (the diagonal). Under the null
    hypothesis the reconstructions carry no information about *which* image was seen, so every
    assignment of reconstructions to images is equally likely. A method that draws the same
    pleasant image every time gets p = 1, however high its similarity.

    Parameters
    ----------
    similarity : float (n, n)
        Row i: similarity of reconstruction i to each stimulus.
    n_permutations : int
        Random assignments.
    seed : int
        Same seed, same null distribution.

    Returns
    -------
    PermutationTest
        `observed`, `null` float64 (n_permutations,), and the one-sided
        `p = (1 + #{null >= observed}) / (1 + n_permutations)`.

    Raises
    ------
    InputError
        If the matrix is not square, has fewer than two images, or holds a NaN.
    """
    similarity = np.asarray(similarity, dtype=np.float64)
    n = len(similarity)
    if similarity.shape != (n, n) or n < 2 or not np.isfinite(similarity).all():
        raise InputError(
            f"The permutation test needs a finite square matrix of at least two pictures, not "
            f"{similarity.shape} with {np.sum(~np.isfinite(similarity))} non-finite values."
        )
    rng = np.random.default_rng(seed)
    rows = np.arange(n)
    null = np.array([similarity[rows, rng.permutation(n)].mean() for _ in range(n_permutations)])
    observed = np.trace(similarity) / n
    # Sums in another order differ in the last digit: an assignment equal to the observed counts.
    as_large = np.sum(null >= observed - 1e-12 * max(1.0, np.abs(similarity).max()))
    return PermutationTest(float(observed), null, float((1 + as_large) / (1 + n_permutations)))


def shuffled_rows(n: int, rng: np.random.Generator) -> np.ndarray:
    """Random order of n rows in which no row keeps its place (a uniform random derangement).

    For the control of shuffled training responses: every stimulus gets another one's response.

    Parameters
    ----------
    n : int
        Number of rows, at least 2.
    rng : numpy Generator

    Returns
    -------
    int64 (n,)
    """
    if n < 2:
        raise InputError(f"{n} rows cannot be shuffled: at least 2 are needed.")
    while True:  # a random permutation has no fixed point with probability 1/e: 2.7 tries
        order = rng.permutation(n)
        if not np.any(order == np.arange(n)):
            return order


def resampled_correlation(
    true: np.ndarray, predicted: np.ndarray, n_resamples: int = 1000, seed: int = 0
) -> np.ndarray:
    """Draw images with replacement, and average the correlations of all values over them.

    Values of one image belong together, so that their number says nothing about how sure their
    mean is; the number of images does.

    Parameters
    ----------
    true, predicted : float arrays, shape (n_pictures, n_values)
        Values that do not vary, or were not predicted (NaN), are left out.
    n_resamples : int
    seed : int
        Same seed, same images: two predictions are compared draw by draw.

    Returns
    -------
    float array, shape (n_resamples,)
        NaN where no value is left.
    """
    n = len(true)
    rng = np.random.default_rng(seed)
    share = rng.multinomial(n, np.full(n, 1 / n), n_resamples) / n
    out, count = np.zeros(n_resamples), 0
    for start in range(0, true.shape[1], VALUES):
        a, b = (part[:, start : start + VALUES].astype(float) for part in (true, predicted))
        kept = np.isfinite(b).all(0) & (a.std(0) >= LEAST_TRUE) & (b.std(0) >= LEAST_PREDICTED)
        a, b = (part[:, kept] - part[:, kept].mean(0) for part in (a, b))
        mean_a, mean_b = share @ a, share @ b
        product = share @ (a * b) - mean_a * mean_b
        size = (share @ a**2 - mean_a**2) * (share @ b**2 - mean_b**2)
        varied = size > 0
        out += np.where(varied, product / np.sqrt(np.where(varied, size, 1)), 0).sum(1)
        count += kept.sum()
    return out / count if count else np.full(n_resamples, np.nan)


class EffectiveDimension(NamedTuple):
    """Two effective dimensions of the same rows; see `effective_dimension`."""

    participation_ratio: float
    entropy: float


def effective_dimension(features: np.ndarray) -> EffectiveDimension:
    r"""Effective dimension of features over stimuli.

    With the eigenvalues :math:`\lambda_i` of the covariance over stimuli and their shares
    :math:`p_i = \lambda_i / \sum_j \lambda_j`,

    .. math:: \mathrm{PR} = \frac{(\sum_i \lambda_i)^2}{\sum_i \lambda_i^2}, \qquad
              \mathrm{E} = \exp\Bigl(-\sum_i p_i \log p_i\Bigr) .

    Both are 1 for features on a line and d for features that spread alike along d axes. Shirakawa
    et al. 2024 (output dimension collapse) compare the first of reconstructions and of the truth.
    With n stimuli neither exceeds n - 1, so compare features of the same stimuli alone.

    Parameters
    ----------
    features : float (n, …)
        Values beyond the first axis are flattened.

    Returns
    -------
    EffectiveDimension
        Both are 1 where all rows are equal: one point for all stimuli.

    Raises
    ------
    InputError
        If there are fewer than two rows, or a value is not finite.
    """
    rows = np.asarray(features, np.float64).reshape(len(features), -1)
    if len(rows) < 2 or not np.isfinite(rows).all():
        raise InputError(
            "An effective dimension needs finite features of two stimuli or more, not "
            f"{len(rows)} rows with {np.count_nonzero(~np.isfinite(rows))} values that are not."
        )
    centred = rows - rows.mean(axis=0)
    spectrum = np.linalg.svd(centred, compute_uv=False) ** 2
    if spectrum.sum() <= ROUNDING * (rows**2).sum():
        return EffectiveDimension(1.0, 1.0)
    p = spectrum / spectrum.sum()
    p = p[p > 0]
    return EffectiveDimension(float(1 / (p**2).sum()), float(np.exp(-(p * np.log(p)).sum())))
