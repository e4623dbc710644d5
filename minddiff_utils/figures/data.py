"""Figures of chapter 01: what was seen, when, where the voxels are, and their noise ceiling."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from minddiff_utils.datasets import Subject, noise_ceiling, single_trial_ncsnr
from minddiff_utils.figures import style
from minddiff_utils.io import Ids


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
def pictures_with_captions(subject: Subject, ids: Ids, columns: int = 3) -> Figure:
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
    fig, grid = style.canvases(3.2 * rows, rows, columns)
    for axes in grid.flat:
        axes.set_axis_off()
    pictures, captions = subject.stimuli.pictures(ids), subject.stimuli.captions(ids)
    for axes, picture, texts in zip(grid.flat, pictures, captions, strict=False):
        axes.imshow(picture)
        wrapped = textwrap.fill(texts[0], 66 // columns, max_lines=4, placeholder=" …")
        axes.set_title(wrapped, y=-0.08, va="top", fontsize=11)
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
    colours = sns.color_palette("cividis", frame["repetition"].max())
    fig, axes = style.canvas(4.0)
    sns.scatterplot(
        frame, x="trial", y="picture", hue="repetition", palette=colours, legend="full",
        s=4 if len(frame) > 500 else 25, linewidth=0, rasterized=True,
    )  # fmt: skip
    for start in np.flatnonzero(np.diff(subject.session)):
        axes.axvline(start + 1.5, color="#cccccc", linewidth=0.6, zorder=0)
    axes.grid(False)
    axes.set_ylabel("stimulus, by first appearance")
    axes.locator_params("x", nbins=6)
    sns.move_legend(axes, "lower left", bbox_to_anchor=(0, 1), ncols=6, markerscale=2)
    return fig


@style.figure
def roi_voxels(subject: Subject) -> Figure:
    """Show how many voxels each region has.

    Returns
    -------
    Figure
    """
    counts = {name: int(mask.sum()) for name, mask in subject.roi.items()}
    fig, axes = style.canvas(0.9 + 0.3 * len(counts))
    sns.barplot(x=[*counts.values()], y=[*counts], color=style.BLUE, saturation=1, ax=axes)
    axes.bar_label(axes.containers[0], padding=3, fontsize=11)  # type: ignore[arg-type]
    axes.grid(False, axis="y")
    axes.set_xlabel("voxels")
    return fig


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
    parts = [pd.DataFrame({"roi": k, "x": ceiling[mask]}) for k, mask in subject.roi.items()]
    fig, axes = style.canvas(1.0 + 0.36 * len(parts))
    if np.isfinite(ceiling).any():
        sns.boxplot(
            pd.concat(parts), x="x", y="roi", whis=(5, 95), width=min(0.6, 0.1 * len(parts)),
            showfliers=False, color="#cfe4f3", saturation=1, linecolor=style.BLUE, linewidth=1,
            medianprops={"color": style.ORANGE, "linewidth": 2.2},
        )  # fmt: skip
    else:  # seaborn draws no box of nothing
        text = "not known: no stimulus was shown twice"
        axes.text(0.5, 0.5, text, ha="center", transform=axes.transAxes)
    averaged = f"mean of {n_repetitions:.3g} trials" if n_repetitions > 1 else "single trial"
    axes.grid(False, axis="y")
    axes.set(ylabel="", xlim=(0, 100), xlabel=f"noise ceiling ({averaged}), % of the variance")
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
    fig = plt.figure(figsize=(style.WIDTH, 5.2), layout="constrained")
    (below,), (above,) = fig.subfigures(2, 1, squeeze=False, height_ratios=[3.7, 1.5])
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
        grid[0].set_title(f"{title} response", fontsize=12, loc="left")
        for small, picture in zip(grid, subject.stimuli.pictures(ids), strict=True):
            small.imshow(picture)
            small.set_axis_off()
    return fig
