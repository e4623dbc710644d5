"""Figures of chapter 01: what was seen, when, where the voxels are, and their noise ceiling."""

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from minddiff_utils.datasets import Subject, noise_ceiling, single_trial_ncsnr
from minddiff_utils.figures import style
from minddiff_utils.io import Ids

PLANES = ((0, 1, "from above"), (1, 2, "from the side"), (0, 2, "from behind"))
AXES = ("left → right", "back → front", "bottom → top")


def example_ids(subject: Subject, n: int = 8) -> np.ndarray:
    """Return up to `n` stimuli, spread over all that were seen; int64, sorted."""
    ids = subject.stimulus_ids
    return ids[np.unique(np.linspace(0, len(ids) - 1, min(n, len(ids))).astype(int))]


def counts_table(subject: Subject) -> pd.DataFrame:
    """Return how much there is of everything: one row a quantity, one column "count"."""
    n_repetitions = np.unique(subject.n_repetitions(subject.stimulus_ids))
    rows = {
        "sessions": len(np.unique(subject.session)),
        "trials": len(subject.stimulus_id),
        "different stimuli": len(subject.stimulus_ids),
        "repetitions of a stimulus": " to ".join(map(str, np.unique(n_repetitions[[0, -1]]))),
        "voxels": subject.responses.shape[1],
        "voxels left out, they never change": subject.n_dropped,
    }
    return pd.DataFrame({"count": pd.Series(rows, dtype=object)})


