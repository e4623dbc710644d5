"""Tables of results: means with intervals, differences, and the way from floor to ceiling.

Everything starts from the tidy table of `metrics.evaluate`, one row a picture, method and metric.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from minddiff_utils.evaluation.metrics import (
    BLIND,
    METHODS,
    METRICS,
    full_method,
    in_order,
    main_metrics,
)
from minddiff_utils.evaluation.statistics import bootstrap_interval, finite, holm, paired_difference
from minddiff_utils.evaluation.strays import stray_note
from minddiff_utils.io import InputError, atomic_path

# (method, baseline): what stage 2 adds, by either solver, and what each decoded input contributes.
STAGE_2_PAIRS = (("stage2", "stage1"), ("algorithm_1", "stage1"), ("stage2", "algorithm_1"))
PAIRS = (*STAGE_2_PAIRS, ("stage2", "no_z"), ("stage2", "no_c"))
# What the full method has over what knows less of the brain, or uses the same brain otherwise.
CONTROL_PAIRS = tuple(
    ("stage2", name)
    for name in (
        "takagi", "neuraldiffuser", "retrieval", "mean", "mean_features", "shuffled", "prior"
    )
)  # fmt: skip
# The order that a method which reads the brain should show, from the floor to the ceiling.
FLOOR = "floor"  # the best control of `metrics.BLIND`, whichever it is for a subject and metric
LADDER = (("stage1", FLOOR), ("stage2", "stage1"), ("ceiling", "stage2"))
# What the first page shows: the paper's rows, and what their numbers are to be read against.
FRONT = {
    **{name: METHODS[name] for name in ("no_z", "no_c", "stage1", "algorithm_1")},
    "stage2": f"**{METHODS['stage2']}**",
    "ceiling": "true features (ceiling)",
    "retrieval": METHODS["retrieval"],
    FLOOR: "best blind control (floor)",
}
# What people read where two methods are compared.
SHORT = {
    "stage1": "stage 1",
    "stage2": "both stages",
    "algorithm_1": "Algorithm 1",
    "ceiling": "ceiling",
}
NBSP = "\u00a0"  # a narrow table breaks a line before an interval, not inside it


def summary(
    frame: pd.DataFrame,
    seed: int = 0,
    interval: Callable[..., tuple[float, float]] = bootstrap_interval,
) -> pd.DataFrame:
    """Mean over pictures with its 95 % BCa interval for each (subject,) method and metric.

    Parameters
    ----------
    frame : DataFrame
        Tidy values: `method, stimulus_id, metric, value`, and `subject` if there are several.
    seed : int
        Seed of the bootstrap.
    interval : function of values and `seed`
        Returns low and high.

    Returns
    -------
    DataFrame
        Tidy, with the columns (`subject`,) `method, metric, n, mean, low, high`.
    """
    keys = _keys(frame)
    rows = []
    for names, values in _groups(frame, keys):
        values = finite(values["value"])
        low, high = interval(values, seed=seed)
        mean = values.mean() if len(values) else np.nan
        rows.append((*names, len(values), mean, low, high))
    return pd.DataFrame(rows, columns=[*keys, "n", "mean", "low", "high"])


def differences(
    frame: pd.DataFrame, pairs: Sequence[tuple[str, str]] = PAIRS, seed: int = 0
) -> pd.DataFrame:
    """Paired differences between methods on the same pictures, for each (subject and) metric.

    Parameters
    ----------
    frame : DataFrame
        Tidy values as for `summary`.
    pairs : sequence of (method, baseline)
        Pairs with a method that the frame lacks are left out.
    seed : int
        Seed of bootstrap and permutations.

    Returns
    -------
    DataFrame
        Tidy, with (`subject`,) `method, baseline, metric, n, mean, low, high, p, p_holm`: `p` of
        one test alone, and corrected by Holm for all tests of the same subject.
    """
    keys = [key for key in _keys(frame) if key != "method"]
    rows = []
    for names, group in _groups(frame, keys):
        wide = with_floor(group.pivot(index="stimulus_id", columns="method", values="value"))
        for method, baseline in _pairs(pairs, wide):
            if {method, baseline} <= set(wide.columns):
                found = paired_difference(wide[method], wide[baseline], seed=seed)
                rows.append(
                    dict(zip(keys, names, strict=True), method=method, baseline=baseline) | found
                )
    columns = [*keys[:-1], "method", "baseline", "metric", "n", "mean", "low", "high", "p"]
    found = pd.DataFrame(rows, columns=columns)
    if len(keys) == 1:
        return found.assign(p_holm=holm(found["p"]))
    return found.assign(p_holm=found.groupby(keys[:-1])["p"].transform(holm))


def with_floor(wide: pd.DataFrame) -> pd.DataFrame:
    """Add the column `FLOOR`: a copy of that control of `metrics.BLIND` with the highest mean.

    Parameters
    ----------
    wide : DataFrame
        One metric of one subject: a row a picture, a column a method.

    Returns
    -------
    DataFrame
        `attrs["floor"]` names the control; without any of them, the table as it was.
    """
    wide = wide.set_axis(wide.columns.astype(str), axis=1)
    blind = wide[[name for name in BLIND if name in wide]].mean().dropna()
    if blind.empty:
        return wide
    wide = wide.assign(**{FLOOR: wide[blind.idxmax()]})
    wide.attrs["floor"] = blind.idxmax()
    return wide


def _pairs(pairs: Sequence[tuple[str, str]], wide: pd.DataFrame) -> list[tuple[str, str]]:
    """Let the solver that ran stand for both stages where this book's did not."""
    if "stage2" in wide:
        return list(pairs)
    full = full_method(wide) or "stage2"
    swapped = (tuple(full if n == "stage2" else n for n in pair) for pair in pairs)
    return [pair for pair in dict.fromkeys(swapped) if pair[0] != pair[1]]


