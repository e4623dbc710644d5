"""How close is a reconstruction to the stimulus?

Every metric compares images pairwise and gives one number an image, so that intervals, paired
differences and permutation tests all work on the same tidy table
(`subject, method, stimulus_id, metric, value`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter
from skimage.color import rgb2gray
from skimage.metrics import structural_similarity
from skimage.transform import resize

from minddiff_utils.datasets.reading import open_dataset, open_file
from minddiff_utils.evaluation import METHODS, ROWS, in_order
from minddiff_utils.io import InputError, method_file, require

# --- one number a picture ------------------------------------------------------------------


def ssim(
    a: np.ndarray, b: np.ndarray, size: int | None = None, channel: int | None = None
) -> np.ndarray:
    r"""Structural similarity of images, by the recipe of the NSD literature.

    Wang et al. 2004. With the mean, variance and covariance in a window around each pixel,
    averaged over the pixels,

    .. math:: \mathrm{SSIM} = \left\langle \frac{(2 \mu_x \mu_y + c_1)(2 \sigma_{xy} + c_2)}
              {(\mu_x^2 + \mu_y^2 + c_1)(\sigma_x^2 + \sigma_y^2 + c_2)} \right\rangle,
              \quad c_1 = 0.01^2, \; c_2 = 0.03^2 .

    Grey by ITU-R 709 luminance (`skimage.color.rgb2gray`); the window is that of `ssim_grey`.

    Parameters
    ----------
    a, b : uint8 (n, h, w, 3)
        Images, pair by pair. At least 11 pixels high and wide.
    size : int, optional
        Both are resized to `size` × `size` pixels first. Published NSD numbers use 425; None keeps
        the images' own size, which is what 64-pixel images need. The two are not comparable,
        because the window then covers another share of the image.
    channel : int, optional
        0, 1 or 2: of the red, green or blue channel as a grey image of its own. Two images of
        equal grey and other colours have an SSIM of 1 by the field's recipe; by channel they have
        not.

    Returns
    -------
    float64 (n,)
        Between -1 and 1; 1 for equal images.

    Raises
    ------
    InputError
        If the arrays are not uint8 images of one shape.
    """
    check_pictures(a, b)
    pairs = ([_grey(picture, size, channel) for picture in pair] for pair in zip(a, b, strict=True))
    return np.array([ssim_grey(x, y) for x, y in pairs])


def _grey(picture: np.ndarray, size: int | None, channel: int | None) -> np.ndarray:
    """Luminance or one channel of an image, float64 (h, w) in [0, 1]."""
    if channel is not None:
        picture = picture[..., channel]
    if size is None:
        picture = picture / 255
    else:  # in colour, before it is made grey: the order of the published code
        shrink = max(picture.shape[:2]) > size
        picture = resize(picture, (size, size), anti_aliasing=shrink)
    return rgb2gray(picture) if channel is None else picture


def ssim_grey(x: np.ndarray, y: np.ndarray) -> float:
    """Structural similarity of two grey images, float (h, w) in [0, 1].

    Gaussian window of sigma 1.5 pixels, population covariance, mean over the image without a
    5-pixel border, as Wang et al. 2004 and the papers on NSD have it.
    """
    return structural_similarity(
        x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0
    )


def pcc(truth: np.ndarray, reconstruction: np.ndarray) -> np.ndarray:
    r"""Pearson correlation of all pixel values (height × width × colour) of two images.

    The paper's PCC. With the pixel values :math:`x_i` and :math:`y_i`,

    .. math:: \mathrm{PCC} = \frac{\sum_i (x_i - \bar x)(y_i - \bar y)}
              {\sqrt{\sum_i (x_i - \bar x)^2 \sum_i (y_i - \bar y)^2}} .

    A reconstruction of one flat value has no correlation. It counts as 0, not as missing: left
    out, a method would gain by giving up on the hard images. A flat *truth* gives NaN, since no
    reconstruction could correlate with it; every method loses that image alike.

    Parameters
    ----------
    truth, reconstruction : uint8 (n, h, w, 3)

    Returns
    -------
    float64 (n,)
        Between -1 and 1, or NaN where the truth is flat.
    """
    check_pictures(truth, reconstruction)
    return np.array([_pcc(t, r) for t, r in zip(truth, reconstruction, strict=True)])


def _pcc(truth: np.ndarray, reconstruction: np.ndarray) -> float:
    t, r = (picture.ravel() - picture.mean() for picture in (truth, reconstruction))
    if not t.any():
        return np.nan
    return t @ r / np.sqrt((t @ t) * (r @ r)) if r.any() else 0.0


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    r"""Cosine similarity of embeddings, row by row; 0 where a row is all zeros.

    .. math:: \cos(a, b) = \frac{a \cdot b}{\lVert a \rVert \, \lVert b \rVert}

    The paper's CLIP metric, if the rows are a CLIP's embeddings of two images.

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
            f"Embeddings must be (n, d) arrays of one shape, not {np.shape(a)} and {np.shape(b)}."
        )


def check_pictures(a: np.ndarray, b: np.ndarray) -> None:
    """Refuse images that are not two uint8 (n, h, w, 3) arrays of one shape."""
    if not (a.dtype == b.dtype == np.uint8 and a.ndim == 4 and a.shape == b.shape):
        raise InputError(
            "Pictures must be two uint8 (n, h, w, 3) arrays of the same stimuli, not "
            f"{a.dtype} {a.shape} and {b.dtype} {b.shape}."
        )


