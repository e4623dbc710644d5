"""Figures of what the numbers mean: metrics, differences, floor to ceiling, failures, overlap."""

import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minddiff_utils.evaluation import full_method, statistics, tables
from minddiff_utils.evaluation.metrics import METHODS, METRICS
from minddiff_utils.figures import style
from minddiff_utils.figures.reconstruction import mosaic, show_mosaic
from minddiff_utils.io import InputError

if TYPE_CHECKING:
    from minddiff_utils.evaluation.leakage import Overlap

SUBJECT_MARKERS = "osD^vP*X"
# Method -> colour, marker and label, from the floor to the ceiling.
STEPS = {
    tables.FLOOR: (style.GREY, "v", "best blind control (floor)"),
    "retrieval": (style.ORANGE, "D", "nearest training image"),
    "stage1": (style.SKY, "s", "stage 1"),
    "algorithm_1": (style.RED, "o", "Algorithm 1"),
    "stage2": (style.BLUE, "o", "stage 2"),
    "ceiling": (style.GREEN, "^", "true features (ceiling)"),
}
# Which end of (CLIP, PCC) is looked for: top left, top right, bottom left, bottom right.
CORNERS = {"A": (-1, 1), "B": (1, 1), "C": (-1, -1), "D": (1, -1)}

# --- means and intervals -------------------------------------------------------------------


@style.figure
def metric_points(frame: pd.DataFrame) -> Figure:
    """Draw the mean of every metric with its interval, a method a row.

    Parameters
    ----------
    frame : DataFrame
        Tidy: `subject, method, stimulus_id, metric, value`; several subjects have a marker each.

    Returns
    -------
    Figure
        A panel a metric: mean with its 95 % bootstrap interval; of a single subject, strokes
        behind them are the pictures.
    """
    frame = frame.assign(method=style.in_words(frame["method"], METHODS))
    single = frame["subject"].nunique() == 1
    return _interval_panels(frame, "method", "value, with mean and interval", strokes=single)


@style.figure
def paired_differences(frame: pd.DataFrame) -> Figure:
    """Draw what stage 2 adds, and what each decoded input: mean paired difference and interval.

    Parameters
    ----------
    frame : DataFrame
        Tidy: `subject, method, stimulus_id, metric, value`; several subjects have a marker each.

    Returns
    -------
    Figure
        A panel a metric, with a row for each of `tables.PAIRS` whose methods are there. Right of
        the zero line, the first method of the pair is better.
    """
    index = ["subject", "metric", "stimulus_id"]
    wide = frame.pivot(index=index, columns="method", values="value")
    pairs = tables.present_pairs(tables.PAIRS, wide)
    gain = {tables.pair_name(one, other): wide[one] - wide[other] for one, other in pairs}
    if not gain:
        methods = ", ".join(wide)
        raise InputError(f"None of the pairs is in {methods}. Run notebook 04_stage2 first.")
    tidy = pd.DataFrame(gain).melt(ignore_index=False, var_name="pair").reset_index()
    fig = _interval_panels(tidy, "pair", "difference")
    for axes in fig.axes:
        axes.axvline(0, color="#333333", linewidth=1)
    return fig


