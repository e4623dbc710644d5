"""What any method's images are worth: their scores, and what blur, chance and lookup would score.

Nothing here knows how the images were made. Large sets are read some at a time, so that memory
holds embeddings, thumbnails and a few images, whatever their number and size.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from scipy.fft import dctn
from scipy.optimize import brentq, linear_sum_assignment
from skimage.color import rgb2gray

from minddiff_utils.evaluation.identification import identification_accuracy, similarity_matrix
from minddiff_utils.evaluation.metrics import METRICS, blurred, cosine, pcc, ssim, unit_rows
from minddiff_utils.evaluation.pictures import Pictures, resized
from minddiff_utils.evaluation.statistics import paired_difference, shuffled_rows
from minddiff_utils.evaluation.tables import LISTED
from minddiff_utils.io import progress

Embedded: TypeAlias = dict[str, np.ndarray]  # metric -> embeddings float (n, d)
BATCH = 32  # pictures in memory at a time
THUMBNAIL = 72  # pixels a side, of the gallery
COARSE = 8  # patches a side, of which the order test compares the colours
SURE = 0.01  # p of the order test below which another order is believed
BLURRED, WRONG = "{}: truth, as blurred", "{}: wrong rows"
NEAREST = "{}: nearest training image"
# Control -> what is said of a method that is above it, and of one that is not shown to be.
SAID = {
    WRONG: (
        "its own rows score above wrong ones, so it tells which image was seen",
        "its own rows are not shown to score above wrong ones",
    ),
    NEAREST: (
        "above the training images nearest to it, so more than looking them up",
        "not above the training images nearest to it: looking them up does as well",
    ),
}


class Look(NamedTuple):
    """What is kept of images once they have been read.

    `embedded`: metric -> embeddings float (n, d); `thumbnails`: uint8 (n, side, side, 3); `flat`:
    bool (n,), whether an image is of one colour.
    """

    embedded: Embedded
    thumbnails: np.ndarray
    flat: np.ndarray


def look(pictures: Pictures, embed: Mapping[str, Callable], label: str = "") -> Look:
    """Read images once, and keep their embeddings and thumbnails.

    Parameters
    ----------
    pictures : Pictures
    embed : dict of functions
        Metric -> function from uint8 (n, h, w, 3) to embeddings (n, d), as for `metrics.evaluate`.
    label : str
        Of the progress bar.

    Returns
    -------
    Look
    """
    rows: dict[str, list[np.ndarray]] = {name: [] for name in embed}
    small, flat = [], []
    for start in progress(range(0, len(pictures), BATCH), label):
        batch = pictures[start : start + BATCH]
        for name, function in embed.items():
            rows[name].append(function(batch))
        small += [resized(picture, (THUMBNAIL, THUMBNAIL)) for picture in batch]
        flat += [(picture == picture[0, 0]).all() for picture in batch]
    embedded = {name: np.concatenate(parts) for name, parts in rows.items()}
    return Look(embedded, np.stack(small), np.array(flat))


def scores(
    truth: Pictures, made: Pictures, seen: Embedded, embedded: Embedded, size: int | None = None
) -> pd.DataFrame:
    """Score each image as chapter 05 does: cosine of embeddings, SSIM and PCC.

    Parameters
    ----------
    truth, made : Pictures
        Row by row; of one size.
    seen, embedded : dict of float (n, d)
        Metric -> their embeddings.
    size : int, optional
        Side in pixels for SSIM; see `metrics.ssim`.

    Returns
    -------
    DataFrame
        Tidy: `stimulus_id, metric, value`, where the first is the name of the image.
    """

    def pixels(start: int) -> list[np.ndarray]:
        rows = slice(start, start + BATCH)
        pair = truth[rows], made[rows]
        return [ssim(*pair, size), pcc(*pair)]

    with ThreadPoolExecutor(2) as pool:  # decoding and filters let other threads run
        parts = list(pool.map(pixels, range(0, len(truth), BATCH)))
    values = {name: cosine(seen[name], embedded[name]) for name in seen}
    values["ssim"], values["pcc"] = np.concatenate(parts, axis=1)
    wide = pd.DataFrame({"stimulus_id": truth.names, **values})
    return wide.melt("stimulus_id", var_name="metric")


# --- what blur, chance and lookup score --------------------------------------------------------


def power_spectrum(pictures: Pictures) -> np.ndarray:
    """Mean power of grey images at each spatial frequency.

    By the cosine transform (its mirrored edges add no power), each image's power divided by its
    sum, so that contrast does not count; an image of one colour has none.

    Returns
    -------
    float64 (h, w)
        At frequency (y/2, x/2) in cycles an image.
    """
    total = np.zeros(pictures.size)
    for row in range(len(pictures)):
        power = dctn(rgb2gray(pictures[row]), norm="ortho") ** 2
        power[0, 0] = 0
        total += power / power.sum() if power.sum() > 1e-9 else 0
    return total / len(pictures)


def sharpness(power: np.ndarray, blur: float = 0.0) -> float:
    r"""Root mean square spatial frequency of a power spectrum, in cycles an image's width.

    With the power :math:`P(f)` and a Gaussian blur of standard deviation :math:`\sigma` (a share
    of the width), which multiplies power by :math:`e^{-(2 \pi f \sigma)^2}`,

    .. math:: s(\sigma)^2 = \frac{\sum_f f^2 P(f) e^{-(2 \pi f \sigma)^2}}
              {\sum_f P(f) e^{-(2 \pi f \sigma)^2}} .

    It is the mean squared gradient divided by the variance, up to a constant.
    """
    height, width = power.shape
    y, x = np.arange(height) * width / height / 2, np.arange(width) / 2
    f2 = y[:, None] ** 2 + x**2
    left = power * np.exp(-((2 * math.pi * blur) ** 2) * (f2 - f2[power > 0].min(initial=np.inf)))
    return math.sqrt((f2 * left).sum() / left.sum()) if power.any() else 0.0


def matched_blur(truth: np.ndarray, made: np.ndarray) -> float:
    """Find the blur that leaves the truth as sharp as a method's images.

    Parameters
    ----------
    truth, made : float (h, w)
        From `power_spectrum`.

    Returns
    -------
    float
        Standard deviation as a share of the width, for `metrics.blurred`; 0 where the method is
        as sharp as the truth, or sharper.
    """
    wanted = sharpness(made)
    if wanted >= sharpness(truth) or not made.any():
        return 0.0
    least = sharpness(truth, 1.0)
    return brentq(lambda blur: sharpness(truth, blur) - max(wanted, least), 0.0, 1.0, xtol=1e-5)


def some_rows(embedded: Embedded, rows: np.ndarray) -> Embedded:
    """Return these rows of each metric's embeddings."""
    return {metric: values[rows] for metric, values in embedded.items()}


