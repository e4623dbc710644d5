"""What came out, in sentences that follow from the numbers alone, whatever these are."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats

from minddiff_utils.evaluation import tables
from minddiff_utils.evaluation.metrics import METRICS
from minddiff_utils.evaluation.statistics import PermutationTest, paired_difference

if TYPE_CHECKING:
    from minddiff_utils.evaluation.leakage import Overlap

ALPHA = 0.05  # of a p-value after Holm's correction
SAID = {"above": "above", "below": "below", "open": "not shown to differ from"}
CHANGES = {"above": "raises", "below": "lowers", "open": "is not shown to change"}
RIVAL = {"above": "beats", "below": "falls short of", "open": "is not shown to beat"}


def outcomes(found: pd.DataFrame) -> np.ndarray:
    """Tell of each difference between methods what it shows.

    Parameters
    ----------
    found : DataFrame
        From `tables.differences`.

    Returns
    -------
    str array of shape (n_rows,)
        "above" or "below" where the interval leaves out zero and the p-value, corrected by Holm for
        all rows of a subject, is below .05; else "open".
    """
    sure = found["p_holm"] < ALPHA
    above, below = sure & (found["low"] > 0), sure & (found["high"] < 0)
    return np.select([above, below], ["above", "below"], "open")


def sentences(found: pd.DataFrame) -> str:
    """Write differences between methods as a list of markdown, a line a subject and method.

    Parameters
    ----------
    found : DataFrame
        From `tables.differences`.

    Returns
    -------
    str
        Baselines and metrics of the same outcome are told together. Empty where there is nothing
        to compare.
    """
    found = found.assign(outcome=outcomes(found)).replace({"metric": METRICS})
    found["baseline"] = found["baseline"].map(tables.short_name)
    keys = [name for name in ("subject", "method", "outcome") if name in found]
    for one, other in (("baseline", "metric"), ("metric", "baseline")):
        found = found.groupby([*keys, one], sort=False)[other].agg(", ".join).reset_index()
    lines = []
    for who, rows in found.groupby(keys[:-1], sort=False):
        *subject, method = who
        begin = f"{tables.as_markdown(str(subject[0]))}, " if subject else ""
        parts = [f"{SAID[row.outcome]} {row.baseline} in {row.metric}" for row in rows.itertuples()]
        lines.append(f"- {begin}**{tables.short_name(method)}**: {'. It is '.join(parts)}.")
    return "\n".join(lines)


def headline(found: pd.DataFrame, metric: str = "clip_judge") -> str:
    """Say in one sentence a subject what stage 2 adds, and whether it beats a training image.

    Parameters
    ----------
    found : DataFrame
        From `tables.differences`, of both stages with "stage1" and "retrieval".
    metric : str
        Which one is told.

    Returns
    -------
    str
        Markdown; empty where stage 1 or the metric is missing.
    """
    found = found.assign(outcome=outcomes(found))
    told = found[found["metric"] == metric]
    if "subject" not in told:
        told = told.assign(subject="")
    lines = []
    for subject, part in told.groupby("subject", sort=False):
        # Where both solvers ran, the first pair is that of the one that stands for both stages.
        rows = {row.baseline: row for row in reversed(list(part.itertuples()))}
        if "stage1" not in rows:
            continue
        row = rows["stage1"]
        change = tables.interval_text(row.mean, row.low, row.high, "+")
        means = tables.leading(f"{row.before:.3f} to {row.after:.3f}")
        colon = ":" * (row.outcome == "open")
        text = f"Stage 2 {CHANGES[row.outcome]} {METRICS[metric]}{colon} from {means}"
        text += f" (difference {change})"
        if "retrieval" in rows:
            text += f" and {RIVAL[rows['retrieval'].outcome]} the nearest training image"
        lines.append(f"{text}{f' in {subject}' if subject else ''}.")
    return " ".join(lines)


def take_away(*texts: str) -> str:
    """Put sentences, or lists of them, into the box that ends a chapter; empty ones are left out.

    Returns
    -------
    str
        Markdown that JupyterLab and the book show alike.
    """
    lines = [line.removeprefix("- ") for text in texts for line in text.splitlines() if line]
    return "\n".join(["> **In short**", ">", *(f"> - {line}" for line in lines)])


def change(what: str, measure: str, before: np.ndarray, after: np.ndarray, seed: int = 0) -> str:
    """Say what something does to a measure.

    Parameters
    ----------
    what, measure : str
        "Stage 2" and "the loss".
    before, after : float (n,)
        One value an image.
    seed : int
        Of the bootstrap.

    Returns
    -------
    str
        A sentence with both means and the mean difference; its verb follows from the interval.
    """
    known = np.isfinite(before) & np.isfinite(after)
    before, after = before[known], after[known]
    found = paired_difference(after, before, seed)
    outcome = "above" if found["low"] > 0 else "below" if found["high"] < 0 else "open"
    text = tables.interval_text(found["mean"], found["low"], found["high"], "+")
    means = tables.leading(f"from {np.mean(before):.3f} to {np.mean(after):.3f}")
    return f"{what} {CHANGES[outcome]} {measure}: {means} (difference {text})."


def noise_ceilings(ceiling: np.ndarray, roi: Mapping[str, np.ndarray]) -> str:
    """Say how reliable the voxels are, and in which regions most and least.

    Parameters
    ----------
    ceiling : float (n_voxels,)
        Noise ceiling in per cent; NaN where it is unknown.
    roi : mapping of region to bool (n_voxels,)
    """
    found = pd.Series({name: pd.Series(ceiling[mask]).median() for name, mask in roi.items()})
    if found.isna().all():
        return "The noise ceiling is unknown: no stimulus was shown twice."
    ends = [f"{name} ({found[name]:.0f} %)" for name in (found.idxmax(), found.idxmin())]
    text = f"The median voxel has a noise ceiling of {np.nanmedian(ceiling):.0f} %; of the regions"
    return text + ", {} has the highest and {} the lowest.".format(*map(tables.as_markdown, ends))


def decoded_spaces(chance: pd.DataFrame) -> str:
    """Say which feature spaces are decoded best and worst, and which not better than by chance.

    Parameters
    ----------
    chance : DataFrame
        From `decoding.chance_interval`.
    """
    best, worst = chance["decoded"].idxmax(), chance["decoded"].idxmin()
    means = [f"`{name}` ({chance['decoded'][name]:.2f})" for name in (best, worst)]
    text = "Mean test correlation: highest for {}, lowest for {}. ".format(*means)
    within = chance.index[~(chance["decoded"] > chance["highest"])]
    return f"{text}Not above all permutations of the responses: {_names(within)}."


def enough(frame: pd.DataFrame, unit: str, metric: str = "clip_judge", seed: int = 0) -> str:
    """Say how few of something do as well as all, as far as can be shown.

    Parameters
    ----------
    frame : DataFrame
        Tidy scores; `method` is the number of components or sessions.
    unit : str
        What is counted.
    metric : str
    seed : int
        Of the bootstrap.
    """
    scores = frame[frame["metric"] == metric]
    wide = scores.pivot(index="stimulus_id", columns="method", values="value")
    *fewer, every = sorted(wide)
    for number in fewer:
        less = paired_difference(wide[number], wide[every], seed)
        if not less["high"] < 0:
            text = tables.interval_text(less["mean"], less["low"], less["high"], "+")
            said = f"With {number} of {every} {unit}, {METRICS[metric]} is not shown to be lower"
            return f"{said} than with all (difference {text})."
    return f"No smaller number tried scores as high as all {every} {unit} by {METRICS[metric]}."


def matched(tests: Mapping[str, PermutationTest]) -> str:
    """Say which methods' reconstructions are nearer to their own stimuli than to permuted ones."""
    sure = [name for name, test in tests.items() if test.p < ALPHA]
    rest = [name for name in tests if name not in sure]
    text = f"More similar to their own stimuli than to permuted ones (p < .05): {_names(sure)}. "
    return text + f"Not shown for: {_names(rest)}."


def nearness(near: "Overlap", values: pd.DataFrame) -> str:
    """Say whether images with a training image near them score higher.

    Parameters
    ----------
    near : Overlap
    values : DataFrame
        `stimulus_id, value` of one method and metric.
    """
    scores = values.set_index("stimulus_id")["value"].reindex(near.stimulus_id)
    found = stats.spearmanr(near.distance, scores, nan_policy="omit")
    said = "is not shown to depend on how near a training image is"
    if found.pvalue < ALPHA:
        said = f"is {'higher' if found.statistic < 0 else 'lower'} where a training image is near"
    text = tables.leading(f"{found.statistic:+.2f}") + f", {tables.p_text(found.pvalue)}"
    return f"The score {said} (rank correlation with the distance {text})."


def _names(names: Sequence[str]) -> str:
    return "; ".join(names) or "none"