def _interval_panels(frame: pd.DataFrame, row: str, what: str, strokes: bool = False) -> Figure:
    """Draw means over pictures and their 95 % intervals: a panel a metric, a marker a subject."""
    n = frame["subject"].nunique()
    names = frame[row].map(partial(textwrap.fill, width=24))
    frame = frame.assign(metric=style.in_words(frame["metric"], METRICS), **{row: names})
    grid = sns.catplot(
        frame, kind="point", x="value", y=row, hue="subject", col="metric", col_wrap=2,
        sharex=False, errorbar=statistics.bootstrap_interval, linestyle="none",
        dodge=min(0.22 * (n - 1), 0.7) or False, markersize=5, err_kws={"linewidth": 2},
        palette=style.PALETTE[:n] if n > 1 else ["#111111"], markers=list(SUBJECT_MARKERS[:n]),
        legend=n > 1,
    )  # fmt: skip
    if strokes:
        grid.map_dataframe(
            sns.stripplot, x="value", y=row, jitter=False, marker="|", s=11, color=style.BLUE,
            linewidth=1, alpha=0.35, zorder=1, rasterized=True,
        )  # fmt: skip
    for axes in grid.axes.flat:
        axes.grid(axis="y", visible=False)
        axes.locator_params(axis="x", nbins=4)
    height = 1.0 + 0.42 * max(frame[row].nunique(), 2)
    return style.fit(grid, height * -(-len(grid.axes) // 2), what, n_columns=6)


@style.figure
def floor_to_ceiling(frame: pd.DataFrame) -> Figure:
    """Draw how far each step has come from the floor to the ceiling, a metric a line.

    Parameters
    ----------
    frame : DataFrame
        Tidy: `subject, method, stimulus_id, metric, value`; several subjects have a line each.

    Returns
    -------
    Figure
        Markers: mean over pictures; bars: its 95 % bootstrap interval. At the right, the share of
        the way from floor to ceiling that both stages have come.
    """
    several = frame["subject"].nunique() > 1
    lines = {}
    for (metric, subject), rows in tables.groups_in_order(frame, ["metric", "subject"]):
        label = METRICS.get(metric, metric) + (f", {subject}" if several else "")
        wide = rows.pivot(index="stimulus_id", columns="method", values="value")
        lines[label] = tables.with_floor(wide)
    tidy = pd.concat({name: wide.melt() for name, wide in lines.items()}, names=["line", None])
    tidy = tidy.reset_index("line")
    steps = {name: step for name, step in STEPS.items() if name in set(tidy["method"])}
    colours, markers, labels = zip(*steps.values(), strict=True)
    tidy["method"] = tidy["method"].map(dict(zip(steps, labels, strict=True)))
    fig, axes = style.canvas(2.0 + (0.6 if several else 0.75) * len(lines))
    sns.pointplot(
        tidy, x="value", y="line", hue="method", hue_order=labels, dodge=0.5, linestyle="none",
        errorbar=statistics.bootstrap_interval, palette=colours, markers=list(markers),
        markersize=6, markeredgewidth=0, err_kws={"linewidth": 1.8},
    )  # fmt: skip
    for place, wide in enumerate(lines.values()):
        _mark_way(axes, place, wide)
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="mean over test images", ylabel="")
    title = "stage 2's share\nof the way"
    axes.text(1.02, 1.01, title, transform=axes.transAxes, va="bottom", fontsize=11)
    style.legend_above(axes)
    return fig


def _mark_way(axes: Axes, place: int, wide: pd.DataFrame) -> None:
    """Shade the way from floor to ceiling, and write the share of it at the right."""
    text = "–"
    ends = [tables.FLOOR, full_method(wide), "ceiling"]
    if set(ends) <= set(wide):
        floor, reached, ceiling = wide[ends].dropna().mean()
        axes.barh(place, ceiling - floor, 0.55, left=floor, color="#e8e8e8", zorder=0.5)
        text = f"{(reached - floor) / (ceiling - floor):.0%}".replace("%", " %")
    axes.text(1.02, place, text, transform=axes.get_yaxis_transform(), va="center", fontsize=11.5)


@style.figure
def score_curves(curve: pd.DataFrame, reference: pd.DataFrame, label: str) -> Figure:
    """Draw every metric against how much of the recording was used, from little to all.

    Parameters
    ----------
    curve : DataFrame
        Tidy: `method, stimulus_id, metric, value`; the method is a number, the highest all.
    reference : DataFrame
        The same of the methods of a run; of the curve's pictures, floor and ceiling are drawn.
    label : str
        What is counted, written below the axes.

    Returns
    -------
    Figure
        A panel a metric: mean over pictures with its 95 % bootstrap interval, on a logarithmic
        axis; floor and ceiling as lines where they are known.
    """
    sizes = sorted(curve["method"].unique())
    frame = curve.sort_values("method", kind="stable")
    frame = frame.assign(metric=style.in_words(curve["metric"], METRICS))
    grid = sns.relplot(
        frame, x="method", y="value", kind="line", sort=False, col="metric", col_wrap=2,
        errorbar=statistics.bootstrap_interval, err_style="bars", marker="o", color=style.BLUE,
        err_kws={"linewidth": 2}, facet_kws={"sharey": False, "sharex": False},
    )  # fmt: skip
    same = reference[reference["stimulus_id"].isin(curve["stimulus_id"])]
    for names, wide in tables.by_metric(same):
        means = wide.mean()
        axes = grid.axes_dict.get(METRICS.get(names["metric"], names["metric"]))
        for name in [name for name in (tables.FLOOR, "ceiling") if name in means and axes]:
            colour, _, text = STEPS[name]
            axes.axhline(means[name], color=colour, linestyle="--", label=text)
    fig = style.fit(grid, 2.7 * -(-len(grid.axes) // 2), label)
    for axes in grid.axes:
        axes.set_xscale("log")
        axes.set_xticks(sizes, [*(f"{size:,}" for size in sizes[:-1]), f"all\n{sizes[-1]:,}"])
        axes.set_xticks([], minor=True)
    style.legend_above(*grid.axes)
    return fig


@style.figure
def generalisation(frame: pd.DataFrame) -> Figure:
    """Draw the scores of several test sets, with the right and with wrong pictures.

    Parameters
    ----------
    frame : DataFrame
        `test_set, stimulus_id, scored_with, metric, value`, from `generalisation.score_sets`.

    Returns
    -------
    Figure
        A panel a metric: mean with its 95 % bootstrap interval, test sets from left to right.
    """
    frame = frame.assign(metric=style.in_words(frame["metric"], METRICS))
    grid = sns.catplot(
        frame, kind="point", x="test_set", y="value", hue="scored_with", col="metric", col_wrap=2,
        sharey=False, errorbar=statistics.bootstrap_interval, dodge=0.2, linestyle="none",
        palette=[style.BLUE, style.GREY], markers=["o", "v"], markersize=5,
        err_kws={"linewidth": 2},
    )  # fmt: skip
    for axes in grid.axes.flat:
        axes.tick_params(axis="x", rotation=20)
    height = 3.0 * -(-len(grid.axes) // 2) + 0.5
    return style.fit(grid, height, "", n_columns=2)


@style.figure
def permutation_null(test: statistics.PermutationTest, label: str) -> Figure:
    """Draw how a statistic is distributed when pictures are permuted, and the observed value.

    Parameters
    ----------
    test : PermutationTest
    label : str
        What the statistic is, written below the axis.

    Returns
    -------
    Figure
        The title gives the one-sided p-value.
    """
    fig, axes = style.canvas(3.4)
    name = f"{len(test.null):,} permutations"
    sns.histplot(x=test.null, bins=40, color=style.GREY, alpha=0.6, linewidth=0, label=name)
    axes.axvline(test.observed, color=style.RED, linewidth=2.2, label="matched stimuli")
    axes.set_title(tables.p_text(test.p), loc="left")
    axes.set(xlabel=label, ylabel="permutations")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 0.97), ncols=2)
    return fig


# --- where it fails ------------------------------------------------------------------------


def corner_pictures(x: np.ndarray, y: np.ndarray, n: int = 2) -> dict[str, np.ndarray]:
    """Choose the pictures nearest to the four corners of a scatter plot, by rank.

    Parameters
    ----------
    x, y : float (n_pictures,)
    n : int
        Pictures a corner, fewer if there are not as many; a picture stands at one corner only.

    Returns
    -------
    dict of "A" (top left), "B" (top right), "C" (bottom left), "D" (bottom right) to int (n,)
        Places of the pictures, the furthest into the corner first.
    """
    n = min(n, max(1, len(x) // 4))
    ranks = [np.argsort(np.argsort(values, kind="stable")) for values in (x, y)]
    centred = [rank - (len(x) - 1) / 2 for rank in ranks]
    left = np.ones(len(x), bool)
    found = {}
    for name, (right, up) in CORNERS.items():
        # The worse of the two ranks counts: high in one and middling in the other is no corner.
        score = np.where(left, np.minimum(right * centred[0], up * centred[1]), -np.inf)
        found[name] = np.argsort(-score, kind="stable")[: min(n, left.sum())]
        left[found[name]] = False
    return found


@style.figure
def failures(
    truth: np.ndarray, made: np.ndarray, clip: np.ndarray, pcc: np.ndarray, labels: Sequence[str]
) -> Figure:
    """Draw every test picture at its CLIP cosine and its PCC, with pictures at the four corners.

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
    fig, panels = plt.subplot_mosaic(
        [["all", "all"], ["A", "B"], ["C", "D"]], figsize=(style.WIDTH, 9.0), layout="constrained",
        height_ratios=[1.5, 1, 1],
    )  # fmt: skip
    axes = panels["all"]
    sns.scatterplot(x=clip, y=pcc, color=style.BLUE, alpha=0.5, s=25, linewidth=0, ax=axes)
    for name, chosen in corner_pictures(np.asarray(clip), np.asarray(pcc)).items():
        names = [f"{name}{k}: {labels[i]}" for k, i in enumerate(chosen, start=1)]
        if not names:  # fewer pictures than corners
            panels[name].set_axis_off()
            continue
        pair = np.stack([truth[chosen], made[chosen]])
        gap = truth.shape[2] // 12
        both = ["seen", "made"], names
        show_mosaic(panels[name], mosaic(pair, 1, gap), pair.shape[:2], gap, both)
        panels[name].tick_params(labelsize=11)
        panels[name].tick_params("y", labelrotation=90)
        panels[name].set_aspect("equal")
        axes.plot(clip[chosen], pcc[chosen], "o", mfc="none", color=style.RED, markersize=9)
        for i, text in zip(chosen, names, strict=True):
            axes.annotate(
                text.split(":")[0], (clip[i], pcc[i]), (5, 4), textcoords="offset points",
                fontsize=11, color=style.RED,
            )  # fmt: skip
    axes.set_xlabel("CLIP cosine (judge): is it the same thing?")
    axes.set_ylabel("PCC: do the pixels agree?")
    axes.margins(0.1)
    return fig


# --- overlap -------------------------------------------------------------------------------


@style.figure
def overlap_figure(found: "Overlap", values: pd.DataFrame, shown: Sequence[str] = ()) -> Figure:
    """Draw how far test pictures are from training pictures, and whether the metric depends on it.

    Parameters
    ----------
    found : Overlap
    values : DataFrame
        `method, stimulus_id, value` of CLIP's cosine by the judge; the full method and the nearest
        training picture are shown.
    shown : sequence of str
        Other methods to show instead.

    Returns
    -------
    Figure
        Left: distances of test pictures, and of training pictures to one another. Right: each
        picture's value against its distance, with the mean of every fifth of the pictures.
    """
    fig, ((left, right),) = style.canvases(4.0, 1, 2)
    distances = {"training images": found.among_training, "test images": found.distance}
    sns.histplot(
        distances, palette=[style.GREY, style.BLUE], bins=24, stat="proportion",
        common_norm=False, alpha=0.5, linewidth=0, ax=left,
    )  # fmt: skip
    near = pd.DataFrame({"stimulus_id": found.stimulus_id, "distance": found.distance})
    near["fifth"] = pd.qcut(near["distance"].rank(method="first"), 5, labels=False)
    shown = shown or [full_method(values["method"]) or "stage1", "retrieval"]
    frame = values[values["method"].isin(shown)].merge(near, on="stimulus_id")
    frame["method"] = style.in_words(frame["method"], METHODS)
    n = frame["method"].nunique()
    colours, markers = list(style.PALETTE[:n]), ["o", "D", *"s^vP*Xdp<>h"][:n]
    means = frame.groupby(["method", "fifth"], observed=True)[["distance", "value"]].mean()
    sns.scatterplot(
        frame, x="distance", y="value", hue="method", palette=colours, style="method",
        markers=markers, alpha=0.35, s=16, linewidth=0, legend=False, ax=right,
    )  # fmt: skip
    sns.lineplot(
        means, x="distance", y="value", hue="method", palette=colours, style="method",
        markers=markers, dashes=False, ax=right,
    )  # fmt: skip
    left.set(xlabel="distance to the nearest\ntraining image (1 − cosine)")
    left.set_ylabel("share of images")
    style.legend_above(left, right)
    right.set(xlabel=left.get_xlabel(), ylabel="CLIP cosine (judge)")
    return fig


@style.figure
def dimensions(embedded: Mapping[str, np.ndarray]) -> Figure:
    """Draw how many dimensions the embeddings of each method fill.

    Parameters
    ----------
    embedded : dict of float (n, d)
        "truth" first, then the methods, of the same stimuli.

    Returns
    -------
    Figure
        Share of the variance in the first so many principal components; the legend gives the
        effective dimension (participation ratio).
    """
    lines = {}
    for name, rows in embedded.items():
        spectrum = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False) ** 2
        label = f"{name}: {statistics.effective_dimension(rows).participation_ratio:.1f}"
        lines[label] = np.cumsum(spectrum) / max(spectrum.sum(), 1e-12)
    tidy = pd.DataFrame(lines).assign(components=lambda frame: frame.index + 1)
    tidy = tidy.melt("components", var_name="name", value_name="share of the variance")
    fig, axes = style.canvas(4.4)
    colours = ["#111111", *style.PALETTE][: len(lines)]
    sns.lineplot(
        tidy, x="components", y="share of the variance", hue="name", palette=colours, style="name"
    )
    axes.set(xscale="log", xlabel="principal components")
    axes.xaxis.set_major_formatter("{x:g}")
    style.legend_above(axes)
    return fig