@style.figure
def pictures_with_captions(subject: Subject, ids: Ids, columns: int = 4) -> Figure:
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
    fig, grid = style.canvases(2.45 * rows, rows, columns)
    for axes in grid.flat:
        axes.set_axis_off()
    pictures, captions = subject.stimuli.pictures(ids), subject.stimuli.captions(ids)
    for axes, picture, texts in zip(grid.flat, pictures, captions, strict=False):
        axes.imshow(picture)
        wrapped = textwrap.fill(texts[0], 92 // columns, max_lines=4, placeholder=" …")
        axes.set_title(wrapped, y=-0.08, va="top", fontsize=9)
    return fig


@style.figure
def trial_raster(subject: Subject) -> Figure:
    """Show when each picture was seen: a dot a trial, pictures in order of first appearance.

    Returns
    -------
    Figure
    """
    frame = pd.DataFrame({"picture": pd.factorize(subject.stimulus_id)[0] + 1})
    frame["trial"] = np.arange(len(frame)) + 1
    frame["repetition"] = frame.groupby("picture").cumcount() + 1
    colours = sns.color_palette("viridis", frame["repetition"].max())
    fig, axes = style.canvas(3.2)
    sns.scatterplot(
        frame, x="trial", y="picture", hue="repetition", palette=colours, legend="full",
        s=4 if len(frame) > 500 else 25, linewidth=0, rasterized=True,
    )  # fmt: skip
    for start in np.flatnonzero(np.diff(subject.session)):
        axes.axvline(start + 1.5, color="#cccccc", linewidth=0.6, zorder=0)
    axes.grid(False)
    axes.set_ylabel("stimulus, by first appearance")
    sns.move_legend(axes, "center left", bbox_to_anchor=(1, 0.5), markerscale=2)
    return fig


@style.figure
def roi_voxels(subject: Subject) -> Figure:
    """Show how many voxels each region has and, where known, where in the volume they lie.

    Returns
    -------
    Figure
        Three views through the volume above the bars; the bars alone where places are unknown.
    """
    names = list(subject.roi)
    colours = sns.color_palette(style.PALETTE, len(names))
    known = subject.voxel_ijk is not None and subject.volume_shape is not None
    height = 0.75 + 0.22 * len(names)
    fig = plt.figure(figsize=(style.WIDTH, height + 2.5 * known), layout="constrained")
    below = fig
    if known:
        (above,), (below,) = fig.subfigures(2, 1, squeeze=False, height_ratios=[2.5, height])
        _draw_views(above.subplots(1, 3), subject, colours)
    axes = below.subplots(squeeze=False)[0, 0]
    counts = [int(mask.sum()) for mask in subject.roi.values()]
    sns.barplot(x=counts, y=names, hue=names, palette=colours, saturation=1, ax=axes)
    for bar in axes.containers:
        axes.bar_label(bar, padding=3, fontsize=9)
    axes.grid(False, axis="y")
    axes.set_xlabel("voxels")
    return fig


def _draw_views(axes: Sequence[Axes], subject: Subject, colours: Sequence[str]) -> None:
    """Draw the regions from three sides, and name each where most of it is seen."""
    images = [_projection(subject, across, up) for across, up, _ in PLANES]
    half = max(max(image.shape) for image in images) / 2
    for axis, image, (across, up, title) in zip(axes, images, PLANES, strict=True):
        shades = ListedColormap(colours)
        axis.imshow(image, shades, origin="lower", vmin=-0.5, vmax=len(colours) - 0.5)
        y, x = ((n / 2 - 0.5 - half, n / 2 - 0.5 + half) for n in image.shape)
        axis.set(xlim=x, ylim=y)
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
    places = np.argwhere(mask)
    left = places[:, 1] < (mask.shape[1] - 1) / 2
    places = places[left if 2 * left.sum() >= len(left) else ~left]
    row, column = places[np.linalg.norm(places - places.mean(axis=0), axis=1).argmin()]
    edge = [withStroke(linewidth=2.5, foreground="white")]
    axis.text(column, row, name, ha="center", va="center", fontsize=8, path_effects=edge)


def _projection(subject: Subject, across: int, up: int) -> np.ndarray:
    """Return the number of the region nearest to the viewer in each column of voxels, or NaN."""
    depth = 3 - across - up
    ijk, shape = subject.voxel_ijk, subject.volume_shape
    assert ijk is not None and shape is not None
    # From above and from the side the viewer stands at the high end, from behind at the low end.
    order = np.argsort(ijk[:, depth] * (1 if depth != 1 else -1), kind="stable")
    label = np.full(len(order), np.nan)
    for number, mask in enumerate(subject.roi.values()):
        label[mask] = number
    image = np.full([shape[up], shape[across]], np.nan)
    image[tuple(ijk[order][:, [up, across]].T)] = label[order]
    return image


@style.figure
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
    fig, axes = style.canvas(3.2)
    parts = [pd.DataFrame({"roi": k, "y": ceiling[mask]}) for k, mask in subject.roi.items()]
    if np.isfinite(ceiling).any():
        sns.boxplot(
            pd.concat(parts), x="roi", y="y", whis=(5, 95), width=min(0.6, 0.1 * len(parts)),
            showfliers=False, color="#cfe4f3", saturation=1, linecolor=style.BLUE, linewidth=1,
            medianprops={"color": style.ORANGE, "linewidth": 2.2},
        )  # fmt: skip
    else:  # seaborn draws no box of nothing
        text = "not known: no stimulus was shown twice"
        axes.text(0.5, 0.5, text, ha="center", transform=axes.transAxes)
    averaged = f"mean of {n_repetitions:.3g} trials" if n_repetitions > 1 else "single trial"
    axes.set(xlabel="", ylim=(0, 100), ylabel=f"noise ceiling, %\n({averaged})")
    return fig


def clearest_voxel(subject: Subject) -> int:
    """Return the voxel with the highest noise ceiling; where none is known, the one most varied."""
    ratio = single_trial_ncsnr(subject)
    values = ratio if np.isfinite(ratio).any() else subject.responses[:].std(axis=0)
    return int(np.nanargmax(values))


@style.figure
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
    frame = pd.DataFrame({"picture": subject.stimulus_id, "response": subject.responses[:, voxel]})
    mean = frame.groupby("picture")["response"].mean().sort_values()
    frame["rank"] = frame["picture"].map(pd.Series(np.arange(len(mean)) + 1, mean.index))
    fig = plt.figure(figsize=(style.WIDTH, 4.5), layout="constrained")
    (below,), (above,) = fig.subfigures(2, 1, squeeze=False, height_ratios=[3, 1.5])
    axes = below.subplots()
    sns.scatterplot(
        frame, x="rank", y="response", color=style.GREY, alpha=0.45, rasterized=True, linewidth=0,
        s=6 if len(frame) > 500 else 25, label="one trial", ax=axes,
    )  # fmt: skip
    sns.lineplot(
        frame, x="rank", y="response", errorbar=None, color=style.BLUE, linewidth=2.2,
        label="mean of a stimulus", ax=axes,
    )  # fmt: skip
    axes.set_xlabel("stimulus, by mean response")
    sns.move_legend(axes, "upper left", markerscale=2)
    n_pictures = min(n_pictures, len(mean) // 2)
    ends = {"weakest": mean.index[:n_pictures], "strongest": mean.index[-n_pictures:]}
    for half, (title, ids) in zip(above.subfigures(1, 2), ends.items(), strict=True):
        grid = half.subplots(1, n_pictures, squeeze=False)[0]
        grid[0].set_title(f"{title} response", fontsize=10, loc="left")
        for small, picture in zip(grid, subject.stimuli.pictures(ids), strict=True):
            small.imshow(picture)
            small.set_axis_off()
    return fig