def blurred(pictures: np.ndarray, share: float) -> np.ndarray:
    """Blur images with a Gaussian: what SSIM and PCC give to an image that shows no thing.

    Parameters
    ----------
    pictures : uint8 (n, h, w, 3)
    share : float
        Standard deviation of the Gaussian as a share of the width.

    Returns
    -------
    uint8 (n, h, w, 3)
    """
    sigma = share * pictures.shape[2]
    wide = gaussian_filter(pictures.astype(np.float32), (0, sigma, sigma, 0), mode="nearest")
    return np.rint(wide).clip(0, 255).astype(np.uint8)


# --- the table of metrics ------------------------------------------------------------------


class Metric(NamedTuple):
    """Name in tables, and the function of truth, reconstruction (n, h, w, 3) and side for SSIM.

    Without a function it is the cosine of the embeddings that `evaluate` is given for it.
    """

    label: str
    function: Callable[[np.ndarray, np.ndarray, int | None], np.ndarray] | None = None


MEASURES = {
    "clip_judge": Metric("CLIP (judge)"),
    "clip_guide": Metric("CLIP (guide)"),
    "ssim": Metric("SSIM", ssim),
    "pcc": Metric("PCC", lambda truth, made, size: pcc(truth, made)),
    "ssim_red": Metric("SSIM, red", partial(ssim, channel=0)),
    "ssim_green": Metric("SSIM, green", partial(ssim, channel=1)),
    "ssim_blue": Metric("SSIM, blue", partial(ssim, channel=2)),
}
METRICS = {name: metric.label for name, metric in MEASURES.items()}
MAIN_METRICS = ("clip_judge", "clip_guide", "ssim", "pcc")  # those of the paper's table


def evaluate(
    truth: np.ndarray,
    reconstructions: Mapping[str, np.ndarray],
    stimulus_id: np.ndarray,
    embed: Mapping[str, Callable[[np.ndarray], np.ndarray]],
    size: int | None = None,
) -> pd.DataFrame:
    """Every metric of every method for every image.

    Parameters
    ----------
    truth : uint8 (n, h, w, 3)
        The stimuli.
    reconstructions : dict of uint8 (n, h, w, 3)
        One entry a method, for example `{"stage1": …, "stage2": …}`.
    stimulus_id : int (n,)
    embed : dict of functions
        Metric name -> function from uint8 (n, h, w, 3) to embeddings (n, d), for example
        `{"clip_judge": judge.embed}`. The metric is the cosine of the two embeddings.
    size : int, optional
        Side in pixels that images are resized to for SSIM; see `ssim`.

    Returns
    -------
    DataFrame
        Tidy, with the columns `method, stimulus_id, metric, value`.
    """
    seen = {metric: function(truth) for metric, function in embed.items()}
    parts = []
    for method, pictures in reconstructions.items():
        values = {name: cosine(seen[name], function(pictures)) for name, function in embed.items()}
        known = {name: metric.function for name, metric in MEASURES.items() if metric.function}
        values |= {name: function(truth, pictures, size) for name, function in known.items()}
        wide = pd.DataFrame({"method": method, "stimulus_id": stimulus_id, **values})
        parts.append(wide.melt(["method", "stimulus_id"], var_name="metric"))
    return pd.concat(parts, ignore_index=True)


def main_metrics(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a tidy table that belong to the paper's metrics."""
    return frame[frame["metric"].isin(MAIN_METRICS)]


# --- files ---------------------------------------------------------------------------------


def read_reconstructions(
    folder: str | Path, methods: Iterable[str], seed: int | None = None
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Read the stimuli and the reconstructions of them by some methods.

    Parameters
    ----------
    folder : str or Path
        Of a subject.
    methods : iterable of str
    seed : int, optional
        Of another draw of the noise than the run's own.

    Returns
    -------
    truth : uint8 (n, h, w, 3)
    reconstructions : dict of uint8 (n, h, w, 3)
        In the order of `METHODS`.
    stimulus_id : int64 (n,)

    Raises
    ------
    InputError
        If a file is missing or damaged, or holds other stimuli.
    """
    truth, stimulus_id = _read_pictures(folder, "truth", "03_stage1")
    reconstructions = {}
    for name in in_order(methods, METHODS):
        notebook = ROWS[name].notebook if name in ROWS else "06_controls"
        reconstructions[name], ids = _read_pictures(folder, name, notebook, seed)
        if not np.array_equal(ids, stimulus_id):
            path = method_file(folder, name, seed)
            raise InputError(f"{path} holds other stimuli than truth.h5. Run {notebook} again.")
    return truth, reconstructions, stimulus_id


def _read_pictures(
    folder: str | Path, method: str, notebook: str, seed: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    path = require(method_file(folder, method, seed), notebook)
    with open_file(path, f"Delete it and run {notebook} again.") as file:
        return open_dataset(file, "pictures")[:], file["stimulus_id"][:].astype(np.int64)


def read_metrics(run_dir: str | Path, subjects: Sequence[str]) -> pd.DataFrame:
    """Read `metrics.csv`, and `controls.csv` where it is there, of several subjects of a run.

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
        If no subject is named, or one's file is missing.
    """
    if not subjects:
        raise InputError('`subjects` is empty; name at least one, such as "subj01".')
    parts = []
    for subject in subjects:
        path = require(Path(run_dir) / subject / "metrics.csv", f"05_metrics (subject {subject})")
        files = filter(Path.is_file, (path, path.with_name("controls.csv")))
        parts += [pd.read_csv(file).assign(subject=subject) for file in files]
    return pd.concat(parts, ignore_index=True)
