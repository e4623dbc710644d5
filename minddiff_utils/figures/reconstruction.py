"""Figures of chapter 04: how the loss falls, and how the pictures change on the way."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from minddiff_utils.evaluation.metrics import METRICS
from minddiff_utils.figures.common import BLUE, GREY, ORANGE, RED, WIDTH, _finish, style
from minddiff_utils.io import InputError


def loss_course(losses: np.ndarray, first: np.ndarray | None = None) -> Figure:
    """Structure loss of stage 2 at its iterates.

    Parameters
    ----------
    losses : float (n_pictures, n_iterates)
    first : float (n_pictures,), optional
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
    losses = np.atleast_2d(np.asarray(losses, float))
    steps = np.flatnonzero(np.isfinite(losses).any(0))
    if not len(steps):
        raise InputError("loss_course: no loss is finite; expected (n_pictures, n_iterates).")
    low, quarter, middle, upper, high = np.nanpercentile(
        np.where(np.isfinite(losses), losses, np.nan)[:, steps], [5, 25, 50, 75, 95], axis=0
    )
    with style():
        fig, axes = plt.subplots(figsize=(WIDTH, 3.2), layout="constrained")
        if len(losses) > 2:
            kinds = ((low, high, 0.13, "middle 90 % of pictures"), (quarter, upper, 0.28, "half"))
            for bottom, top, alpha, label in kinds:
                axes.fill_between(
                    steps, bottom, top, color=BLUE, alpha=alpha, linewidth=0, label=label
                )
        axes.plot(
            steps, middle, color=BLUE, marker="o" if len(steps) < 20 else None, label="median"
        )
        if first is not None:
            level = np.nanmedian(first)
            axes.axhline(level, color=RED, linestyle="--", linewidth=1, label="stage 1, median")
        axes.set_xlabel("iterate")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel("structure loss")
        fig.legend(loc="outside upper center", ncols=4)
        return _finish(fig)


def film(
    pictures: np.ndarray, shown: Sequence[int], losses: np.ndarray, truth: np.ndarray
) -> Figure:
    """Film strip of stage 2: one picture a row, its iterates, the one seen, and its loss.

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
    columns = len(shown) + 1
    ratios = [*[1] * columns, 1.9]
    side = WIDTH / (sum(ratios) + 0.5)
    with style():
        fig, grid = plt.subplots(
            len(pictures),
            columns + 1,
            figsize=(WIDTH, side * len(pictures) + 0.6),
            width_ratios=ratios,
            layout="constrained",
            squeeze=False,
        )
        for row, cells in enumerate(grid):
            strip = [*pictures[row][list(shown)], truth[row]]
            for axes, picture in zip(cells, strip, strict=False):
                axes.imshow(picture)
                axes.set_axis_off()
            _small_curve(cells[-1], losses[row], row == len(pictures) - 1)
        titles = [*map(str, shown), "seen"]
        for axes, title in zip(grid[0], titles, strict=False):
            axes.set_title(title)
        grid[0, 0].set_title(f"iterate {titles[0]}")
        grid[0, -1].set_title("structure loss")
        return _finish(fig)


def _small_curve(axes: plt.Axes, losses: np.ndarray, last: bool) -> None:
    """The loss of one picture, beside its strip."""
    axes.plot(losses, color=BLUE, marker="o" if len(losses) < 20 else None, markersize=3)
    axes.tick_params(labelsize=7, labelbottom=last)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if last:
        axes.set_xlabel("iterate", fontsize=8)
    axes.yaxis.set_ticks_position("right")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines["left"].set_color(GREY)


def ways_figure(summary: pd.DataFrame, default: str) -> Figure:
    """Quality of every way of stage 2 that was tried against its passes through the UNet.

    Parameters
    ----------
    summary : DataFrame
        From `studies.stored.ways_summary`.
    default : str
        The way to set apart.

    Returns
    -------
    Figure
        A panel a metric. Numbers are those of the rows of `studies.stored.ways_table`.
    """
    metrics = [name for name in ("clip_judge", "ssim", "pcc") if name in set(summary.metric)]
    numbers = {way: k for k, way in enumerate(summary.way.unique(), start=1)}
    with style():
        fig, grid = plt.subplots(
            len(metrics), 1, figsize=(WIDTH, 2.9 * len(metrics)), layout="constrained", sharex=True
        )
        for axes, metric in zip(np.atleast_1d(grid), metrics, strict=True):
            for row in summary[summary.metric == metric].itertuples():
                outer = "iterations" in row.way and "then" not in row.way
                colour = RED if row.way == default else ORANGE if outer else BLUE
                bars = [[row.gain - row.low], [row.high - row.gain]]
                axes.errorbar(row.equivalents, row.gain, bars, fmt="o", color=colour, markersize=4,
                              elinewidth=0.6, zorder=3 if row.way == default else 2)  # fmt: skip
                axes.annotate(str(numbers[row.way]), (row.equivalents, row.gain), (4, 3),
                              textcoords="offset points", fontsize=8, color=colour)  # fmt: skip
            axes.axhline(0, color=GREY, linewidth=0.8)
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_ylabel(f"{METRICS[metric]}: gain on stage 1")
        axes.set_xlabel("UNet forward-equivalents a picture")
        kinds = {default: RED, "other single passes": BLUE, "iterations of Algorithm 1": ORANGE}
        marks = [plt.Line2D([], [], marker="o", linestyle="", color=c) for c in kinds.values()]
        fig.legend(marks, kinds, loc="outside upper center", ncols=3)
        return _finish(fig)