def summary_table(
    frame: pd.DataFrame,
    seed: int = 0,
    interval: Callable[..., tuple[float, float]] = bootstrap_interval,
) -> pd.DataFrame:
    """Write the paper's table: a method a row, a metric a column, `mean [low, high]` in each cell.

    Parameters
    ----------
    frame : DataFrame
        Tidy values as for `summary`.
    seed : int
        Seed of the bootstrap.
    interval : function
        As for `summary`.

    Returns
    -------
    DataFrame of str
        Rows in the order of `METHODS`, the judge's CLIP first, `n` pictures last. With several
        subjects the rows are (subject, method), then the mean over subjects, without an interval:
        two or four people are no sample. `attrs["note"]` says what the intervals are over.
    """
    numbers = summary(frame, seed, interval)
    numbers["text"] = [_text(row) for row in numbers.itertuples()]
    if "subject" in numbers:
        mean = across_subjects(numbers)
        mean["text"] = [_leading(f"{value:.3f}") for value in mean["mean"]]
        numbers = pd.concat([numbers.astype({"subject": str}), mean], ignore_index=True)
    table = _wide(numbers, _keys(frame)[:-1])
    table.attrs["note"] = (
        f"Mean over the test pictures, with its 95{NBSP}% bootstrap interval (BCa) over pictures "
        "in brackets; n is the number of pictures."
    )
    return table


def difference_table(
    frame: pd.DataFrame, pairs: Sequence[tuple[str, str]] = PAIRS, seed: int = 0
) -> pd.DataFrame:
    """Paired differences, `mean [low, high]` and p-value, one pair of methods a row.

    Parameters and order of the columns as in `differences` and `summary_table`.
    """
    numbers = differences(frame, pairs, seed)
    numbers["text"] = [f"{_text(row, '+')}, {p_text(row.p_holm)}" for row in numbers.itertuples()]
    numbers["method"] = [
        pair_name(m, b) for m, b in zip(numbers["method"], numbers["baseline"], strict=True)
    ]
    table = _wide(numbers, _keys(frame)[:-1])
    table.attrs["note"] = (
        f"Mean paired difference over the test pictures, with its 95{NBSP}% bootstrap interval "
        "(BCa) over pictures in brackets and the two-sided p of a sign-flip permutation test, "
        "corrected by Holm for all comparisons of the table within a subject; n is the number of "
        "pictures."
    )
    return table


def pair_name(method: str, baseline: str) -> str:
    """Return "both stages − no z" for the pair ("stage2", "no_z")."""
    return f"{_short(method)} − {_short(baseline)}"


def _short(method: str) -> str:
    return SHORT.get(method) or METHODS.get(method, method)


def as_markdown(text: str) -> str:
    """Escape a text so that Markdown shows it as it is, within a line or a cell of a table."""
    return re.sub(r"([\\`*_\[\]{}<>()#&~^$|])", r"\\\1", " ".join(text.split()))


