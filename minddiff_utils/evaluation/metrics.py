"""How close is a reconstruction to the picture that was seen, and how sure are we?

Every metric compares pictures pairwise and gives one number a picture, so that intervals, paired
differences and permutation tests all work on the same tidy table
(`subject, method, stimulus_id, metric, value`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter
from skimage.color import rgb2gray
from skimage.transform import resize

from minddiff_utils.datasets.reading import unreadable
from minddiff_utils.io import InputError, require

# Names in the files -> names that people read, in the order of the tables: the paper's rows, what
# others do with the same parts, then controls from the best that can be had to none of the brain.
METHODS = {
    "no_z": "no z",
    "no_c": "no c",
    "stage1": "no stage 2",
    "algorithm_1": "both stages, Algorithm 1 as published",
    "stage2": "both stages, this book's solver",
    "takagi": "Takagi & Nishimoto's way",
    "neuraldiffuser": "NeuralDiffuser's schedule",
    "ceiling": "true features",
    "blur": "blurred truth",
    "retrieval": "nearest training picture",
    "mean": "mean picture",
    "mean_features": "mean features",
    "shuffled": "shuffled responses",
    "prior": "no brain at all",
}
# Both stages, whichever solver ran: where a run has several, the first stands for the method.
FULL = ("stage2", "algorithm_1")
# Controls that know nothing of what was seen: they never look at the test responses, or their
# decoders were fitted to the wrong pictures.
BLIND = ("mean", "mean_features", "shuffled", "prior")
METRICS = {
    "clip_judge": "CLIP (judge)",
    "clip_guide": "CLIP (guide)",
    "ssim": "SSIM",
    "pcc": "PCC",
    "ssim_red": "SSIM, red",
    "ssim_green": "SSIM, green",
    "ssim_blue": "SSIM, blue",
}
MAIN_METRICS = ("clip_judge", "clip_guide", "ssim", "pcc")  # those of the paper's table
CHANNELS = ("red", "green", "blue")

# Wang et al. 2004: constants of SSIM, and the 11-pixel window of a Gaussian cut at 3.5 sigma.
SSIM_SIGMA, SSIM_TRUNCATE, SSIM_BORDER = 1.5, 3.5, 5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2
BLOCK = 64  # pictures handled at once, so that 982 large pictures do not fill the memory


# --- one number a picture ------------------------------------------------------------------


def ssim(a: np.ndarray, b: np.ndarray, size: int | None = None) -> np.ndarray:
    r"""Structural similarity of pictures, by the recipe of the NSD literature.

    Wang et al. 2004. With the mean, variance and covariance in a window around each pixel,
    averaged over the pixels,

    .. math:: \mathrm{SSIM} = \left\langle \frac{(2 \mu_x \mu_y + c_1)(2 \sigma_{xy} + c_2)}
              {(\mu_x^2 + \mu_y^2 + c_1)(\sigma_x^2 + \sigma_y^2 + c_2)} \right\rangle,
              \quad c_1 = 0.01^2, \; c_2 = 0.03^2 .

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
    _check_size(a, b, size)
    blocks = [slice(start, start + BLOCK) for start in range(0, len(a), BLOCK)]
    values = [ssim_grey(_grey(a[block], size), _grey(b[block], size)) for block in blocks]
    return np.concatenate(values) if values else np.zeros(0)


def ssim_channels(a: np.ndarray, b: np.ndarray, size: int | None = None) -> np.ndarray:
    """Structural similarity of the red, the green and the blue channel, each as a grey picture.

    Two pictures of equal grey and other colours have an SSIM of 1 by the field's recipe; here
    they have not. Window, constants and border as for `ssim`.

    Parameters
    ----------
    a, b : uint8 (n, h, w, 3)
    size : int, optional

    Returns
    -------
    float64 (n, 3)
        Between -1 and 1, in the order red, green, blue.

    Raises
    ------
    InputError
        As `ssim` does.
    """
    _check_size(a, b, size)
    out = np.empty((len(a), 3))
    for start in range(0, len(a), BLOCK):
        block = slice(start, start + BLOCK)
        x, y = _resized(a[block], size), _resized(b[block], size)
        for channel in range(3):
            out[block, channel] = ssim_grey(x[..., channel], y[..., channel])
    return out


def _check_size(a: np.ndarray, b: np.ndarray, size: int | None) -> None:
    _check_pictures(a, b)
    if min(size or a.shape[1], size or a.shape[2]) <= 2 * SSIM_BORDER:
        raise InputError(
            f"SSIM needs pictures of at least {2 * SSIM_BORDER + 1} pixels a side, "
            f"not {a.shape[1]}×{a.shape[2]} (size={size}). Give a larger `size`."
        )


