"""Every figure of chapters 02 to 06. Each function returns its matplotlib `Figure`.

In a notebook, a figure is shown when it is the last expression of a cell; pyplot keeps no
reference to it. Colours are Okabe and Ito's, which colour-blind readers can tell apart, and
sizes are set for a page 700 pixels wide.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from skimage.transform import resize

from minddiff_utils.evaluation.methods import METHODS, in_order
from minddiff_utils.evaluation.metrics import METRICS
from minddiff_utils.evaluation.statistics import bootstrap_interval
from minddiff_utils.evaluation.tables import PAIRS, differences, p_text, pair_name, summary
from minddiff_utils.io import InputError

WIDTH = 7.0  # inches; at 150 dpi about 1.5 pixels for each of the page's 700
DPI = 150
ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PINK, GREY = (
    "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#737373",
)  # fmt: skip
METHOD_COLOURS = {
    "no_z": ORANGE,
    "no_c": PINK,
    "stage1": SKY,
    "algorithm_1": RED,
    "stage2": BLUE,
    "ceiling": GREEN,
}
SUBJECT_COLOURS = (BLUE, RED, GREEN, PINK, ORANGE, SKY, GREY, YELLOW)
SUBJECT_MARKERS = "osD^vP*X"
FAMILIES = {
    "z": "z",
    "c": "c",
    **{f"block_{i}": f"block {i}" for i in range(1, 13)},
    "embedding": "embedding",
}
JITTER_SEED = 0  # dots are spread sideways to be seen; the same way every time


@contextmanager
def style() -> Iterator[None]:
    """Settings shared by all figures, for the time of a `with` block; nothing stays changed."""
    settings = {
        "figure.dpi": DPI,
        "figure.facecolor": "white",
        "font.size": 10,
        "axes.titlesize": 10.5,
        "axes.labelsize": 10,
        "xtick.labelsize": 9.5,
        "ytick.labelsize": 9.5,
        "legend.fontsize": 9.5,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#555555",
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#e4e4e4",
        "grid.linewidth": 0.7,
        "lines.linewidth": 1.6,
        # Captions and names of regions are text: a `$` in them is a `$`.
        "text.parse_math": False,
        "text.usetex": False,
    }
    with mpl.rc_context(settings):
        yield


def _finish(fig: Figure) -> Figure:
    """Lay the figure out in the style, and let pyplot forget it."""
    with style():
        fig.draw_without_rendering()  # ticks are made on the first draw, from the settings of then
    plt.close(fig)  # otherwise a notebook shows it twice
    return fig


def _need_columns(frame: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    missing = [column for column in columns if column not in frame]
    if missing or len(frame) == 0:
        lack = f"lacks the columns {missing}" if missing else "is empty"
        raise InputError(f"The table for {what} {lack}; it needs rows of {list(columns)}.")


# --- pictures ------------------------------------------------------------------------------


def picture_grid(
    rows: Mapping[str, np.ndarray],
    columns: int | None = None,
    captions: Sequence[str] | None = None,
) -> Figure:
    """Pictures under each other, a method a row: what was seen above what was reconstructed.

    Parameters
    ----------
    rows : dict of uint8 (n, h, w, 3)
        Label at the left -> its pictures, in the same order in every row.
    columns : int, optional
        Pictures side by side; more go into further bands below. At most 8 if not given.
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
    stack = np.stack([np.asarray(pictures) for pictures in rows.values()])
    n = stack.shape[1]
    width = min(n, columns or 8)
    starts = range(0, n, width)
    bands = [stack[:, start : start + width] for start in starts]
    names = [list(captions[s : s + width]) if captions is not None else [] for s in starts]
    return _picture_bands(bands, list(rows), names, width)


def noising_steps(pictures: np.ndarray, labels: Sequence[str]) -> Figure:
    """Stage 1 step by step: one picture a row, one step a column.

    Parameters
    ----------
    pictures : uint8 (n_pictures, n_steps, h, w, 3)
        For example the decoded `z` shown as a picture, noised, denoised, and the picture seen.
    labels : sequence of n_steps str

    Returns
    -------
    Figure
    """
    return _picture_bands([pictures], [], [list(labels)], pictures.shape[1])


