"""Figures of chapter 01: what was seen, when, where the voxels are, and how clean they are."""

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from minddiff_utils.datasets import Subject, noise_ceiling, single_trial_ncsnr, summarise
from minddiff_utils.figures.common import BLUE, GREY, ORANGE, WIDTH, _finish, style

PLANES = ((0, 1, "from above"), (1, 2, "from the side"), (0, 2, "from behind"))
ROI_COLOURS = (
    "#0072B2", "#E69F00", "#56B4E9", "#882255", "#009E73", "#D55E00",
    "#F0E442", "#332288", "#999999", "#CC79A7", "#1b5e20",
)  # fmt: skip
AXES = ("left → right", "back → front", "bottom → top")


def example_ids(subject: Subject, n: int = 8) -> np.ndarray:
    """Return up to `n` stimuli, spread over all that were seen; int64, sorted."""
    ids = subject.stimulus_ids
    return ids[np.unique(np.linspace(0, len(ids) - 1, min(n, len(ids))).astype(int))]


def counts_table(subject: Subject) -> pd.DataFrame:
    """Return how much there is of everything: one row a quantity, one column "count"."""
    counts = summarise(subject)
    low, high = counts["repetitions"]
    rows = {
        "sessions": counts["n_sessions"],
        "trials": counts["n_trials"],
        "different pictures": counts["n_stimuli"],
        "repetitions of a picture": str(low) if low == high else f"{low} to {high}",
        "voxels": counts["n_voxels"],
        "voxels left out, they never change": counts["n_dropped_voxels"],
        "train/test splits": len(counts["splits"]),
    }
    for part in ("train", "test"):
        sizes = sorted({split[part] for split in counts["splits"].values()})
        rows[f"{part} pictures in a split"] = " or ".join(map(str, sizes))
    return pd.DataFrame({"count": pd.Series(rows, dtype=object)})