class Control(NamedTuple):
    """Images in the place of a method's, for the same rows.

    `method` is its name in tables, `pictures` what it shows, `embedded` their embeddings if they
    are known already, `about` what there is to tell of how it was made.
    """

    method: str
    pictures: Pictures
    embedded: Embedded | None
    about: str


def make_controls(
    name: str, truth: Pictures, made: Pictures, embedded: Embedded, seed: int = 0
) -> list[Control]:
    """Make the controls of one method.

    Its own images in wrong rows, none of which keeps its place; and the truth blurred until it is
    as smooth, unless the method is as sharp as the truth.

    Parameters
    ----------
    name : str
        Of the method.
    truth, made : Pictures
        Row by row.
    embedded : dict of float (n, d)
        Of `made`.
    seed : int
        Of the order.

    Returns
    -------
    list of Control
    """
    order = shuffled_rows(len(made), np.random.default_rng(seed))
    found = [Control(WRONG.format(name), made.take(order), some_rows(embedded, order), "")]
    powers = power_spectrum(truth), power_spectrum(made)
    if blur := matched_blur(*powers):
        soft = replace(truth, read=lambda row: blurred(truth[[row]], blur)[0])
        before, after = map(sharpness, powers)
        about = f"{100 * blur:.2g} % of the width, from {before:.3g} to {after:.3g} cycles a width"
        found.append(Control(BLURRED.format(name), soft, None, about))
    return found


def nearest_control(name: str, embedded: Embedded, training: Pictures, known: Embedded) -> Control:
    """Put the training image nearest to each reconstruction in its place.

    The reconstruction chooses it, by the first metric: the truth is not looked at.

    Parameters
    ----------
    name : str
        Of the method.
    embedded : dict of float (n, d)
        Of its images.
    training : Pictures
        In the size of the truth.
    known : dict of float (m, d)
        Their embeddings.

    Returns
    -------
    Control
    """
    metric = next(iter(embedded))
    rows = (unit_rows(embedded[metric]) @ unit_rows(known[metric]).T).argmax(axis=1)
    about = f"{len(np.unique(rows))} of {len(training)} stand for {len(rows)} reconstructions"
    return Control(NEAREST.format(name), training.take(rows), some_rows(known, rows), about)


