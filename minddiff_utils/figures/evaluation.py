"""Figures of what the numbers mean: the way from floor to ceiling, failures, and overlap."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from skimage.transform import resize

from minddiff_utils.evaluation.leakage import Overlap
from minddiff_utils.evaluation.methods import BLIND, METHODS, full_method, in_order
from minddiff_utils.evaluation.metrics import METRICS
from minddiff_utils.evaluation.tables import FLOOR, shares, summary
from minddiff_utils.figures.common import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    SKY,
    WIDTH,
    _finish,
    _need_columns,
    style,
)
from minddiff_utils.io import InputError

# Method -> colour, marker and label, from the floor to the ceiling.
STEPS = {
    FLOOR: (GREY, "v", "best blind control (floor)"),
    "retrieval": (ORANGE, "D", "nearest training picture"),
    "stage1": (SKY, "s", "stage 1"),
    "algorithm_1": (RED, "o", "Algorithm 1"),
    "stage2": (BLUE, "o", "stage 2"),
    "ceiling": (GREEN, "^", "true features (ceiling)"),
}
CORNERS = {  # name: which end of (CLIP, PCC) is looked for
    "A": (-1, 1),
    "B": (1, 1),
    "C": (-1, -1),
    "D": (1, -1),
}


def floor_to_ceiling(frame: pd.DataFrame) -> Figure:
    """Show how far each step has come from the floor to the ceiling, a metric a line.

    Parameters
    ----------
    frame : DataFrame
        Tidy: `method, stimulus_id, metric, value`; with `subject`, each has its own line.

    Returns
    -------
    Figure
        Markers: mean over pictures; bars: its 95 % bootstrap interval. At the right, the share of
        the way from floor to ceiling that both stages have come.
    """
    _need_columns(frame, ["method", "stimulus_id", "metric", "value"], "floor_to_ceiling")
    if "subject" not in frame:
        frame = frame.assign(subject="")
    subjects = list(dict.fromkeys(frame["subject"]))
    metrics = in_order(frame["metric"], METRICS)
    lines = [(metric, subject) for metric in metrics for subject in subjects]
    with style():
        single = len(subjects) == 1
        size = WIDTH, 1.3 + (0.62 if single else 0.5) * len(lines) + 0.1 * len(metrics)
        fig, axes = plt.subplots(figsize=size, layout="constrained")
        heights = {}
        for place, (metric, subject) in enumerate(lines):
            heights[metric, subject] = y = place + 0.45 * metrics.index(metric)
            rows = frame[(frame["metric"] == metric) & (frame["subject"] == subject)]
            _steps_line(axes, rows, y)
        names = [METRICS.get(m, m) + ("" if single else f", {s}") for m, s in lines]
        axes.set_yticks(list(heights.values()), names)
        axes.set_ylim(max(heights.values()) + 0.6, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("mean over test pictures")
        axes.text(
            1.02, 1.01, "stage 2's share\nof the way", transform=axes.transAxes, va="bottom",
            fontsize=9,
        )  # fmt: skip
        handles = [
            axes.plot([], [], marker, color=colour, label=label)[0]
            for name, (colour, marker, label) in STEPS.items()
            if {name} & set(frame["method"])
            or (name == FLOOR and set(BLIND) & set(frame["method"]))
        ]
        fig.legend(handles=handles, loc="outside upper center", ncols=3)
        return _finish(fig)


def _steps_line(axes: Axes, rows: pd.DataFrame, y: float) -> None:
    """One metric of one subject, and the share of the way at the right."""
    found = summary(rows.drop(columns="subject")).set_index("method")
    blind = found.loc[found.index.isin(BLIND)].sort_values("mean")[-1:]
    found = pd.concat([found, blind.set_axis([FLOOR] * len(blind))])
    if {FLOOR, "ceiling"} <= set(found.index):
        ends = found.loc[[FLOOR, "ceiling"], "mean"]
        axes.fill_between(ends, y - 0.27, y + 0.27, color="#e8e8e8", linewidth=0, zorder=1)
    for number, (name, (colour, marker, _)) in enumerate(STEPS.items()):
        if name not in found.index:
            continue
        row = found.loc[name]
        # A little apart, so that the bars of neighbours can be told from one another.
        shifted = y + 0.1 * (number - 2)
        axes.plot([row["low"], row["high"]], [shifted] * 2, color=colour, linewidth=1.8, zorder=2)
        axes.plot(row["mean"], shifted, marker, color=colour, markersize=6.5, mec="white", zorder=3)
    way = shares(rows.drop(columns="subject"))
    share = way.loc[way["method"] == full_method(way["method"]), "mean"]
    text = f"{100 * share.iloc[0]:.0f} %" if len(share) and np.isfinite(share.iloc[0]) else "–"
    axes.text(1.02, y, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9.5)


# --- where it fails ------------------------------------------------------------------------


def corner_pictures(x: np.ndarray, y: np.ndarray, n: int = 2) -> dict[str, np.ndarray]:
    """Choose the pictures nearest to the four corners of a scatter plot, by rank.

    Parameters
    ----------
    x, y : float (n_pictures,)
    n : int
        Pictures a corner; a picture stands at one corner only.

    Returns
    -------
    dict of "A" (top left), "B" (top right), "C" (bottom left), "D" (bottom right) to int (n,)
        Places of the pictures, the furthest into the corner first.
    """
    if len(x) < 4 * n:
        n = max(1, len(x) // 4)
    ranks = [
        np.argsort(np.argsort(values, kind="stable")) / max(1, len(x) - 1) for values in (x, y)
    ]
    left = np.ones(len(x), bool)
    found = {}
    for name, (right, up) in CORNERS.items():
        # The worse of the two ranks counts: high in one and middling in the other is no corner.
        ends = [
            rank if sign > 0 else 1 - rank for rank, sign in zip(ranks, (right, up), strict=True)
        ]
        score = np.where(left, np.minimum(*ends), -1)
        found[name] = np.argsort(-score, kind="stable")[: min(n, int(left.sum()))]
        left[found[name]] = False
    return found


def failures(
    truth: np.ndarray, made: np.ndarray, clip: np.ndarray, pcc: np.ndarray, labels: Sequence[str]
) -> Figure:
    """Every test picture at its CLIP cosine and its PCC, with pictures at the four corners.

    Parameters
    ----------
    truth, made : uint8 (n, h, w, 3)
        What was seen, and its reconstruction.
    clip, pcc : float (n,)
    labels : sequence of n str
        For example stimulus ids, above the pictures.

    Returns
    -------
    Figure
        In each corner two pairs, seen above reconstructed; their dots are ringed and named.
    """
    if not len(truth) == len(made) == len(clip) == len(pcc) == len(labels):
        raise InputError("failures needs as many pictures as values and labels.")
    chosen = corner_pictures(np.asarray(clip), np.asarray(pcc))
    with style():
        fig = plt.figure(figsize=(WIDTH, 4.9), layout="constrained")
        grid = fig.add_gridspec(2, 3, width_ratios=[1, 1.9, 1])
        axes = fig.add_subplot(grid[:, 1])
        axes.plot(clip, pcc, "o", color=BLUE, alpha=0.5, markersize=5, mew=0)
        for name, place in zip(CORNERS, ((0, 0), (0, 2), (1, 0), (1, 2)), strict=True):
            _corner(fig.add_subplot(grid[place]), truth, made, chosen[name], labels, name)
            for number, i in enumerate(chosen[name], start=1):
                axes.plot(clip[i], pcc[i], "o", mfc="none", color=RED, markersize=9)
                axes.annotate(
                    f"{name}{number}", (clip[i], pcc[i]), xytext=(5, 4),
                    textcoords="offset points", fontsize=9, color=RED,
                )  # fmt: skip
        axes.set_xlabel("CLIP cosine (judge): is it the same thing?")
        axes.set_ylabel("PCC: do the pixels agree?")
        axes.margins(0.1)
        return _finish(fig)


def _corner(
    axes: Axes,
    truth: np.ndarray,
    made: np.ndarray,
    chosen: np.ndarray,
    labels: Sequence[str],
    name: str,
) -> None:
    """Pairs of pictures, seen above reconstructed."""
    if not len(chosen):  # fewer pictures than corners
        axes.set_axis_off()
        return
    side = 64 if truth.shape[2] <= 128 else 128
    gap = side // 12
    columns = [
        np.concatenate([_thumb(truth[i], side), np.full((gap, side, 3), 255, np.uint8),
                        _thumb(made[i], side)])
        for i in chosen
    ]  # fmt: skip
    space = np.full((columns[0].shape[0], gap, 3), 255, np.uint8)
    parts = [part for column in columns for part in (column, space)][:-1]
    axes.imshow(np.concatenate(parts, axis=1), interpolation="nearest")
    centres = [side / 2 + k * (side + gap) for k in range(len(chosen))]
    titles = [f"{name}{k}: {labels[i]}" for k, i in enumerate(chosen, start=1)]
    axes.set_xticks(centres, titles)
    axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False, pad=2)
    axes.set_yticks([side / 2, 1.5 * side + gap], ["seen", "made"], rotation=90, va="center")
    axes.tick_params(labelsize=8.5)
    axes.grid(False)
    axes.spines[:].set_visible(False)


def _thumb(picture: np.ndarray, side: int) -> np.ndarray:
    if picture.shape[:2] == (side, side):
        return picture
    return np.rint(255 * resize(picture, (side, side), anti_aliasing=True)).astype(np.uint8)


# --- overlap -------------------------------------------------------------------------------


def overlap_figure(
    found: Overlap, values: pd.DataFrame, methods: Mapping[str, str] | None = None
) -> Figure:
    """How far test pictures are from training pictures, and whether the metric depends on it.

    Parameters
    ----------
    found : Overlap
    values : DataFrame
        `method, stimulus_id, value` of one metric.
    methods : mapping of method to colour, optional
        Those shown; by default the full method and the nearest training picture.

    Returns
    -------
    Figure
        Left: distances of test pictures, and of training pictures to one another. Right: each
        picture's value against its distance, with the mean of every fifth of the pictures.
    """
    _need_columns(values, ["method", "stimulus_id", "value"], "overlap_figure")
    full = full_method(values["method"]) or "stage1"
    methods = methods or {full: BLUE, "retrieval": ORANGE}
    with style():
        fig, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.3), layout="constrained")
        spread = np.concatenate([found.distance, found.among_training])
        bins = np.linspace(spread.min(), max(spread.max(), spread.min() + 1e-6), 25)
        for part, colour, label in (
            (found.among_training, GREY, "training pictures"),
            (found.distance, BLUE, "test pictures"),
        ):
            share = np.full(len(part), 1 / len(part))
            left.hist(part, bins, weights=share, color=colour, alpha=0.5, label=label)
        left.set_xlabel("distance to the nearest\ntraining picture (1 − cosine)")
        left.set_ylabel("share of pictures")
        left.legend(loc="upper right")
        for (method, colour), marker in zip(methods.items(), "oDs^v", strict=False):
            rows = values[values["method"] == method].set_index("stimulus_id")["value"]
            if len(rows) == 0:
                continue
            value = rows.reindex(found.stimulus_id).to_numpy()
            right.plot(found.distance, value, marker, color=colour, alpha=0.35, markersize=4, mew=0)
            order = np.argsort(found.distance)
            fifths = [part for part in np.array_split(order, 5) if len(part)]
            means = [(found.distance[part].mean(), np.nanmean(value[part])) for part in fifths]
            label = METHODS.get(method, method)
            right.plot(*zip(*means, strict=True), marker=marker, color=colour, label=label)
        right.set_xlabel("distance to the nearest\ntraining picture (1 − cosine)")
        right.set_ylabel("CLIP cosine (judge)")
        left.get_legend().remove()
        fig.legend(loc="outside upper center", ncols=2)
        return _finish(fig)