def pictures_with_captions(subject: Subject, ids: Sequence[int], columns: int = 4) -> Figure:
    """Show pictures, each with the first of its captions below it.

    Parameters
    ----------
    subject : Subject
    ids : sequence of int
    columns : int
        Pictures side by side.

    Returns
    -------
    Figure
    """
    columns = min(columns, len(ids))
    rows = -(-len(ids) // columns)
    with style():
        figure, axes = plt.subplots(
            rows, columns, figsize=(WIDTH, 2.45 * rows), squeeze=False, layout="constrained"
        )
        for axis in axes.flat:
            axis.set_axis_off()
        pictures, captions = subject.stimuli.pictures(ids), subject.stimuli.captions(ids)
        for axis, picture, texts in zip(axes.flat, pictures, captions, strict=False):
            axis.imshow(picture)
            wrapped = textwrap.fill(texts[0], 92 // columns, max_lines=4, placeholder=" …")
            axis.set_title(wrapped, y=-0.08, va="top", fontsize=9)
    return _finish(figure)


def trial_raster(subject: Subject) -> Figure:
    """Show when each picture was seen: a dot a trial, pictures in order of first appearance.

    Returns
    -------
    Figure
    """
    _, first, rows = np.unique(subject.stimulus_id, return_index=True, return_inverse=True)
    appearance = first.argsort().argsort()
    repetition = pd.Series(subject.stimulus_id).groupby(subject.stimulus_id).cumcount().to_numpy()
    n = repetition.max() + 1
    few = len(rows) < 500
    with style():
        figure, axis = plt.subplots(figsize=(WIDTH, 3.2), layout="constrained")
        colours = plt.get_cmap("viridis")(np.linspace(0, 0.85, n))
        for k in range(n):
            trials = np.flatnonzero(repetition == k)
            axis.plot(
                trials + 1, appearance[rows[trials]] + 1, "." if not few else "s", color=colours[k],
                markersize=5 if few else 2, label=str(k + 1), rasterized=True,
            )  # fmt: skip
        for start in np.flatnonzero(np.diff(subject.session)):
            axis.axvline(start + 1.5, color="#cccccc", linewidth=0.6, zorder=0)
        axis.grid(False)
        axis.set(xlabel="trial", ylabel="picture, by first appearance")
        axis.legend(
            title="repetition",
            loc="center left",
            bbox_to_anchor=(1, 0.5),
            markerscale=1 if few else 4,
        )
    return _finish(figure)


def roi_voxels(subject: Subject) -> Figure:
    """Show how many voxels each region has and, where known, where in the volume they lie.

    Returns
    -------
    Figure
        Three views through the volume above the bars; the bars alone where places are unknown.
    """
    names = list(subject.roi)
    colours = _roi_colours(len(names))
    known = subject.voxel_ijk is not None and subject.volume_shape is not None
    with style():
        height = (2.5 if known else 0) + 0.75 + 0.22 * len(names)
        figure = plt.figure(figsize=(WIDTH, height), layout="constrained")
        top, bottom = (
            figure.subfigures(2, 1, height_ratios=[2.5, height - 2.5]) if known else (None, figure)
        )
        bars = bottom.subplots()
        counts = [int(mask.sum()) for mask in subject.roi.values()]
        drawn = bars.barh(names, counts, color=colours)
        bars.bar_label(drawn, padding=3, fontsize=9)
        bars.invert_yaxis()
        bars.grid(False, axis="y")
        bars.set_xlabel("voxels")
        if known:
            _views(top.subplots(1, 3), subject, colours)
    return _finish(figure)


def _roi_colours(n: int) -> list[str]:
    """Return `n` colours, those of Okabe and Ito first."""
    return [ROI_COLOURS[k % len(ROI_COLOURS)] for k in range(n)]


def _views(axes: Sequence[Axes], subject: Subject, colours: Sequence[str]) -> None:
    """Draw the regions from three sides, and name each where most of it is seen."""
    images = [_projection(subject, across, up) for across, up, _ in PLANES]
    half = max(subject.volume_shape) / 2
    for axis, image, (across, up, title) in zip(axes, images, PLANES, strict=True):
        axis.imshow(
            image, origin="lower", cmap=ListedColormap(colours), vmin=-0.5,
            vmax=len(colours) - 0.5, interpolation="nearest",
        )  # fmt: skip
        middle = [(n - 1) / 2 for n in image.shape]
        axis.set(
            xlim=(middle[1] - half, middle[1] + half), ylim=(middle[0] - half, middle[0] + half)
        )
        axis.set(xlabel=AXES[across], ylabel=AXES[up], xticks=[], yticks=[], title=title)
        axis.grid(False)
        axis.spines[:].set_visible(False)
    # Names on the map: eleven colours alone cannot be told apart by everyone.
    for number, name in enumerate(subject.roi):
        seen = [int((image == number).sum()) for image in images]
        best = int(np.argmax(seen))
        if seen[best]:
            _name(axes[best], images[best] == number, name)


def _name(axis: Axes, mask: np.ndarray, name: str) -> None:
    """Write a region's name on its larger half, the left one if both are alike."""
    rows, columns = np.nonzero(mask)
    centre = (mask.shape[1] - 1) / 2
    left = columns < centre
    half = left if 2 * left.sum() >= left.size else ~left
    rows, columns = rows[half], columns[half]
    nearest = np.hypot(rows - rows.mean(), columns - columns.mean()).argmin()
    axis.text(
        columns[nearest], rows[nearest], name, ha="center", va="center", fontsize=8,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
    )  # fmt: skip


def _projection(subject: Subject, across: int, up: int) -> np.ndarray:
    """Return the number of the region nearest to the viewer in each column of voxels, or NaN."""
    depth = 3 - across - up
    # From above and from the side the viewer stands at the high end, from behind at the low end.
    order = np.argsort(subject.voxel_ijk[:, depth] * (1 if depth != 1 else -1), kind="stable")
    label = np.full(len(order), np.nan)
    for number, mask in enumerate(subject.roi.values()):
        label[mask] = number
    ijk = subject.voxel_ijk[order]
    image = np.full([subject.volume_shape[up], subject.volume_shape[across]], np.nan)
    image[ijk[:, up], ijk[:, across]] = label[order]
    return image


def ceiling_by_roi(subject: Subject, n_repetitions: float) -> Figure:
    """Show the noise ceiling of every voxel, region by region.

    Parameters
    ----------
    subject : Subject
    n_repetitions : float
        How many trials of a picture are averaged; for several pictures, `mean_repetitions`.

    Returns
    -------
    Figure
        A box from the lower to the upper quartile with the median, whiskers from the 5th to the
        95th percentile. Empty, and saying so, where no stimulus was shown twice.
    """
    ceiling = noise_ceiling(single_trial_ncsnr(subject), n_repetitions)
    known = np.isfinite(ceiling)
    with style():
        figure, axis = plt.subplots(figsize=(WIDTH, 3.2), layout="constrained")
        axis.boxplot(
            [ceiling[mask & known] for mask in subject.roi.values()],
            tick_labels=list(subject.roi),
            whis=(5, 95),
            widths=min(0.6, 0.1 * len(subject.roi)),
            showfliers=False,
            patch_artist=True,
            boxprops={"facecolor": "#cfe4f3", "edgecolor": BLUE},
            whiskerprops={"color": BLUE},
            capprops={"color": BLUE},
            medianprops={"color": ORANGE, "linewidth": 2.2},
        )
        axis.grid(False, axis="x")
        averaged = f"mean of {n_repetitions:.3g} trials" if n_repetitions > 1 else "single trial"
        axis.set(ylim=(0, 100), ylabel=f"noise ceiling, %\n({averaged})")
        if not known.any():
            axis.text(
                0.5, 0.5, "not known: no picture was shown twice", ha="center",
                transform=axis.transAxes,
            )  # fmt: skip
    return _finish(figure)


def clearest_voxel(subject: Subject) -> int:
    """Return the voxel with the highest noise ceiling; where none is known, the one most varied."""
    ratio = single_trial_ncsnr(subject)
    return int(np.nanargmax(ratio if np.isfinite(ratio).any() else subject.responses.std(axis=0)))


def voxel_responses(subject: Subject, voxel: int, n_pictures: int = 5) -> Figure:
    """Show one voxel's response to every picture, and the pictures it liked least and most.

    Parameters
    ----------
    subject : Subject
    voxel : int
    n_pictures : int
        How many pictures to show at each end.

    Returns
    -------
    Figure
    """
    x = subject.responses[:, voxel]
    mean = pd.Series(x).groupby(subject.stimulus_id).mean().sort_values()
    rank = pd.Series(np.arange(len(mean)) + 1, index=mean.index)
    n_pictures = min(n_pictures, len(mean) // 2)
    with style():
        figure = plt.figure(figsize=(WIDTH, 4.5), layout="constrained")
        below, above = figure.subfigures(2, 1, height_ratios=[3, 1.5])
        axis = below.subplots()
        axis.plot(
            rank[subject.stimulus_id], x, ".", color=GREY, alpha=0.45, rasterized=True,
            markersize=3 if len(x) > 500 else 6, label="one trial",
        )  # fmt: skip
        axis.plot(rank, mean, color=BLUE, linewidth=2.2, label="mean of a picture")
        axis.set(xlabel="picture, by mean response", ylabel="response")
        axis.legend(loc="upper left", markerscale=2)
        ends = {"least": mean.index[:n_pictures], "most": mean.index[-n_pictures:]}
        for half, (title, ids) in zip(above.subfigures(1, 2), ends.items(), strict=True):
            axes = np.atleast_1d(half.subplots(1, n_pictures))
            axes[0].set_title(f"answered {title}", fontsize=10, loc="left")
            for small, picture in zip(axes, subject.stimuli.pictures(ids), strict=True):
                small.imshow(picture)
                small.set_axis_off()
    return _finish(figure)