# --- is the order right, are the pictures different? ------------------------------------------


class OrderTest(NamedTuple):
    """Two-way identification in the order given and in the best one; `moved` rows, `p` of these."""

    given: float
    best: float
    moved: int
    p: float

    @property
    def suspicious(self) -> bool:
        """Whether another order fits far better, and the colours agree."""
        return self.p < SURE and self.best - self.given > self.given - 0.5


def order_test(seen: Look, made: Look, seed: int = 0) -> OrderTest:
    """Test whether reconstructions fit their rows in another order far better.

    The order of the highest mean similarity by the first metric (the assignment problem) always
    fits better, if only by choice. Whether it is the true one is asked of what did not choose it:
    the colours of 8 × 8 patches. They must correlate more, in the rows that move, by a paired
    permutation test; and identification as given must be nearer to chance than to the best.

    Parameters
    ----------
    seen, made : Look
        Of the truth and of one method.
    seed : int

    Returns
    -------
    OrderTest
    """
    metric = next(iter(seen.embedded))
    true, predicted = seen.embedded[metric], made.embedded[metric]
    best = linear_sum_assignment(similarity_matrix(predicted, true), maximize=True)[1]
    moved = best != np.arange(len(best))
    colours, shown = _coarse(made.thumbnails[moved]), _coarse(seen.thumbnails)
    agree, agreed = (cosine(colours, shown[rows]) for rows in (best[moved], moved))
    gain = paired_difference(agree, agreed, seed=seed)
    accuracy = [identification_accuracy(predicted, true[order]).mean() for order in (..., best)]
    p = gain["p"] if moved.any() and gain["mean"] > 0 else 1.0
    return OrderTest(float(accuracy[0]), float(accuracy[1]), int(moved.sum()), p)


def _coarse(thumbnails: np.ndarray) -> np.ndarray:
    """Colours of 8 × 8 patches without their mean, float (n, 192)."""
    n, step = len(thumbnails), THUMBNAIL // COARSE
    patches = thumbnails.reshape(n, COARSE, step, COARSE, step, 3).mean(axis=(2, 4)).reshape(n, 192)
    return patches - patches.mean(axis=1, keepdims=True)


def order_note(tests: Mapping[str, OrderTest]) -> str:
    """Warn of the methods whose order looks wrong; "" if none does."""
    return "\n".join(
        f"WARNING: {name}: in another order {test.moved} of its images fit far better (two-way "
        f"identification {test.given:.2f} as given, {test.best:.2f} at best, chance 0.50; the "
        f"colours agree, p = {test.p:.1g}). Either its rows are in another order than the truth's, "
        "and every number here is of the wrong pairs, or it says nothing of what was seen."
        for name, test in tests.items()
        if test.suspicious
    )


def flat_note(names: Sequence[str], seen: Look, looks: Mapping[str, Look]) -> str:
    """Name the images of one colour, whose correlation is not a number; "" if there are none."""
    texts = []
    for label, one in {"truth": seen, **looks}.items():
        if one.flat.any():
            which = [name for name, flat in zip(names, one.flat, strict=True) if flat]
            said = ", ".join(which[:LISTED]) + ", …" * (len(which) > LISTED)
            how = "left out of every method's PCC" if one is seen else "counted as 0 in its PCC"
            texts.append(f"{label}: {len(which)} ({said}), {how}")
    return f"Images of one colour (PCC is NaN): {'; '.join(texts)}." if texts else ""


# --- what follows ------------------------------------------------------------------------------


def all_pairs(methods: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs to compare: every two methods, and each method with its controls of `SAID`."""
    own = [(method, kind.format(method)) for method in methods for kind in SAID]
    return [*combinations(methods, 2), *own]


def conclusions(found: pd.DataFrame) -> list[str]:
    """Say of each method what its controls allow to conclude.

    Parameters
    ----------
    found : DataFrame
        `method, baseline, metric, mean, p_holm` of `tables.differences`.

    Returns
    -------
    list of str
        A sentence of Markdown for each method and control.
    """
    sentences = []
    for (method, control), rows in found.groupby(["method", "baseline"], sort=False):
        above = (rows["p_holm"] < 0.05) & (rows["mean"] > 0)
        texts = next((said for kind, said in SAID.items() if control == kind.format(method)), ())
        for text, which in zip(texts, (above, ~above), strict=False):
            labels = rows.loc[which, "metric"].map(METRICS)
            if len(labels):
                sentences.append(f"**{method}**, by {', '.join(labels)}: {text}.")
    return sentences