def decoded_latents(
    true: np.ndarray, decoded: np.ndarray, labels: Sequence[str] | None = None
) -> Figure:
    """Latent channels as small images: the true `z` at the left, the decoded one at the right.

    Parameters
    ----------
    true, decoded : float (n_pictures, channels, h, w)
        In units of the latent's standard deviation.
    labels : sequence of n_pictures str, optional
        Written at the left of each row.

    Returns
    -------
    Figure
    """
    limit = float(np.nanpercentile(np.abs(true), 99)) or 1.0
    scale = mpl.colors.Normalize(-limit, limit)
    colours = mpl.colormaps["RdBu_r"](scale(np.concatenate([true, decoded], axis=1)))
    channels = true.shape[1]
    names = [f"{kind}\nch. {i + 1}" for kind in ("true", "decoded") for i in range(channels)]
    pictures = (colours[..., :3] * 255).astype(np.uint8)
    fig = _picture_bands([pictures], list(labels or []), [names], 2 * channels, below=0.7)
    with style():
        height = fig.get_figheight()
        bar = fig.add_axes([0.3, 0.45 / height, 0.4, 0.11 / height])
        mappable = mpl.cm.ScalarMappable(scale, "RdBu_r")
        fig.colorbar(mappable, cax=bar, orientation="horizontal", label="latent value (SD)")
        return _finish(fig)


def _picture_bands(
    bands: Sequence[np.ndarray],
    row_labels: Sequence[str],
    column_labels: Sequence[Sequence[str]],
    width: int,
    below: float = 0.0,
) -> Figure:
    """Draw bands of pictures uint8 (rows, columns, h, w, 3), one screen pixel a mosaic pixel.

    `width` pictures fill the page; `below` is free space at the foot of the figure, in inches.
    """
    longest = max((len(line) for label in row_labels for line in label.split("\n")), default=0)
    left = 0.08 + 0.085 * longest  # inches
    zoom, gap = _zoom(bands[0].shape[3], (WIDTH - left) * DPI / width)
    mosaics = [_mosaic(band, zoom, gap) for band in bands]
    mosaic_width = max(mosaic.shape[1] for mosaic in mosaics) / DPI
    # A page shrinks what is wider than itself and leaves the rest: letters come out the same size.
    letters = max((left + mosaic_width) / WIDTH, 700 / DPI / WIDTH)
    left *= letters
    figure_width = left + mosaic_width
    above = [
        letters * (0.06 + 0.17 * _most_lines(labels)) if labels else 0 for labels in column_labels
    ]
    space = 0.12  # inches between bands
    heights = [mosaic.shape[0] / DPI for mosaic in mosaics]
    figure_height = sum(heights) + sum(above) + space * (len(bands) - 1) + below
    with style():
        fig = plt.figure(figsize=(figure_width, figure_height))
        top = figure_height
        for band, mosaic, height, room, labels in zip(
            bands, mosaics, heights, above, column_labels, strict=True
        ):
            top -= room + height
            box = [left, top, mosaic.shape[1] / DPI, height]
            scale = [figure_width, figure_height] * 2
            axes = fig.add_axes([b / s for b, s in zip(box, scale, strict=True)])
            axes.imshow(mosaic, interpolation="nearest", aspect="auto")
            cells = (mosaic.shape[1] + gap) / band.shape[1], (mosaic.shape[0] + gap) / len(band)
            _name_cells(axes, cells, gap, row_labels, labels)
            axes.tick_params(labelsize=9.5 * letters)
            top -= space
        return _finish(fig)


def _name_cells(axes: Axes, cells, gap: int, row_labels, column_labels) -> None:
    """Write the labels of a mosaic's rows at the left and of its columns above."""
    (step_x, step_y), half = cells, gap / 2
    axes.set_xticks([(i + 0.5) * step_x - half for i in range(len(column_labels))], column_labels)
    axes.set_yticks([(i + 0.5) * step_y - half for i in range(len(row_labels))], row_labels)
    axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False, pad=2)
    axes.grid(False)
    axes.spines[:].set_visible(False)


def _zoom(pixels: int, room: float) -> tuple[float, int]:
    """Enlargement of a picture `pixels` wide for `room` screen pixels, and the gap beside it.

    Small pictures grow by a whole factor, so that every pixel stays a sharp square, even if the
    figure gets somewhat wider than the page; large ones shrink to the room there is.
    """
    gap = max(3, round(room * 0.05))
    room = min(room - gap, 1.6 * DPI)  # a lone picture need not fill the page
    return (max(1, int(room / pixels + 0.75)) if pixels <= 128 else min(1.0, room / pixels)), gap


