"""How close is a reconstruction to the picture that was seen, and how sure are we?

Every metric compares pictures pairwise and gives one number a picture, so that intervals, paired
differences and permutation tests all work on the same tidy table
(`subject, method, stimulus_id, metric, value`).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from math import comb
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from scipy import stats
from scipy.ndimage import gaussian_filter
from skimage.color import rgb2gray
from skimage.transform import resize

from minddiff_utils.files import InputError, require

__all__ = [
    "METHODS",
    "METRICS",
    "PAIRS",
    "bootstrap_interval",
    "cosine",
    "difference_table",
    "differences",
    "evaluate",
    "identification_accuracy",
    "identification_table",
    "in_order",
    "markdown_table",
    "pair_name",
    "paired_difference",
    "pcc",
    "read_metrics",
    "read_reconstructions",
    "similarity_matrix",
    "ssim",
    "summary",
    "summary_table",
]

# Names in the files -> names that people read, in the order of the paper's table.
METHODS = {
    "no_z": "no z",
    "no_c": "no c",
    "stage1": "no stage 2",
    "stage2": "full (MindDiffuser)",
    "ceiling": "true features",
    "shuffled": "shuffled responses",
    "mean": "mean picture",
}
METRICS = {
    "clip_judge": "CLIP (judge)",
    "clip_guide": "CLIP (guide)",
    "ssim": "SSIM",
    "pcc": "PCC",
}
# (method, baseline): what stage 2 adds, and what each half of the latent contributes.
PAIRS = (("stage2", "stage1"), ("stage2", "no_z"), ("stage2", "no_c"))

# Wang et al. 2004: constants of SSIM, and the 11-pixel window of a Gaussian cut at 3.5 sigma.
SSIM_SIGMA, SSIM_TRUNCATE, SSIM_BORDER = 1.5, 3.5, 5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2
NBSP = "\u00a0"  # a narrow table breaks a line before an interval, not inside it
BLOCK = 64  # pictures handled at once, so that 982 large pictures do not fill the memory


# --- one number a picture ------------------------------------------------------------------


def ssim(a: np.ndarray, b: np.ndarray, size: int | None = None) -> np.ndarray:
    """Structural similarity of pictures, by the recipe of the NSD literature.

    Grey by ITU-R 709 luminance (`skimage.color.rgb2gray`), Gaussian window of sigma 1.5 pixels,
    population covariance, data range 1, mean over the picture without a 5-pixel border. Equals
    `skimage.metrics.structural_similarity(grey_a, grey_b, gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=1.0)`.

    Parameters
    ----------
    a, b : uint8 (n, h, w, 3)
        Pictures, pair by pair. At least 11 pixels high and wide.
    size : int, optional
        Both are resized to `size` × `size` pixels first. Published NSD numbers use 425; None keeps
        the pictures' own size, which is what 64-pixel pictures need. The two are not comparable,
        because the window then covers another share of the picture.

    Returns
    -------
    float64 (n,)
        Between -1 and 1; 1 for equal pictures.

    Raises
    ------
    InputError
        If the arrays are not uint8 pictures of one shape, or too small for the window.
    """
    _check_pictures(a, b)
    if min(size or a.shape[1], size or a.shape[2]) <= 2 * SSIM_BORDER:
        raise InputError(
            f"SSIM needs pictures of at least {2 * SSIM_BORDER + 1} pixels a side, "
            f"not {a.shape[1]}×{a.shape[2]} (size={size}). Give a larger `size`."
        )
    blocks = [slice(start, start + BLOCK) for start in range(0, len(a), BLOCK)]
    values = [_ssim_grey(_grey(a[block], size), _grey(b[block], size)) for block in blocks]
    return np.concatenate(values) if values else np.zeros(0)


def _grey(pictures: np.ndarray, size: int | None) -> np.ndarray:
    """Grey pictures float64 (n, h, w) in [0, 1], resized if `size` is given."""
    if size is not None and pictures.shape[1:3] != (size, size):
        # Resize in colour, then grey: the order of the published code.
        shrink = max(pictures.shape[1:3]) > size
        pictures = np.stack([resize(p, (size, size), anti_aliasing=shrink) for p in pictures])
    return rgb2gray(pictures)


def _ssim_grey(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mean SSIM of grey pictures float64 (n, h, w), without the border."""

    def blur(pictures):
        return gaussian_filter(pictures, (0, SSIM_SIGMA, SSIM_SIGMA), truncate=SSIM_TRUNCATE)

    mean_x, mean_y = blur(x), blur(y)
    variance_x = blur(x * x) - mean_x**2
    variance_y = blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x**2 + mean_y**2 + SSIM_C1)
    structure = (2 * covariance + SSIM_C2) / (variance_x + variance_y + SSIM_C2)
    inside = slice(SSIM_BORDER, -SSIM_BORDER)
    return (luminance * structure)[:, inside, inside].mean(axis=(1, 2))


