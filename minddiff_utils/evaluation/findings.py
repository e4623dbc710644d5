"""What came out, in sentences that follow from the numbers alone, whatever these are."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from minddiff_utils.evaluation import tables
from minddiff_utils.evaluation.metrics import METRICS

ALPHA = 0.05  # of a p-value after Holm's correction
SAID = {"above": "above", "below": "below", "open": "not shown to differ from"}


def compare(frame: pd.DataFrame, pairs: Sequence[tuple[str, str]], seed: int = 0) -> pd.DataFrame:
    """Tell of each pair of methods by which metrics one is above the other.

    Parameters
    ----------
    frame : DataFrame
        Tidy values as for `tables.summary`.
    pairs : sequence of (method, baseline)
        Those that the frame lacks are left out.
    seed : int
        Of bootstrap and permutations, as for the tables.

    Returns
    -------
    DataFrame
        The rows of `tables.differences` with `after` and `before`, the means of the method and of
        the baseline, and the `outcome`: "above" or "below" where the interval leaves out zero and
        the corrected p is below .05, else "open".
    """
    found = tables.differences(frame, pairs, seed)
    several = [name for name in ("subject",) if name in found]
    wide = []
    for names, group in tables.by_metric(frame):
        means = group.mean().rename_axis("method").rename("mean").reset_index()
        wide.append(means.assign(**names))
    means = pd.concat(wide)
    for role, name in {"after": "method", "before": "baseline"}.items():
        side = means.rename(columns={"method": name, "mean": role})
        found = found.merge(side, "left", [*several, name, "metric"])
    sure = found["p_holm"] < ALPHA
    above, below = sure & (found["low"] > 0), sure & (found["high"] < 0)
    return found.assign(outcome=np.select([above, below], ["above", "below"], "open"))


def sentences(found: pd.DataFrame) -> str:
    """Write `compare` for people: a line of markdown for each subject and pair.

    Returns
    -------
    str
        A list; "" where there is nothing to compare.
    """
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
    metric = METRICS.get(row.metric, row.metric)
    return f"{metric}, {tables.leading(f'{row.before:.3f} → {row.after:.3f}')} ({change})"


def headline(frame: pd.DataFrame, method: str, seed: int = 0, metric: str = "clip_judge") -> str:
    """Say in one sentence a subject what stage 2 adds, and whether it beats a training picture.

    Parameters
    ----------
    frame : DataFrame
        Tidy values.
    method : str
        Both stages.
    seed, metric
        As for `compare`; by one metric.

    Returns
    -------
    str
        Markdown; "" where stage 1 or the metric is missing.
    """
    rows = frame[frame["metric"] == metric]
    if rows.empty:
        return ""
    found = compare(rows, [(method, "stage1"), (method, "retrieval")], seed)
    lines = []
    for subject, part in found.groupby(
        found.get("subject", pd.Series("", found.index)), sort=False
    ):
        told = part.set_index("baseline")
        if "stage1" not in told.index:
            continue
        row = told.loc["stage1"]
        verb = {"above": "raises", "below": "lowers", "open": "is not shown to change"}[row.outcome]
        change = tables.interval_text(row["mean"], row.low, row.high, "+")
        means = tables.leading(f"{row.before:.3f} to {row.after:.3f}")
        text = f"Stage 2 {verb} {METRICS[metric]} from {means} (difference {change})"
        if "retrieval" in told.index:
            rival = {"above": "beats", "below": "falls short of", "open": "is not shown to beat"}
            text += f" and {rival[told.loc['retrieval'].outcome]} the nearest training image"
        lines.append(f"{text}{f' in {subject}' if subject else ''}.")
    return " ".join(lines)
