"""What came out, in sentences that follow from the numbers alone, whatever these are."""

import numpy as np
import pandas as pd

from minddiff_utils.evaluation import tables
from minddiff_utils.evaluation.metrics import METRICS

ALPHA = 0.05  # of a p-value after Holm's correction
SAID = {"above": "above", "below": "below", "open": "not shown to differ from"}
STAGE_2 = {"above": "raises", "below": "lowers", "open": "is not shown to change"}
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
    """Write differences between methods as a list of markdown, a line a subject and pair.

    Parameters
    ----------
    found : DataFrame
        From `tables.differences`.

    Returns
    -------
    str
        Empty where there is nothing to compare.
    """
    found = found.assign(outcome=outcomes(found))
    keys = [name for name in ("subject", "method", "baseline") if name in found]
    lines = []
    for names, rows in found.groupby(keys, sort=False):
        *subject, method, baseline = names
        parts = []
        for outcome, same in rows.groupby("outcome", sort=False):
            numbers = "; ".join(_numbers(row) for row in same.itertuples())
            parts.append(f"{SAID[str(outcome)]} {tables.short_name(baseline)} in {numbers}")
        begin = f"{tables.as_markdown(str(subject[0]))}, " if subject else ""
        lines.append(f"- {begin}**{tables.short_name(method)}**: {'. It is '.join(parts)}.")
    return "\n".join(lines)


def _numbers(row) -> str:
    change = tables.interval_text(row.mean, row.low, row.high, "+")
    means = tables.leading(f"{row.before:.3f} → {row.after:.3f}")
    return f"{METRICS.get(row.metric, row.metric)}, {means} ({change})"


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
        text = f"Stage 2 {STAGE_2[row.outcome]} {METRICS[metric]} from {means}"
        text += f" (difference {change})"
        if "retrieval" in rows:
            text += f" and {RIVAL[rows['retrieval'].outcome]} the nearest training image"
        lines.append(f"{text}{f' in {subject}' if subject else ''}.")
    return " ".join(lines)