def markdown_table(table: pd.DataFrame) -> str:
    """Return a table of text as Markdown, its note below; of an empty one the note alone."""
    if table.empty:
        return f"{table.attrs.get('note', '')}\n"
    cells = table.reset_index()
    lines = [list(cells.columns), ["---"] * len(cells.columns), *cells.astype(str).to_numpy()]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{text}\n\n{table.attrs.get('note', '')}\n"


# --- from floor to ceiling -----------------------------------------------------------------


def ladder(
    frame: pd.DataFrame, rungs: Sequence[tuple[str, str]] = LADDER, seed: int = 0
) -> pd.DataFrame:
    """Say for each rung from floor to ceiling whether the intervals show it.

    Parameters
    ----------
    frame : DataFrame
        Tidy values as for `summary`.
    rungs : sequence of (upper, lower) method
    seed : int

    Returns
    -------
    DataFrame
        As `differences`, with `verdict`: "yes" where the interval of the difference lies above
        zero, "reversed" where it lies below, "not shown" where it covers zero.
    """
    found = differences(frame, rungs, seed)
    verdict = np.select([found["low"] > 0, found["high"] < 0], ["yes", "reversed"], "not shown")
    return found.assign(verdict=verdict)


def ladder_table(frame: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Write `ladder` for people: a rung a row, a metric a column, verdict and difference in each.

    Returns
    -------
    DataFrame of str
    """
    numbers = ladder(frame, seed=seed)
    numbers["text"] = [f"{row.verdict}: {_text(row, '+')}" for row in numbers.itertuples()]
    numbers["method"] = [
        f"{_short(lower)} < {_short(upper)}"
        for upper, lower in zip(numbers["method"], numbers["baseline"], strict=True)
    ]
    table = _wide(numbers, _keys(frame)[:-1])
    table.attrs["note"] = (
        f"{floor_note(frame)} Ceiling: true features. "
        f"Mean paired difference, upper minus lower, with its 95{NBSP}% interval over pictures. "
        '"yes": the interval lies above zero; "not shown": it covers zero; "reversed": it lies '
        "below. These intervals are not corrected for their number; p-values of differences are."
    )
    return table


def floor_note(frame: pd.DataFrame) -> str:
    """Say which control is the floor of each metric, and of which subject where they differ."""
    keys = [key for key in _keys(frame) if key != "method"]
    found = []
    for names, group in _groups(frame, keys):
        wide = with_floor(group.pivot(index="stimulus_id", columns="method", values="value"))
        found.append((names[-1], names[0], wide.attrs.get("floor", "")))
    return _floor_text(pd.DataFrame(found, columns=["metric", "subject", "method"]))


def _floor_text(floor: pd.DataFrame) -> str:
    """The same from a table `metric, subject, method`."""
    measures: dict[str, list[str]] = {}
    for metric, part in floor.groupby("metric", sort=False):
        alike = part["method"].nunique() == 1
        for row in part[: 1 if alike else None].itertuples():
            measure = METRICS.get(metric, metric) + ("" if alike else f" of {row.subject}")
            measures.setdefault(METHODS.get(row.method, "none was made"), []).append(measure)
    parts = (f"{name} ({', '.join(of)})" for name, of in measures.items())
    return f"Floor: the best control that knows nothing of what was seen, {'; '.join(parts)}."


def shares(
    frame: pd.DataFrame, floor: str = FLOOR, ceiling: str = "ceiling", seed: int = 0
) -> pd.DataFrame:
    r"""How far each method has come on the way from the floor to the ceiling.

    .. math:: \mathrm{share} = \frac{\bar m - \bar f}{\bar c - \bar f}

    with the means over pictures of the method, of the floor (the best control that knows nothing
    of what was seen, `with_floor`) and of the ceiling (the same chain from the true features).
    Pictures are resampled whole for the interval, method, floor and ceiling together.

    Parameters
    ----------
    frame : DataFrame
        Tidy values as for `summary`.
    floor, ceiling : str
        Methods of the frame.
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    DataFrame
        (`subject`,) `method, metric, n, mean, low, high`: the share, 0 at the floor and 1 at the
        ceiling, with its 95 % interval (BCa). NaN where the ceiling is not above the floor, and
        interval NaN where it is not clearly so. Empty without floor and ceiling.
    """
    keys = [key for key in _keys(frame) if key != "method"]
    rows = []
    for names, group in _groups(frame, keys):
        wide = with_floor(group.pivot(index="stimulus_id", columns="method", values="value"))
        if not {floor, ceiling} <= set(wide.columns):
            continue
        for method in in_order([name for name in wide if name != FLOOR], METHODS):
            found = _share(wide[[method, floor, ceiling]].dropna().to_numpy(), seed)
            rows.append({**dict(zip(keys, names, strict=True)), "method": method, **found})
    columns = [*keys[:-1], "method", "metric", "n", "mean", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def _share(values: np.ndarray, seed: int) -> dict[str, float]:
    """Share and interval from rows (method, floor, ceiling), one a picture."""

    def share(method, floor, ceiling, axis=-1):
        low, high = floor.mean(axis), ceiling.mean(axis)
        return (method.mean(axis) - low) / (high - low)

    method, floor, ceiling = values.T
    found = {"n": len(values), "mean": np.nan, "low": np.nan, "high": np.nan}
    if len(values) == 0 or ceiling.mean() <= floor.mean():
        return found
    found["mean"] = float(share(method, floor, ceiling))
    same = np.array_equal(method, floor) or np.array_equal(method, ceiling)
    # A denominator that may be zero has no interval worth the name.
    if same or len(values) < 2 or bootstrap_interval(ceiling - floor, 0.999, 1999, seed)[0] <= 0:
        return found
    result = stats.bootstrap(
        (method, floor, ceiling),
        share,
        paired=True,
        vectorized=True,
        n_resamples=4999,
        method="BCa",
        batch=1000,
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return found | {"low": float(low), "high": float(high)}


def share_table(frame: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Write `shares` for people, in per cent; see there.

    Returns
    -------
    DataFrame of str
        One row a method, blind controls and ceiling left out.
    """
    numbers = shares(frame, seed=seed)
    numbers = numbers[~numbers["method"].isin([*BLIND, "ceiling"])].copy()
    numbers["text"] = [_percent_text(row) for row in numbers.itertuples()]
    table = _wide(numbers, _keys(frame)[:-1])
    table.attrs["note"] = (
        f"Share of the way from the floor (0{NBSP}%) to the ceiling (true features, 100{NBSP}%), "
        f"with its 95{NBSP}% bootstrap interval (BCa) over pictures. A dash stands where the "
        f"ceiling is not above the floor. {floor_note(frame)}"
    )
    return table


def _percent_text(row) -> str:
    if not np.isfinite(row.mean):
        return "–"
    if not np.isfinite(row.low):
        return f"{100 * row.mean:z.0f}{NBSP}%"
    return f"{100 * row.mean:z.0f}{NBSP}% [{100 * row.low:z.0f},{NBSP}{100 * row.high:z.0f}]"


# --- several draws of the noise ------------------------------------------------------------


def seed_spread(frame: pd.DataFrame) -> pd.DataFrame:
    """Tell the spread over generation seeds apart from the spread over pictures.

    Parameters
    ----------
    frame : DataFrame
        Tidy: `seed, method, stimulus_id, metric, value`.

    Returns
    -------
    DataFrame
        For each method and metric: `n_seeds`, `mean` over seeds and pictures, `sd of means`, the
        standard deviation over seeds of the mean over pictures; `sd in a picture`, that over seeds
        for one picture, averaged as a variance; `sd of pictures`, that over pictures of their means
        over seeds. With one seed, what needs two is NaN.
    """
    rows = []
    for (method, metric), group in frame.groupby(["method", "metric"], sort=False):
        wide = group.pivot(index="stimulus_id", columns="seed", values="value").to_numpy()
        several = wide.shape[1] > 1
        rows.append(
            {
                "method": METHODS.get(method, method),
                "metric": METRICS.get(metric, metric),
                "n_seeds": wide.shape[1],
                "mean": wide.mean(),
                "sd of means": wide.mean(0).std(ddof=1) if several else np.nan,
                "sd in a picture": np.sqrt(wide.var(1, ddof=1).mean()) if several else np.nan,
                "sd of pictures": wide.mean(1).std(ddof=1) if len(wide) > 1 else np.nan,
            }
        )
    return pd.DataFrame(rows)


def seed_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Write `seed_spread` for people.

    Returns
    -------
    DataFrame of str
        One row a method and metric; a dash where one draw of the noise cannot say.
    """
    numbers = seed_spread(frame).set_index("method")
    spreads = ["sd of means", "sd in a picture", "sd of pictures"]
    text = numbers[["metric"]].assign(draws=numbers["n_seeds"].astype(str))
    for name in ("mean", *spreads):
        text[name] = ["–" if np.isnan(v) else _leading(f"{v:.3f}") for v in numbers[name]]
    text = text.rename(columns={name: name.replace("sd", "SD") for name in spreads})
    text.attrs["note"] = (
        "SD of means: standard deviation, over draws of the noise, of the mean over pictures. SD "
        "in a picture: over draws, for one picture. SD of pictures: over pictures, of their mean "
        "over draws. A dash needs two draws or more."
    )
    return text


# --- files ---------------------------------------------------------------------------------


def across_subjects(numbers: pd.DataFrame) -> pd.DataFrame:
    """Average each subject's numbers: one value a subject, no interval, no pretended n.

    Parameters
    ----------
    numbers : DataFrame
        `subject, method, metric, mean, …`, from `summary` or `shares`.

    Returns
    -------
    DataFrame
        `subject` ("mean of 2"), `method, metric, mean`; methods that every subject has.
    """
    n = numbers["subject"].nunique()
    groups = numbers.groupby(["method", "metric"], sort=False, observed=True)["mean"]
    means = groups.mean()[groups.count() == n]
    return means.reset_index().assign(subject=f"mean of {n}")


def results(frame: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Everything the table says, tidy, for other programs.

    Parameters
    ----------
    frame : DataFrame
        `subject, method, stimulus_id, metric, value`.
    seed : int

    Returns
    -------
    DataFrame
        `subject, method, metric, n, mean, low, high, share, share_low, share_high`. With several
        subjects, rows of their mean follow, without interval.
    """
    parts = []
    for subject, rows in frame.groupby("subject", sort=False):
        found = summary(rows, seed)
        way = shares(rows, seed=seed).drop(columns="n")
        way = way.rename(columns={"mean": "share", "low": "share_low", "high": "share_high"})
        parts.append(found.merge(way, "left", ["method", "metric"]).assign(subject=subject))
    table = pd.concat(parts, ignore_index=True)
    if len(parts) > 1:
        mean = across_subjects(table)
        way = across_subjects(table.drop(columns="mean").rename(columns={"share": "mean"}))
        mean = mean.merge(way.rename(columns={"mean": "share"}), "left", None)
        table = pd.concat([table, mean], ignore_index=True)
    columns = ["subject", "method", "metric", "n", "mean", "low", "high"]
    table = table[[*columns, "share", "share_low", "share_high"]]
    return table.astype({"n": "Int64", "method": str, "metric": str})


def front_table(found: pd.DataFrame) -> pd.DataFrame:
    """Write the few rows of `results.csv` that the first page of the book shows.

    Parameters
    ----------
    found : DataFrame
        As `results` returns it, or as read from the file.

    Returns
    -------
    DataFrame of str
        The rows of the paper's table with floor, retrieval and ceiling, the paper's metrics as
        columns. With several subjects a cell is their mean and, in parentheses, each one's value:
        no interval, since a few people are no sample.
    """
    each = main_metrics(found[found["n"].notna()])
    floor = each[each["method"].isin(BLIND)].sort_values("mean")
    floor = floor.drop_duplicates(["subject", "metric"], keep="last").sort_index()
    each = pd.concat([each[each["method"].isin(list(FRONT))], floor.assign(method=FLOOR)])
    subjects = list(dict.fromkeys(each["subject"]))
    rows = {}
    for (method, metric), group in each.groupby(["method", "metric"], sort=False):
        rows.setdefault(method, {})[METRICS[metric]] = _front_text(group, len(subjects))
    table = pd.DataFrame.from_dict(rows, orient="index")
    table = table.reindex([name for name in FRONT if name in rows]).fillna("–")
    table = table.rename(index=FRONT).rename_axis("method")
    mean = (
        f"Mean over the test pictures with its 95{NBSP}% interval."
        if len(subjects) == 1
        else "Mean over subjects of the mean over their test pictures; in parentheses that of "
        f"each, {', '.join(map(str, subjects))}."
    )
    table.attrs["note"] = f"{mean} {_floor_text(floor)}" if len(floor) else mean
    return table


def _front_text(group: pd.DataFrame, n_subjects: int) -> str:
    """One cell of the first page, from the rows of all subjects."""
    if n_subjects == 1:
        return _text(next(group.itertuples()))
    each = f",{NBSP}".join(f"{value:.3f}" for value in group["mean"])
    return _leading(f"{group['mean'].mean():.3f} ({each})")


def write_results(folder: str | Path, frame: pd.DataFrame, seed: int = 0) -> Path:
    """Write `results.csv`, tidy, and `results.md`, the tables of the book.

    Parameters
    ----------
    folder : str or Path
        Of the run, or of one subject.
    frame : DataFrame
        `subject, method, stimulus_id, metric, value`.
    seed : int
        Of bootstrap and permutations.

    Returns
    -------
    Path
        Of `results.md`: the table, the differences, and the way from floor to ceiling, with the
        pictures that failed below each.
    """
    if "subject" not in frame or frame.empty:
        raise InputError("The table of results needs the column `subject` and at least one row.")
    folder, main = Path(folder), main_metrics(frame)
    with atomic_path(folder / "results.csv") as temporary:
        results(frame, seed).to_csv(temporary, index=False)
    tables = [summary_table(main, seed)]
    more = [difference_table(main, pairs, seed) for pairs in (PAIRS, CONTROL_PAIRS)]
    tables += [table for table in (*more, share_table(main, seed)) if len(table)]
    own = {who: folder / str(who) for who in frame["subject"].unique()}
    own = {who: path if path.is_dir() else folder for who, path in own.items()}
    failed = partial(stray_note, own, frame["method"].unique())
    texts = [markdown_table(table) + failed(quiet=table is not tables[0]) for table in tables]
    with atomic_path(folder / "results.md") as temporary:
        temporary.write_text("\n".join(texts), encoding="utf-8")
    return folder / "results.md"


def _keys(frame: pd.DataFrame) -> list[str]:
    several = "subject" in frame and frame["subject"].nunique() > 1
    return [*(["subject"] if several else []), "method", "metric"]


def _groups(frame: pd.DataFrame, keys: list[str]):
    """Groups of a tidy frame, methods and metrics in the order of the paper's table."""
    known = {"method": METHODS, "metric": METRICS, "subject": {}}
    ranked = frame.assign(
        **{
            key: pd.Categorical(frame[key], in_order(frame[key], known[key]), ordered=True)
            for key in keys
        }
    )
    return ranked.groupby(keys, observed=True)


def _wide(numbers: pd.DataFrame, index: list[str]) -> pd.DataFrame:
    """Texts of a tidy table as rows of methods and columns of metrics, in the order they have."""
    metrics = in_order(numbers["metric"], METRICS)
    rows = []
    for names, group in numbers.groupby(index, sort=False):
        texts = dict(zip(group["metric"], group["text"], strict=True))
        named = dict(zip(index, names, strict=True))
        named["method"] = METHODS.get(named["method"], named["method"])
        cells = {METRICS.get(m, m): texts.get(m, "–") for m in metrics}
        counts = sorted(set(group["n"].dropna().astype(int)))
        n = "–".join(str(count) for count in dict.fromkeys(counts[:1] + counts[-1:]))
        rows.append({**named, **cells, "n": n or "–"})
    columns = [*index, *[METRICS.get(m, m) for m in metrics], "n"]
    return pd.DataFrame(rows, columns=columns).set_index(index)


def interval_text(mean: float, low: float, high: float, sign: str = "") -> str:
    """Return ".765 [.701, .812]", or with the sign "+" "+.093 [+.031, +.159]"."""
    return _leading(f"{mean:{sign}.3f} [{low:{sign}.3f},{NBSP}{high:{sign}.3f}]")


def _text(row, sign: str = "") -> str:
    return interval_text(row.mean, row.low, row.high, sign)


def _leading(text: str) -> str:
    return re.sub(r"(?<!\d)0\.", ".", text)  # .765, as the paper's table has it


def p_text(p: float) -> str:
    """Return "p = 0.012", or "p < 0.001" for all below: the same in tables and figures."""
    return f"p{NBSP}<{NBSP}0.001" if p < 0.001 else f"p{NBSP}={NBSP}{p:.3f}"