def _mosaic(band: np.ndarray, zoom: float, gap: int) -> np.ndarray:
    """One white picture uint8 (H, W, 3) that holds a band's pictures with gaps between them."""
    if zoom >= 1:
        band = band.repeat(int(zoom), axis=2).repeat(int(zoom), axis=3)
    else:
        size = max(1, round(band.shape[2] * zoom)), max(1, round(band.shape[3] * zoom))
        shape = (*band.shape[:2], *size, 3)
        small = [resize(p, size, anti_aliasing=True) for p in band.reshape(-1, *band.shape[2:])]
        band = np.rint(255 * np.reshape(small, shape)).astype(np.uint8)
    rows, columns, height, width, _ = band.shape
    canvas = np.full((rows * (height + gap), columns * (width + gap), 3), 255, dtype=np.uint8)
    for row in range(rows):
        for column in range(columns):
            y, x = row * (height + gap), column * (width + gap)
            canvas[y : y + height, x : x + width] = band[row, column]
    return canvas[:-gap, :-gap]


def _most_lines(labels: Sequence[str]) -> int:
    return max((label.count("\n") + 1 for label in labels), default=0)


# --- decoding ------------------------------------------------------------------------------


def accuracy_distribution(frame: pd.DataFrame) -> Figure:
    """Test correlation of every decoded value, a violin for each family of features.

    Parameters
    ----------
    frame : DataFrame
        One row a decoded value: `family`, `correlation`, and optionally `control` (bool: decoded
        by decoders that were trained on shuffled responses). NaN correlations are left out.

    Returns
    -------
    Figure
        Thick bar: middle half of the values; dot: median.
    """
    _need_columns(frame, ["family", "correlation"], "accuracy_distribution")
    families = in_order(frame["family"], FAMILIES)
    control = frame["control"].astype(bool) if "control" in frame else pd.Series(False, frame.index)
    kinds = [(~control, BLUE, "decoded from the brain")]
    if control.any():
        kinds.append((control, GREY, "shuffled training responses"))
    with style():
        fig, axes = plt.subplots(figsize=(WIDTH, 3.4), layout="constrained")
        for i, (mask, colour, label) in enumerate(kinds):
            shift = (i - (len(kinds) - 1) / 2) * 0.4
            for place, family in enumerate(families):
                values = frame.loc[mask & (frame["family"] == family), "correlation"].dropna()
                _violin(axes, values, place + shift, 0.75 / len(kinds), colour)
            axes.plot([], [], "o", color=colour, label=label)
        axes.axhline(0, color="#555555", linewidth=0.8)
        axes.set_xticks(range(len(families)), [FAMILIES.get(f, f) for f in families])
        axes.set_xlim(-0.6, len(families) - 0.4)
        axes.grid(axis="x", visible=False)
        axes.set_ylabel("correlation on test pictures")
        if len(kinds) > 1:
            fig.legend(loc="outside upper center", ncols=2)
        return _finish(fig)


def _violin(axes: Axes, values: pd.Series, place: float, width: float, colour: str) -> None:
    if len(values) == 0:
        return
    if values.nunique() > 1:
        parts = axes.violinplot(values, [place], widths=width, showextrema=False)
        for body in parts["bodies"]:
            body.set(facecolor=colour, alpha=0.35, edgecolor="none")
    low, median, high = np.percentile(values, [25, 50, 75])
    axes.plot([place, place], [low, high], color=colour, linewidth=4, solid_capstyle="butt")
    axes.plot(place, median, "o", color="white", markeredgecolor=colour, markersize=5)