def pcc(truth: np.ndarray, reconstruction: np.ndarray) -> np.ndarray:
    """Pearson correlation of all pixel values (height × width × colour) of two pictures.

    A reconstruction of one flat value has no correlation. It counts as 0, not as missing: left
    out, a method would gain by giving up on the hard pictures. A flat *truth* gives NaN, since no
    reconstruction could correlate with it; every method loses that picture alike.

    Parameters
    ----------
    truth, reconstruction : uint8 (n, h, w, 3)

    Returns
    -------
    float64 (n,)
        Between -1 and 1, or NaN where the truth is flat.
    """
    _check_pictures(truth, reconstruction)
    values = np.empty(len(truth))
    for i, (t, r) in enumerate(zip(truth, reconstruction, strict=True)):
        t = t.ravel() - t.mean()
        r = r.ravel() - r.mean()
        norm = np.sqrt((t @ t) * (r @ r))
        values[i] = np.nan if not t.any() else (t @ r / norm if r.any() else 0.0)
    return values


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine similarity of embeddings, row by row; 0 where a row is all zeros.

    Parameters
    ----------
    a, b : float (n, d)

    Returns
    -------
    float64 (n,)
        Between -1 and 1.
    """
    _check_rows(a, b)
    return np.einsum("nd,nd->n", _unit_rows(a), _unit_rows(b))


def similarity_matrix(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Cosine similarity of every predicted row (n, d) with every true row (n, d): float64 (n, n).

    Row i is reconstruction i; its own picture is on the diagonal.
    """
    _check_rows(predicted, true)
    return _unit_rows(predicted) @ _unit_rows(true).T


def identification_accuracy(predicted: np.ndarray, true: np.ndarray, n_way: int = 2) -> np.ndarray:
    """Probability that a reconstruction is matched with its own picture among `n_way` candidates.

    The candidates are the picture that was seen and `n_way - 1` others drawn at random, without
    repetition, from the other pictures; the one with the largest cosine wins. The expectation
    over all draws is computed exactly, so there is no sampling noise. With `w` other pictures less
    similar than the right one, `e` equally similar (a tie is drawn by lot) and `k = n_way - 1`,

        P = [C(w + e + 1, k + 1) - C(w, k + 1)] / [(e + 1) C(n - 1, k)]

    Parameters
    ----------
    predicted, true : float (n, d)
        Embeddings of the reconstructions and of the pictures seen, in the same order.
    n_way : int
        Number of candidates, 2 to n. Chance is `1 / n_way`.

    Returns
    -------
    float64 (n,)
        Between 0 and 1 for every picture; NaN where its embedding is not finite.
    """
    similarity = similarity_matrix(predicted, true)
    n, k = len(similarity), n_way - 1
    if not 2 <= n_way <= n:
        raise InputError(f"n_way is {n_way}: it must be between 2 and the {n} pictures there are.")
    own = np.diag(similarity)[:, None]
    less = (similarity < own).sum(axis=1)
    equal = np.maximum((similarity == own).sum(axis=1) - 1, 0)  # NaN does not equal itself
    values = [
        (comb(w + e + 1, k + 1) - comb(w, k + 1)) / ((e + 1) * comb(n - 1, k))
        for w, e in zip(less.tolist(), equal.tolist(), strict=True)
    ]
    return np.where(np.isfinite(own[:, 0]), values, np.nan)


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms == 0, 1, norms)


def _check_rows(a: np.ndarray, b: np.ndarray) -> None:
    if np.ndim(a) != 2 or np.shape(a) != np.shape(b):
        raise InputError(
            f"Embeddings must be two (n, d) arrays of one shape, not {np.shape(a)} and "
            f"{np.shape(b)}. Compute both with the same model for the same pictures."
        )


