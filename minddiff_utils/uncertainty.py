"""How sure is a mean over pictures? Bootstrap intervals, paired tests, and correction for many."""

import numpy as np
from scipy import stats

from minddiff_utils.files import InputError

__all__ = ["bootstrap_interval", "finite", "holm", "paired_difference"]


def bootstrap_interval(
    values: np.ndarray, level: float = 0.95, n_resamples: int = 9999, seed: int = 0
) -> tuple[float, float]:
    """Interval of the mean over pictures: bias-corrected and accelerated bootstrap.

    Efron 1987, through `scipy.stats.bootstrap`. NaN values are left out.

    Parameters
    ----------
    values : float (n,)
        One value a picture.
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
    if np.ptp(values) == 0:  # BCa divides by the spread
        return float(values[0]), float(values[0])
    result = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=level,
        n_resamples=n_resamples,
        method="BCa",
        batch=1000,
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def paired_difference(
    a: np.ndarray, b: np.ndarray, n_resamples: int = 9999, seed: int = 0
) -> dict[str, float]:
    """Mean of `a - b` over pictures, its 95 % BCa interval and a sign-flip permutation p-value.

    Under the null hypothesis that the two methods are exchangeable, each picture's difference is
    as likely as its negative. All 2^n flips are tried if there are at most `n_resamples` of them,
    else that many random ones.

    Parameters
    ----------
    a, b : float (n,)
        Values of two methods for the same pictures. Pairs with a NaN are left out.
    n_resamples : int
        Bootstrap samples, and sign flips.
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
    low, high = bootstrap_interval(values, n_resamples=n_resamples, seed=seed)
    p = np.nan
    if len(values) > 1:
        p = stats.permutation_test(
            (values,),
            np.mean,
            permutation_type="samples",
            n_resamples=n_resamples,
            batch=1000,
            rng=np.random.default_rng(seed),
        ).pvalue
    mean = float(values.mean()) if len(values) else np.nan
    return {"n": len(values), "mean": mean, "low": low, "high": high, "p": float(p)}


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