def roi_accuracy(frame: pd.DataFrame) -> Figure:
    """Mean test correlation of each family of features (row) decoded from each ROI (column).

    Parameters
    ----------
    frame : DataFrame
        `family`, `roi`, `correlation`; rows of one family and ROI are averaged, NaN left out.

    Returns
    -------
    Figure
    """
    _need_columns(frame, ["family", "roi", "correlation"], "roi_accuracy")
    families = in_order(frame["family"], FAMILIES)
    rois = list(dict.fromkeys(frame["roi"]))
    means = frame.pivot_table(index="family", columns="roi", values="correlation", aggfunc="mean")
    means = means.reindex(index=families, columns=rois).to_numpy()
    high = np.nanmax(means) if np.isfinite(means).any() else 1.0
    low = min(0.0, np.nanmin(means)) if np.isfinite(means).any() else 0.0
    with style():
        size = WIDTH, 1.1 + 0.34 * len(families)
        fig, axes = plt.subplots(figsize=size, layout="constrained")
        image = axes.imshow(means, cmap="cividis", vmin=low, vmax=max(high, 0.01), aspect="auto")
        for (row, column), value in np.ndenumerate(means):
            dark = (value - low) < 0.55 * (max(high, 0.01) - low)
            text = f"{value:.2f}".replace("0.", ".") if np.isfinite(value) else "–"
            colour = "white" if dark and np.isfinite(value) else "black"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8.5)
        axes.set_xticks(range(len(rois)), rois)
        axes.set_yticks(range(len(families)), [FAMILIES.get(f, f) for f in families])
        axes.set_xlabel("region of interest")
        axes.tick_params(length=0)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        fig.colorbar(image, label="mean correlation").outline.set_visible(False)
        return _finish(fig)


# --- stage 2 -------------------------------------------------------------------------------