def _check_pictures(a: np.ndarray, b: np.ndarray) -> None:
    for pictures in (a, b):
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[-1] != 3:
            raise InputError(
                "Pictures must be uint8 (n, h, w, 3), not "
                f"{pictures.dtype} {pictures.shape}. Scale to 0..255 and add the missing axis."
            )
    if a.shape != b.shape:
        raise InputError(
            f"Pictures of shapes {a.shape} and {b.shape} cannot be compared pair by pair. "
            "Take the same stimuli in the same order and size."
        )


# --- one number and its uncertainty --------------------------------------------------------


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
    values = _finite(values)
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
    values = _finite(np.asarray(a, dtype=float) - np.asarray(b, dtype=float))
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


def _finite(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=float).ravel()
    return values[~np.isnan(values)]


# --- files ---------------------------------------------------------------------------------


def read_reconstructions(
    path: str | Path,
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Read the pictures that were seen and every method's reconstructions of them.

    Parameters
    ----------
    path : str or Path
        `reconstructions.h5` of a subject. Each dataset of the shape of `truth` is a method.

    Returns
    -------
    truth : uint8 (n, h, w, 3)
    reconstructions : dict of uint8 (n, h, w, 3)
        In the order of `METHODS`.
    stimulus_id : int64 (n,)

    Raises
    ------
    InputError
        If the file is missing, damaged, or holds no reconstruction.
    """
    path = require(path, "04_stage2")
    try:
        with h5py.File(path, "r") as file:
            truth, stimulus_id = file["truth"][:], file["stimulus_id"][:].astype(np.int64)
            found = [n for n in file if n != "truth" and _shape(file[n]) == truth.shape]
            reconstructions = {name: file[name][:] for name in in_order(found, METHODS)}
    except (OSError, KeyError) as error:
        raise InputError(
            f"{path} cannot be read ({error}). Delete it and run notebooks 03_stage1 and "
            "04_stage2 again."
        ) from None
    if not reconstructions:
        raise InputError(
            f"{path} holds no reconstructions of the shape of `truth`, {truth.shape}. "
            "Run notebooks 03_stage1 and 04_stage2 first."
        )
    return truth, reconstructions, stimulus_id


def _shape(item: h5py.Dataset | h5py.Group) -> tuple[int, ...] | None:
    return item.shape if isinstance(item, h5py.Dataset) else None


def read_metrics(run_dir: str | Path, subjects: Sequence[str]) -> pd.DataFrame:
    """Read `metrics.csv` of several subjects of a run into one tidy table.

    Parameters
    ----------
    run_dir : str or Path
    subjects : sequence of str
        Names of the subjects' folders.

    Returns
    -------
    DataFrame
        `subject, method, stimulus_id, metric, value`.

    Raises
    ------
    InputError
        If no subject is named, or one's file is missing or lacks a column.
    """
    if not subjects:
        raise InputError('`subjects` is empty; name at least one, such as "subj01".')
    columns = ["subject", "method", "stimulus_id", "metric", "value"]
    parts = []
    for subject in subjects:
        path = require(Path(run_dir) / subject / "metrics.csv", f"05_metrics (subject {subject})")
        part = pd.read_csv(path)
        missing = [column for column in columns if column not in part]
        if missing:
            raise InputError(f"{path} lacks the columns {missing}. Run notebook 05_metrics again.")
        parts.append(part.assign(subject=subject)[columns])
    return pd.concat(parts, ignore_index=True)


# --- tables --------------------------------------------------------------------------------


def evaluate(
    truth: np.ndarray,
    reconstructions: Mapping[str, np.ndarray],
    stimulus_id: np.ndarray,
    embed: Mapping[str, Callable[[np.ndarray], np.ndarray]],
    size: int | None = None,
) -> pd.DataFrame:
    """Every metric of every method for every picture.

    Parameters
    ----------
    truth : uint8 (n, h, w, 3)
        The pictures that were seen.
    reconstructions : dict of uint8 (n, h, w, 3)
        One entry a method, for example `{"stage1": …, "stage2": …}`.
    stimulus_id : int (n,)
    embed : dict of functions
        Metric name -> function from uint8 (n, h, w, 3) to embeddings (n, d), for example
        `{"clip_judge": judge.embed}`. The metric is the cosine of the two embeddings.
    size : int, optional
        Side in pixels that pictures are resized to for SSIM; see `ssim`.

    Returns
    -------
    DataFrame
        Tidy, with the columns `method, stimulus_id, metric, value`.

    Raises
    ------
    InputError
        If a method's pictures do not fit the truth or the stimulus ids.
    """
    for method, pictures in {"truth": truth, **reconstructions}.items():
        if len(pictures) != len(stimulus_id):
            raise InputError(
                f"{method} has {len(pictures)} pictures for {len(stimulus_id)} stimulus ids. "
                "Run the notebook that made the pictures again."
            )
    seen = {metric: function(truth) for metric, function in embed.items()}
    parts = []
    for method, pictures in reconstructions.items():
        values = {name: cosine(seen[name], function(pictures)) for name, function in embed.items()}
        values["ssim"] = ssim(truth, pictures, size)
        values["pcc"] = pcc(truth, pictures)
        wide = pd.DataFrame({"method": method, "stimulus_id": stimulus_id, **values})
        parts.append(wide.melt(["method", "stimulus_id"], var_name="metric"))
    columns = ["method", "stimulus_id", "metric", "value"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def in_order(names: Sequence[str], known: Mapping[str, str]) -> list[str]:
    """Sort names as in `METHODS` or `METRICS`; unknown ones follow in the order they came."""
    names = list(dict.fromkeys(names))
    return [name for name in known if name in names] + [n for n in names if n not in known]


def summary(frame: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Mean over pictures with its 95 % BCa interval for each (subject,) method and metric.

    Parameters
    ----------
    frame : DataFrame
        Tidy values: `method, stimulus_id, metric, value`, and `subject` if there are several.
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    DataFrame
        Tidy, with the columns (`subject`,) `method, metric, n, mean, low, high`.
    """
    keys = _keys(frame)
    rows = []
    for names, values in _groups(frame, keys):
        values = _finite(values["value"])
        low, high = bootstrap_interval(values, seed=seed)
        mean = values.mean() if len(values) else np.nan
        rows.append((*names, len(values), mean, low, high))
    return pd.DataFrame(rows, columns=[*keys, "n", "mean", "low", "high"])


def differences(
    frame: pd.DataFrame, pairs: Sequence[tuple[str, str]] = PAIRS, seed: int = 0
) -> pd.DataFrame:
    """Paired differences between methods on the same pictures, for each (subject and) metric.

    Parameters
    ----------
    frame : DataFrame
        Tidy values as for `summary`.
    pairs : sequence of (method, baseline)
        Pairs with a method that the frame lacks are left out.
    seed : int
        Seed of bootstrap and permutations.

    Returns
    -------
    DataFrame
        Tidy, with (`subject`,) `method, baseline, metric, n, mean, low, high, p`.
    """
    keys = [key for key in _keys(frame) if key != "method"]
    rows = []
    for names, group in _groups(frame, keys):
        wide = group.pivot(index="stimulus_id", columns="method", values="value")
        for method, baseline in pairs:
            if {method, baseline} <= set(wide.columns):
                found = paired_difference(wide[method], wide[baseline], seed=seed)
                rows.append(
                    dict(zip(keys, names, strict=True), method=method, baseline=baseline) | found
                )
    columns = [*keys[:-1], "method", "baseline", "metric", "n", "mean", "low", "high", "p"]
    return pd.DataFrame(rows, columns=columns)


def summary_table(frame: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Write the paper's table: a method a row, a metric a column, `mean [low, high]` in each cell.

    Parameters
    ----------
    frame : DataFrame
        Tidy values as for `summary`.
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    DataFrame of str
        Rows in the order of `METHODS`, the judge's CLIP first, `n` pictures last. With several
        subjects the rows are (subject, method). `attrs["note"]` says what the intervals are over.
    """
    numbers = summary(frame, seed)
    numbers["text"] = [_text(row) for row in numbers.itertuples()]
    table = _wide(numbers, _keys(frame)[:-1])
    table.attrs["note"] = (
        f"Mean over the test pictures, with its 95{NBSP}% bootstrap interval (BCa) over pictures "
        "in brackets; n is the number of pictures."
    )
    return table


def difference_table(
    frame: pd.DataFrame, pairs: Sequence[tuple[str, str]] = PAIRS, seed: int = 0
) -> pd.DataFrame:
    """Paired differences, `mean [low, high]` and p-value, one pair of methods a row.

    Parameters and order of the columns as in `differences` and `summary_table`.
    """
    numbers = differences(frame, pairs, seed)
    numbers["text"] = [f"{_text(row, '+')}, {_p_text(row.p)}" for row in numbers.itertuples()]
    numbers["method"] = [
        pair_name(m, b) for m, b in zip(numbers["method"], numbers["baseline"], strict=True)
    ]
    table = _wide(numbers, _keys(frame)[:-1])
    table.attrs["note"] = (
        f"Mean paired difference over the test pictures, with its 95{NBSP}% bootstrap interval "
        "(BCa) over pictures in brackets and the two-sided p of a sign-flip permutation test, not "
        "corrected for the number of comparisons; n is the number of pictures."
    )
    return table


def identification_table(
    embedded: Mapping[str, np.ndarray], true: np.ndarray, n_ways: Sequence[int], seed: int = 0
) -> pd.DataFrame:
    """Identification accuracy of every method, `mean [low, high]` in each cell.

    Parameters
    ----------
    embedded : dict of float (n, d)
        Method -> embeddings of its reconstructions.
    true : float (n, d)
        Embeddings of the pictures seen.
    n_ways : sequence of int
        Numbers of candidates, a column each; those above n are left out.
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    DataFrame of str
        One row a method, in the order of `METHODS`.
    """
    n_ways = sorted({n for n in n_ways if n <= len(true)})
    frame = pd.concat(
        pd.DataFrame(
            {
                "method": method,
                "metric": f"{n_way}-way (chance {1 / n_way:.3f})",
                "value": identification_accuracy(rows, true, n_way),
            }
        )
        for method, rows in embedded.items()
        for n_way in n_ways
    )
    table = summary_table(frame, seed)
    table.attrs["note"] += " Candidates are shared between pictures, so the intervals are a guide."
    return table


def pair_name(method: str, baseline: str) -> str:
    """Return "full − no z" for the pair ("stage2", "no_z")."""
    first, second = (METHODS.get(name, name).split(" (")[0] for name in (method, baseline))
    return f"{first} − {second}"


def markdown_table(table: pd.DataFrame) -> str:
    """Return a table of `summary_table` or `difference_table` as Markdown, its note below."""
    cells = table.reset_index()
    lines = [list(cells.columns), ["---"] * len(cells.columns), *cells.astype(str).to_numpy()]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{text}\n\n{table.attrs.get('note', '')}\n"


def _keys(frame: pd.DataFrame) -> list[str]:
    several = "subject" in frame and frame["subject"].nunique() > 1
    return [*(["subject"] if several else []), "method", "metric"]


def _groups(frame: pd.DataFrame, keys: list[str]):
    """Groups of a tidy frame, methods and metrics in the order of the paper's table."""
    known = {"method": METHODS, "metric": METRICS, "subject": {}}
    ranked = frame.assign(
        **{
            key: pd.Categorical(frame[key], in_order(frame[key], known[key]), ordered=True)
            for key in keys
        }
    )
    return ranked.groupby(keys, observed=True)


def _wide(numbers: pd.DataFrame, index: list[str]) -> pd.DataFrame:
    """Texts of a tidy table as rows of methods and columns of metrics, in the order they have."""
    metrics = in_order(numbers["metric"], METRICS)
    rows = []
    for names, group in numbers.groupby(index, sort=False):
        texts = dict(zip(group["metric"], group["text"], strict=True))
        named = dict(zip(index, names, strict=True))
        named["method"] = METHODS.get(named["method"], named["method"])
        cells = {METRICS.get(m, m): texts.get(m, "–") for m in metrics}
        counts = sorted({group["n"].min(), group["n"].max()})
        rows.append({**named, **cells, "n": "–".join(str(n) for n in counts)})
    columns = [*index, *[METRICS.get(m, m) for m in metrics], "n"]
    return pd.DataFrame(rows, columns=columns).set_index(index)


def _text(row, sign: str = "") -> str:
    text = f"{row.mean:{sign}.3f} [{row.low:{sign}.3f},{NBSP}{row.high:{sign}.3f}]"
    return re.sub(r"(?<!\d)0\.", ".", text)  # .765, as the paper's table has it


def _p_text(p: float) -> str:
    return f"p{NBSP}<{NBSP}0.001" if p < 0.001 else f"p{NBSP}={NBSP}{p:.3f}"