def _grey(pictures: np.ndarray, size: int | None) -> np.ndarray:
    """Grey pictures float64 (n, h, w) in [0, 1], resized if `size` is given."""
    return rgb2gray(_resized(pictures, size))  # in colour first: the order of the published code


def _resized(pictures: np.ndarray, size: int | None) -> np.ndarray:
    """Pictures float64 (n, h, w, 3) in [0, 1]."""
    if size is None or pictures.shape[1:3] == (size, size):
        return pictures / 255
    shrink = max(pictures.shape[1:3]) > size
    return np.stack([resize(p, (size, size), anti_aliasing=shrink) for p in pictures])


def ssim_grey(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Structural similarity of grey pictures that are of the right size already, as in `ssim`.

    Parameters
    ----------
    x, y : float64 (n, h, w)
        In [0, 1], pair by pair.

    Returns
    -------
    float64 (n,)
    """

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
    r"""Pearson correlation of all pixel values (height × width × colour) of two pictures.

    The paper's PCC. With the pixel values :math:`x_i` and :math:`y_i`,

    .. math:: \mathrm{PCC} = \frac{\sum_i (x_i - \bar x)(y_i - \bar y)}
              {\sqrt{\sum_i (x_i - \bar x)^2 \sum_i (y_i - \bar y)^2}} .

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
    r"""Cosine similarity of embeddings, row by row; 0 where a row is all zeros.

    .. math:: \cos(a, b) = \frac{a \cdot b}{\lVert a \rVert \, \lVert b \rVert}

    The paper's CLIP metric, if the rows are a CLIP's embeddings of two pictures.

    Parameters
    ----------
    a, b : float (n, d)

    Returns
    -------
    float64 (n,)
        Between -1 and 1.
    """
    check_rows(a, b)
    return np.einsum("nd,nd->n", unit_rows(a), unit_rows(b))


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Return rows of length 1, float64 (n, d); a row of zeros stays one."""
    rows = np.asarray(rows, dtype=np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms == 0, 1, norms)


def check_rows(a: np.ndarray, b: np.ndarray) -> None:
    """Refuse embeddings that are not two float (n, d) arrays of one shape."""
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


# --- files ---------------------------------------------------------------------------------


def read_reconstructions(path: str | Path) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
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
        damage = f"cannot be read ({error}). Delete it and run 03_stage1 and 04_stage2 again."
        raise unreadable(path, error, damage) from None
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
        channels = ssim_channels(truth, pictures, size).T
        values |= {f"ssim_{name}": v for name, v in zip(CHANNELS, channels, strict=True)}
        wide = pd.DataFrame({"method": method, "stimulus_id": stimulus_id, **values})
        parts.append(wide.melt(["method", "stimulus_id"], var_name="metric"))
    columns = ["method", "stimulus_id", "metric", "value"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def evaluate_draws(
    truth: np.ndarray,
    draws: Mapping[int, Mapping[str, np.ndarray]],
    stimulus_id: np.ndarray,
    embed: Mapping[str, Callable[[np.ndarray], np.ndarray]],
    size: int | None = None,
) -> pd.DataFrame:
    """Every metric of every method for every picture and draw of the noise.

    Parameters
    ----------
    draws : mapping of seed to what `evaluate` takes as `reconstructions`
        Not every method needs to be in every draw.
    truth, stimulus_id, embed, size
        As for `evaluate`.

    Returns
    -------
    DataFrame
        Tidy: `seed, method, stimulus_id, metric, value`.
    """
    parts = []
    for seed, made in draws.items():
        found = evaluate(truth, made, stimulus_id, embed, size)
        found.insert(0, "seed", seed)
        parts.append(found)
    return pd.concat(parts, ignore_index=True)


def mean_over_draws(frame: pd.DataFrame) -> pd.DataFrame:
    """Average each picture's values over the draws of the noise.

    Parameters
    ----------
    frame : DataFrame
        From `evaluate_draws`.

    Returns
    -------
    DataFrame
        Tidy: `method, stimulus_id, metric, value`, in the order of the first draw.
    """
    keys = ["method", "stimulus_id", "metric"]
    return frame.groupby(keys, sort=False)["value"].mean().reset_index()


def main_metrics(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a tidy table that belong to the paper's metrics."""
    return frame[frame["metric"].isin(MAIN_METRICS)]


def full_method(names: Iterable[str]) -> str | None:
    """Return the method of `FULL` that stands for both stages; None if neither ran."""
    names = set(names)
    return next((name for name in FULL if name in names), None)


def in_order(names: Sequence[str], known: Mapping[str, str]) -> list[str]:
    """Sort names as in `METHODS` or `METRICS`; unknown ones follow in the order they came."""
    names = list(dict.fromkeys(names))
    return [name for name in known if name in names] + [n for n in names if n not in known]