def component_reliability(
    reliability: Mapping[str, np.ndarray], least: float, most: float
) -> Figure:
    """How well the components of each block can be decoded, the largest component first.

    Parameters
    ----------
    reliability : mapping of block name to float (n_components,)
        Cross-validated R²; NaN where there is no such component.
    least, most : float
        Bounds that stage 2 works with.

    Returns
    -------
    Figure
        A line a block, averaged over a third of an octave of ranks; the legend counts the
        components above `least`.
    """
    if not reliability:
        raise InputError("component_reliability needs at least one block.")
    with style():
        fig, axes = plt.subplots(figsize=(WIDTH, 3.4), layout="constrained")
        shades = plt.get_cmap("viridis")(np.linspace(0.05, 0.85, len(reliability)))
        for (name, values), colour in zip(reliability.items(), shades, strict=True):
            values = np.asarray(values, float)
            values = values[np.isfinite(values)]
            label = f"{FAMILIES.get(name, name)}: {int((values > least).sum())} of {values.size}"
            ranks, smooth = _octave_means(values)
            axes.plot(ranks, smooth, color=colour, label=label, marker="o", markersize=3)
        # Where the falling curves are not: at the left below, at the right above.
        bounds = (
            (least, "left out below", 0.01, "left"),
            (most, "lowered to this above", 0.99, "right"),
        )
        for bound, text, x, side in bounds:
            axes.axhline(bound, color="#555555", linewidth=0.8, linestyle="--")
            axes.annotate(
                text, (x, bound), xycoords=("axes fraction", "data"), ha=side, va="bottom",
                fontsize=9, color="#555555", xytext=(0, 2), textcoords="offset points",
            )  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(mpl.ticker.LogLocator(10, subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set_ylim(min(-0.1, least - 0.1), 1.02)
        axes.set_xlabel("component (1 varies most between pictures)")
        axes.set_ylabel("cross-validated R²")
        axes.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        fig.legend(title="components used", fontsize=9, loc="outside right upper")
    return _finish(fig)


def _octave_means(values: np.ndarray, per_octave: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Average a sequence over ranks, so that far ranks do not crowd a logarithmic axis."""
    edges = np.unique(np.round(2 ** (np.arange(0, 60) / per_octave)).astype(int))
    edges = np.append(edges[edges <= values.size], values.size + 1)
    spans = [span for span in zip(edges[:-1], edges[1:], strict=True) if span[0] < span[1]]
    ranks = np.array([np.sqrt(low * (high - 1)) for low, high in spans])
    return ranks, np.array([values[low - 1 : high - 1].mean() for low, high in spans])


def layer_contributions(
    before: np.ndarray, after: np.ndarray, labels: Sequence[str] | None = None
) -> Figure:
    """What each CLIP layer adds to the structure loss, before and after stage 2.

    Parameters
    ----------
    before, after : float (n_pictures, n_layers)
        Weighted loss of each layer.
    labels : sequence of n_layers str, optional
        Names of the layers; "block 1", "block 2", … if not given.

    Returns
    -------
    Figure
        Bars: mean over pictures; lines: its 95 % bootstrap interval.
    """
    before, after = np.atleast_2d(before), np.atleast_2d(after)
    if before.shape != after.shape:
        raise InputError(f"Losses before {before.shape} and after {after.shape} differ in shape.")
    layers = np.arange(before.shape[1])
    labels = list(labels or [f"block {i + 1}" for i in layers])
    with style():
        fig, axes = plt.subplots(figsize=(WIDTH, 3.2), layout="constrained")
        kinds = ((before, -0.2, SKY, "before (stage 1)"), (after, 0.2, BLUE, "after (stage 2)"))
        for values, shift, colour, label in kinds:
            means = [np.mean(v[np.isfinite(v)]) if np.isfinite(v).any() else 0 for v in values.T]
            intervals = np.array([bootstrap_interval(v, n_resamples=1999) for v in values.T])
            axes.bar(layers + shift, means, 0.38, color=colour, label=label)
            axes.vlines(layers + shift, *intervals.T, color="#333333", linewidth=1.2)
        axes.set_xticks(layers, [FAMILIES.get(label, label) for label in labels])
        axes.grid(axis="x", visible=False)
        axes.set_ylabel("weighted structure loss")
        fig.legend(loc="outside upper center", ncols=2)
        return _finish(fig)


# --- metrics -------------------------------------------------------------------------------


def metric_points(frame: pd.DataFrame) -> Figure:
    """Every picture's value of every metric, a method a row, with the mean and its interval.

    Parameters
    ----------
    frame : DataFrame
        Tidy: `method, stimulus_id, metric, value`.

    Returns
    -------
    Figure
        A panel a metric. Dots: pictures; bar: mean with its 95 % bootstrap interval.
    """
    _need_columns(frame, ["method", "metric", "value"], "metric_points")
    methods = in_order(frame["method"], METHODS)
    numbers = summary(frame.drop(columns="subject", errors="ignore"))
    rng = np.random.default_rng(JITTER_SEED)
    with style():
        fig, panels = _metric_panels(frame["metric"], len(methods), "value for each picture")
        for metric, axes in panels.items():
            for place, method in enumerate(methods):
                rows = (frame["metric"] == metric) & (frame["method"] == method)
                values = frame.loc[rows, "value"].to_numpy()
                heights = place + rng.uniform(-0.22, 0.22, len(values))
                colour = METHOD_COLOURS.get(method, GREY)
                size, alpha = (5, 0.6) if len(values) <= 20 else (3.5, 0.35)
                axes.plot(values, heights, "o", color=colour, alpha=alpha, markersize=size, mew=0)
            for row in numbers[numbers["metric"] == metric].itertuples():
                _interval(axes, row, methods.index(row.method), "#111111")
        _name_methods(panels, [METHODS.get(method, method) for method in methods])
        return _finish(fig)


def paired_differences(frame: pd.DataFrame, pairs: Sequence[tuple[str, str]] = PAIRS) -> Figure:
    """What stage 2 adds to each method, for every metric: mean paired difference and interval.

    Parameters
    ----------
    frame : DataFrame
        Tidy: `method, stimulus_id, metric, value`; with `subject`, each has its own marker.
    pairs : sequence of (method, baseline)

    Returns
    -------
    Figure
        Right of the zero line, the first method of the pair is better.
    """
    _need_columns(frame, ["method", "stimulus_id", "metric", "value"], "paired_differences")
    numbers = differences(frame, pairs)
    present = list(dict.fromkeys(zip(numbers["method"], numbers["baseline"], strict=True)))
    if not present:
        raise InputError(
            f"None of the pairs {list(pairs)} is in the table, which has the methods "
            f"{sorted(set(frame['method']))}. Run notebook 04_stage2 first."
        )
    with style():
        fig, panels = _metric_panels(frame["metric"], len(present), "difference")
        subjects = list(dict.fromkeys(numbers["subject"])) if "subject" in numbers else [None]
        for metric, axes in panels.items():
            axes.axvline(0, color="#333333", linewidth=1)
            for row in numbers[numbers["metric"] == metric].itertuples():
                which = subjects.index(getattr(row, "subject", None))
                place = present.index((row.method, row.baseline)) + _offset(which, len(subjects))
                _interval(axes, row, place, SUBJECT_COLOURS[which % 8], SUBJECT_MARKERS[which % 8])
        _name_methods(panels, [pair_name(method, baseline) for method, baseline in present])
        _name_subjects(fig, subjects)
        return _finish(fig)


def subject_comparison(frame: pd.DataFrame) -> Figure:
    """Mean and interval of every method and metric, a marker for each subject.

    Parameters
    ----------
    frame : DataFrame
        Tidy: `subject, method, stimulus_id, metric, value`; one subject is enough.

    Returns
    -------
    Figure
    """
    _need_columns(frame, ["subject", "method", "metric", "value"], "subject_comparison")
    subjects = list(dict.fromkeys(frame["subject"]))
    methods = in_order(frame["method"], METHODS)
    with style():
        fig, panels = _metric_panels(frame["metric"], len(methods), "mean over pictures")
        for which, subject in enumerate(subjects):
            for row in summary(frame[frame["subject"] == subject]).itertuples():
                place = methods.index(row.method) + _offset(which, len(subjects))
                colour, marker = SUBJECT_COLOURS[which % 8], SUBJECT_MARKERS[which % 8]
                _interval(panels[row.metric], row, place, colour, marker)
        _name_methods(panels, [METHODS.get(method, method) for method in methods])
        _name_subjects(fig, subjects)
        return _finish(fig)


def permutation_null(null: np.ndarray, observed: float, label: str) -> Figure:
    """Histogram of a statistic under permutation of the pictures, and the observed value.

    Parameters
    ----------
    null : float (n_permutations,)
        `controls.permutation_test(…).null`.
    observed : float
    label : str
        What the statistic is, written below the axis.

    Returns
    -------
    Figure
        The title gives the one-sided p-value.
    """
    null = np.asarray(null, dtype=float)
    p = (1 + np.sum(null >= observed)) / (1 + len(null))
    with style():
        fig, axes = plt.subplots(figsize=(WIDTH, 2.8), layout="constrained")
        axes.hist(null, bins=40, color=GREY, alpha=0.6, label=f"{len(null):,} permutations")
        axes.axvline(observed, color=RED, linewidth=2.2, label="matched pictures")
        axes.set_title(p_text(p), loc="left")
        axes.set_xlabel(label)
        axes.set_ylabel("permutations")
        axes.margins(x=0.05)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 0.97), ncols=2)
        return _finish(fig)


def _metric_panels(metrics, n_rows: int, what: str) -> tuple[Figure, dict[str, Axes]]:
    """One panel a metric, two side by side, the rows named at the left."""
    metrics = in_order(metrics, METRICS)
    columns = min(2, len(metrics))
    lines = -(-len(metrics) // columns)
    size = WIDTH, lines * (0.95 + 0.3 * max(n_rows, 2)) + 0.1
    fig, grid = plt.subplots(
        lines, columns, figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    fig.get_layout_engine().set(h_pad=0.08)  # inches: a title is nearer to its own panel
    panels = dict(zip(metrics, grid.flat, strict=False))
    for unused in grid.flat[len(metrics) :]:
        unused.set_visible(False)
    for metric, axes in panels.items():
        axes.set_title(METRICS.get(metric, metric), loc="left", fontweight="bold")
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    for axes in list(panels.values())[-columns:]:
        axes.set_xlabel(what)
    return fig, panels


def _name_methods(panels: Mapping[str, Axes], names: Sequence[str]) -> None:
    axes = next(iter(panels.values()))  # the panels share their y axis
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)


def _name_subjects(fig: Figure, subjects: Sequence[str | None]) -> None:
    if len(subjects) < 2:
        return
    handles = [
        mpl.lines.Line2D(
            [], [], color=SUBJECT_COLOURS[i % 8], marker=SUBJECT_MARKERS[i % 8], label=subject
        )
        for i, subject in enumerate(subjects)
    ]
    fig.legend(handles=handles, loc="outside upper center", ncols=min(len(subjects), 6))


def _interval(axes: Axes, row, place: float, colour: str, marker: str = "o") -> None:
    """Mean and interval of one row of `summary` or `differences`, at height `place`."""
    if np.isfinite(row.low):
        axes.plot([row.low, row.high], [place, place], color=colour, linewidth=2)
    axes.plot(row.mean, place, marker, color=colour, markersize=5)


def _offset(which: int, n: int) -> float:
    return (which - (n - 1) / 2) * min(0.22, 0.7 / n)
