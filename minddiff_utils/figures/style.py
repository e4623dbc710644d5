"""The style that all figures share: sizes for a phone and a desk, colours, names in words.

Colours are Okabe and Ito's, which colour-blind readers can tell apart. Lines and points are shown
as SVG, which a dark page inverts; what holds pictures is PNG on white, two pixels for each of the
page's.
"""

import os
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minddiff_utils.evaluation.metrics import in_order

WIDTH = 6.3  # inches; a phone shrinks them to 3.7, and 12 points to 7
DPI = 192  # two pixels for each of the page's, 96 to the inch
BLUE, RED, GREEN, PINK, ORANGE, SKY = "#0072B2 #D55E00 #009E73 #CC79A7 #E69F00 #56B4E9".split()
GREY = "#737373"
PALETTE = (BLUE, ORANGE, SKY, "#882255", GREEN, RED, "#F0E442", "#332288", GREY, PINK, "#1b5e20")
DARK = "#555555"  # lines of reference, and what is written beside them
STYLE: dict[Any, Any] = {
    "figure.dpi": DPI,
    "figure.facecolor": "white",
    "font.size": 12,
    "axes.titlesize": 12,
    "xtick.labelsize": 11.5,
    "ytick.labelsize": 11.5,
    "legend.fontsize": 11.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": DARK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.6,
    # Captions and names of regions are text: a `$` in them is a `$`.
    "text.parse_math": False,
    "svg.hashsalt": "a figure drawn again is the same file",
}
SPACES = ("z", "c", *(f"block_{number}" for number in range(1, 13)), "embedding")
FEATURE_SPACES = {name: name.replace("_", " ") for name in SPACES}
INLINE = "module://matplotlib_inline.backend_inline"


def _shown(fig: Figure, kind: str) -> Any:
    """Return what a notebook holds of a figure: PNG if there are pictures in it, else SVG."""
    from IPython.core.pylabtools import print_figure, retina_figure

    if kind != ("png" if any(axes.images for axes in fig.axes) else "svg"):
        return None
    if kind == "png":
        return retina_figure(fig, base64=True, dpi=DPI)  # and says that it is half as wide
    with mpl.rc_context(STYLE):
        return print_figure(fig, kind, metadata={"Date": None})


# A notebook holds its figures, whatever MPLBACKEND the shell has set for other programs.
SHELL: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
BACKEND = os.environ.get("MPLBACKEND", INLINE)
if hasattr(SHELL, "kernel") and (BACKEND == INLINE or not BACKEND.startswith("module:")):
    SHELL.enable_matplotlib("inline")
    for kind, mime in {"svg": "image/svg+xml", "png": "image/png"}.items():
        SHELL.display_formatter.formatters[mime].for_type(Figure, partial(_shown, kind=kind))


def figure(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Let a function draw in the style; afterwards no setting stays changed.

    A notebook shows the returned `Figure` as the last expression of a cell; pyplot forgets it, or
    it would be shown twice.
    """

    @wraps(draw)
    def styled(*args, **kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            fig = draw(*args, **kwargs)
            fig.draw_without_rendering()  # ticks are made at the first draw, in the style of then
        plt.close(fig)
        return fig

    return styled


@figure
def sentence(text: str) -> Figure:
    """Stand where a figure would, and say why there is none."""
    fig, axes = plt.subplots(figsize=(WIDTH, 0.6))  # IPython shows no figure without axes
    axes.set_axis_off()
    axes.text(0.5, 0.5, textwrap.fill(text, 60), ha="center", va="center")
    return fig


def in_words(values: pd.Series, names: Mapping[str, str]) -> pd.Series:
    """Return what people read, as categories in the order of `names`; unknown names stay."""
    words = {name: names.get(name, name) for name in in_order(values, names)}
    return values.map(words).astype(pd.CategoricalDtype(list(words.values())))


def canvas(height: float) -> tuple[Figure, Axes]:
    """Return a figure as wide as the page, with one pair of axes in it."""
    return plt.subplots(figsize=(WIDTH, height), layout="constrained")


def canvases(
    height: float, rows: int, columns: int, ratios: Sequence[float] | None = None
) -> tuple[Figure, np.ndarray]:
    """Return a figure as wide as the page, and its axes, (rows, columns)."""
    size, how = (WIDTH, height), "constrained"
    return plt.subplots(rows, columns, figsize=size, layout=how, squeeze=False, width_ratios=ratios)


def fit(grid: sns.FacetGrid, height: float, what: str, n_columns: int = 1) -> Figure:
    """Give seaborn's panels the width of the page, their names, and their legend a place above.

    Parameters
    ----------
    grid : FacetGrid
    height : float
        Of the figure, in inches.
    what : str
        What the x axes are.
    n_columns : int
        Of the legend.

    Returns
    -------
    Figure
    """
    grid.set_axis_labels(textwrap.fill(what, 22), "")
    for name, axes in grid.axes_dict.items():
        axes.set_title("")
        axes.set_title(name, loc="left", fontweight="bold")
    grid.figure.set(layout_engine="constrained", size_inches=(WIDTH, height))
    if grid.legend:
        sns.move_legend(grid, "outside upper center", ncols=n_columns, title=None)
    return grid.figure


def legend_above(*axes: Axes) -> None:
    """Put one legend above the figure for what is drawn in `axes`, as wide as fits."""
    entries: dict[Any, Any] = {}
    for each in axes:
        legend = each.get_legend()
        if legend:
            texts = [text.get_text() for text in legend.get_texts()]
            entries |= dict(zip(texts, legend.legend_handles, strict=True))
            legend.remove()
        entries |= {h.get_label(): h for h in each.get_legend_handles_labels()[0]}
    longest = max(map(len, entries), default=0)
    columns = max(1, int(WIDTH / (0.6 + 0.085 * longest)))  # inches of a key and of a letter
    each.figure.legend(entries.values(), entries, loc="outside upper center", ncols=columns)
