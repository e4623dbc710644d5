"""Figures of pictures and of stage 2: what was seen and reconstructed, and how the loss falls."""

import textwrap
from collections.abc import Mapping, Sequence
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from skimage.transform import resize

from minddiff_utils.figures import style
from minddiff_utils.io import InputError

# --- pictures ------------------------------------------------------------------------------


@style.figure
def picture_grid(
    rows: Mapping[str, np.ndarray], columns: int = 4, captions: Sequence[str] | None = None
) -> Figure:
    """Draw pictures under each other, a method a row: what was seen above what was reconstructed.

    Parameters
    ----------
    rows : dict of uint8 (n, h, w, 3)
        Label at the left -> its pictures, in the same order in every row.
    columns : int
        Pictures side by side, at most; more go into further bands below, of the same length.
    captions : sequence of n str, optional
        A few letters above each picture, for example its stimulus id.

    Returns
    -------
    Figure
    """
    shapes = {np.shape(pictures) for pictures in rows.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 4 or 0 in next(iter(shapes)):
        raise InputError(
            f"Every row of the grid needs the same pictures (n, h, w, 3); got {sorted(shapes)}."
        )
    stack = np.stack(list(rows.values()))
    n = stack.shape[1]
    columns = -(-n // -(-n // columns))
    parts = [slice(start, start + columns) for start in range(0, n, columns)]
    names = [list(captions[part]) if captions is not None else [] for part in parts]
    return picture_bands([stack[:, part] for part in parts], list(rows), names)


@style.figure
def noising_steps(pictures: np.ndarray, labels: Sequence[str]) -> Figure:
    """Draw stage 1 step by step: one picture a row, one step a column.

    Parameters
    ----------
    pictures : uint8 (n_pictures, n_steps, h, w, 3)
        For example the decoded `z` shown as a picture, noised, denoised, and the picture seen.
    labels : sequence of n_steps str

    Returns
    -------
    Figure
    """
    return picture_bands([pictures], [], [list(labels)])


def picture_bands(
    bands: Sequence[np.ndarray],
    row_labels: Sequence[str],
    column_labels: Sequence[Sequence[str]],
    below: float = 0.0,
) -> Figure:
    """Draw bands of pictures uint8 (rows, columns, h, w, 3), one screen pixel a mosaic pixel.

    The first band fills the page; `below` is free space at the foot of the figure, in inches.
    """
    row_labels = [textwrap.fill(label, 14) for label in row_labels]
    longest = max((len(line) for label in row_labels for line in label.split("\n")), default=0)
    left = 0.08 + 0.1 * longest  # inches
    room = (style.WIDTH - left) / bands[0].shape[1]
    high = max(0.6, 12 / sum(len(band) for band in bands))  # rows of all bands fit on two screens
    zoom, gap = _zoom(bands[0].shape[3], min(room, high, 1.2) * style.DPI)
    mosaics = [mosaic(band, zoom, gap) for band in bands]
    # A page shrinks what is wider than itself and leaves the rest: letters come out the same size.
    letters = max(1.0, (left + mosaics[0].shape[1] / style.DPI) / style.WIDTH)
    left *= letters
    lines = [max((name.count("\n") + 1 for name in names), default=0) for names in column_labels]
    above = [letters * (0.06 + 0.2 * n) if n else 0 for n in lines]
    space = 0.12  # inches between bands
    width = left + mosaics[0].shape[1] / style.DPI
    pictures = sum(whole.shape[0] for whole in mosaics) / style.DPI
    top = pictures + sum(above) + space * (len(bands) - 1) + below
    fig = plt.figure(figsize=(width, top))
    scale = np.array([width, top, width, top])
    for band, whole, room, names in zip(bands, mosaics, above, column_labels, strict=True):
        height = whole.shape[0] / style.DPI
        top -= room + height
        axes = fig.add_axes(np.array([left, top, whole.shape[1] / style.DPI, height]) / scale)
        show_mosaic(axes, whole, band.shape[:2], gap, (row_labels, names))
        axes.tick_params(labelsize=11 * letters)
        top -= space
    return fig


def _zoom(pixels: int, room: float) -> tuple[float, int]:
    """Return the enlargement of a picture `pixels` wide for `room` screen pixels, and the gap.

    Small pictures grow by a whole factor, so that every pixel stays a sharp square, even if the
    figure gets somewhat wider than the page; large ones shrink to the room there is.
    """
    gap = max(3, round(room * 0.05))
    room -= gap
    return (max(1, int(room / pixels + 0.75)) if pixels <= 128 else min(1.0, room / pixels)), gap


def mosaic(band: np.ndarray, zoom: float, gap: int) -> np.ndarray:
    """Return one white picture uint8 (H, W, 3) that holds a band's pictures with gaps between."""
    if zoom >= 1:
        band = band.repeat(int(zoom), axis=2).repeat(int(zoom), axis=3)
    else:
        height, width = (max(1, round(side * zoom)) for side in band.shape[2:4])
        band = resize(band, (*band.shape[:2], height, width, 3), anti_aliasing=True)
        band = np.rint(255 * band).astype(np.uint8)
    margins = [(0, 0), (0, 0), (0, gap), (0, gap), (0, 0)]
    padded = np.pad(band, margins, constant_values=255)
    rows, columns, height, width, _ = padded.shape
    canvas = padded.swapaxes(1, 2).reshape(rows * height, columns * width, 3)
    return canvas[:-gap, :-gap]


def show_mosaic(axes: Axes, mosaic: np.ndarray, shape: Sequence[int], gap: int, labels) -> None:
    """Show a mosaic of `shape` (rows, columns).

    `labels` are those of the rows, written at the left, and those of the columns, above.
    """
    axes.imshow(mosaic, interpolation="nearest", aspect="auto")
    sides = zip((axes.yaxis, axes.xaxis), mosaic.shape[:2], shape, labels, strict=True)
    for axis, side, n, names in sides:
        step = (side + gap) / n
        axis.set_ticks((np.arange(len(names)) + 0.5) * step - gap / 2, names)
    axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False, pad=2)
    axes.grid(False)
    axes.spines[:].set_visible(False)


# --- stage 2 -------------------------------------------------------------------------------


@style.figure
def loss_course(losses: np.ndarray, first: np.ndarray) -> Figure:
    """Draw the structure loss of stage 2 at its iterates.

    Parameters
    ----------
    losses : float (n_pictures, n_iterates)
    first : float (n_pictures,)
        Loss of the picture of stage 1, drawn as a line to compare with.

    Returns
    -------
    Figure
        Median over pictures, the middle half and the middle 90 %.

    Raises
    ------
    InputError
        If no loss is finite.
    """
    losses = pd.DataFrame(np.where(np.isfinite(losses), losses, np.nan))
    frame = losses.melt(var_name="iterate", value_name="structure loss").dropna()
    if frame.empty:
        raise InputError("loss_course: no loss is finite; expected (n_pictures, n_iterates).")
    fig, axes = style.canvas(3.8)
    draw = partial(
        sns.lineplot, frame, x="iterate", y="structure loss", estimator="median", color=style.BLUE
    )
    for share, alpha, label in ((90, 0.15, "middle 90 % of images"), (50, 0.28, "middle half")):
        band = {"alpha": alpha, "linewidth": 0, "label": label}
        draw(errorbar=("pi", share), err_kws=band, linewidth=0)
    few = losses.shape[1] < 20
    draw(errorbar=None, marker="o" if few else None, label="median", legend=False)
    axes.axhline(np.nanmedian(first), color=style.RED, ls="--", lw=1, label="stage 1, median")
    axes.locator_params("x", integer=True)
    style.legend_above(axes)
    return fig


@style.figure
def iterate_rows(
    pictures: np.ndarray, shown: Sequence[int], losses: np.ndarray, truth: np.ndarray
) -> Figure:
    """Draw the iterates of stage 2: one picture a row, then the one seen, and its loss.

    Parameters
    ----------
    pictures : uint8 (n_pictures, n_iterates, h, w, 3)
    shown : sequence of int
        Iterates to show.
    losses : float (n_pictures, n_iterates)
    truth : uint8 (n_pictures, h, w, 3)

    Returns
    -------
    Figure
    """
    ratios = [1] * (len(shown) + 1) + [1.9]
    height = style.WIDTH / (sum(ratios) + 0.5) * len(pictures) + 0.9
    fig, grid = style.canvases(height, len(pictures), len(ratios), ratios)
    for row, cells in enumerate(grid):
        strip = [*pictures[row][list(shown)], truth[row]]
        for axes, picture in zip(cells, strip, strict=False):
            axes.imshow(picture)
            axes.set_axis_off()
        curve = cells[-1]
        line = "o-" if losses.shape[1] < 20 else "-"
        curve.plot(losses[row], line, color=style.BLUE, markersize=3)
        curve.tick_params(labelsize=9.5, labelbottom=row == len(pictures) - 1)
        curve.xaxis.get_major_locator().set_params(integer=True)
        curve.yaxis.set_ticks_position("right")
    curve.set_xlabel("iterate", fontsize=11)
    titles = [f"iterate {shown[0]}", *map(str, shown[1:]), "seen", "structure loss"]
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title)
    return fig
