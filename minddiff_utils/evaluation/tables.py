"""Tables of results: means with intervals, differences, and the way from floor to ceiling.

Everything starts from the tidy table of `metrics.evaluate`, one row an image, method and metric.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from scipy import stats

from minddiff_utils.evaluation import BLIND, FULL, METHODS, ROWS, full_method, in_order
from minddiff_utils.evaluation.metrics import METRICS, main_metrics
from minddiff_utils.evaluation.statistics import bootstrap_interval, finite, holm, paired_difference
from minddiff_utils.io import atomic_path, method_file, write_text

FLOOR = "floor"  # the best baseline of `evaluation.BLIND`, whichever it is for a subject and metric
# (method, baseline): what stage 2 adds, by either solver, and what each decoded input contributes.
STAGE_2_PAIRS = (("stage2", "stage1"), ("algorithm_1", "stage1"), ("stage2", "algorithm_1"))
PAIRS = (*STAGE_2_PAIRS, ("stage2", "no_z"), ("stage2", "no_c"))
# What the full method has over what knows less of the brain, or uses the same brain otherwise.
CONTROL_PAIRS = tuple(
    ("stage2", name)
    for name, row in ROWS.items()
    if row.sees != "truth" and name not in ("no_z", "no_c", "stage1", *FULL)
)
# A method that reads the brain stands in this order: every one of these lies above zero.
ORDER_PAIRS = (("stage1", FLOOR), ("stage2", "stage1"), ("ceiling", "stage2"))
# What the first page shows: the paper's rows, and what their numbers are to be read against.
FRONT = {name: METHODS[name] for name in ("no_z", "no_c", "stage1", "algorithm_1")}
FRONT |= {"stage2": f"**{METHODS['stage2']}**", "ceiling": "true features (ceiling)"}
FRONT |= {"retrieval": METHODS["retrieval"], FLOOR: "best blind control (floor)"}
LISTED = 10  # ids of one method that a note lists
NBSP = "\u00a0"  # a narrow table breaks a line before an interval, not inside it


# --- numbers -------------------------------------------------------------------------------


def summary(
    frame: pd.DataFrame, seed: int = 0, interval: Callable = bootstrap_interval
) -> pd.DataFrame:
    """Mean over images with its 95 % BCa interval for each (subject,) method and metric.

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
    for names, group in groups_in_order(frame, keys):
        values = finite(group["value"])
        mean = values.mean() if len(values) else np.nan
        rows.append((*names, len(values), mean, *interval(values, seed=seed)))
    return pd.DataFrame(rows, columns=[*keys, "n", "mean", "low", "high"])


def differences(
    frame: pd.DataFrame, pairs: Sequence[tuple[str, str]] = PAIRS, seed: int = 0
) -> pd.DataFrame:
    """Paired differences between methods on the same images, for each (subject and) metric.

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
        Tidy, with (`subject`,) `method, baseline, metric, n, before, after, mean, low, high, p,
        p_holm`: the means of the baseline and of the method, and of their difference; `p` of one
        test alone, and corrected by Holm for all tests of the same subject.
    """
    rows = []
    for names, wide in by_metric(frame):
        for method, baseline in present_pairs(pairs, wide):
            after, before = wide[[method, baseline]].dropna().mean()
            found = paired_difference(wide[method], wide[baseline], seed=seed)
            found |= {"before": before, "after": after}
            rows.append(names | {"method": method, "baseline": baseline} | found)
    several = _keys(frame)[:-2]
    columns = [*several, "method", "baseline", "metric", "n", "before", "after"]
    found = pd.DataFrame(rows, columns=[*columns, "mean", "low", "high", "p"])
    groups = found.groupby(several or np.zeros(len(found)))
    return found.assign(p_holm=groups["p"].transform(holm))


def present_pairs(pairs: Sequence[tuple[str, str]], wide: pd.DataFrame) -> list[tuple[str, str]]:
    """Pairs of methods that are there; the solver that ran stands for this book's."""
    instead = {"stage2": full_method(wide) or "stage2"}
    pairs = dict.fromkeys(
        (instead.get(one, one), instead.get(other, other)) for one, other in pairs
    )
    return [pair for pair in pairs if pair[0] != pair[1] and set(pair) <= set(wide)]


def with_floor(wide: pd.DataFrame) -> pd.DataFrame:
    """Add the column `FLOOR`: a copy of that baseline of `evaluation.BLIND` with the highest mean.

    Parameters
    ----------
    wide : DataFrame
        One metric of one subject: a row an image, a column a method.

    Returns
    -------
    DataFrame
        `attrs["floor"]` names the baseline; without any of them, the table as it was.
    """
    blind = wide[[name for name in BLIND if name in wide]].mean().dropna()
    if blind.empty:
        return wide
    wide = wide.assign(**{FLOOR: wide[blind.idxmax()]})
    wide.attrs["floor"] = blind.idxmax()
    return wide


def shares(frame: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    r"""How far each method has come on the way from the floor to the ceiling.

    .. math:: \mathrm{share} = \frac{\bar m - \bar f}{\bar c - \bar f}

    with the means over images of the method, of the floor (the best baseline that knows nothing
    of what was seen, `with_floor`) and of the ceiling (the same chain from the true features).
    Images are resampled whole for the interval, method, floor and ceiling together.

    Parameters
    ----------
    frame : DataFrame
        Tidy values as for `summary`.
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    DataFrame
        (`subject`,) `method, metric, n, mean, low, high`: the share, 0 at the floor and 1 at the
        ceiling, with its 95 % interval (BCa). NaN where the ceiling is not above the floor, and
        interval NaN where it is not clearly so. Empty without floor and ceiling.
    """
    rows = []
    for names, wide in by_metric(frame):
        if not {FLOOR, "ceiling"} <= set(wide):
            continue
        for method in in_order([name for name in wide if name != FLOOR], METHODS):
            found = _share(wide[[method, FLOOR, "ceiling"]].dropna().to_numpy(), seed)
            rows.append({**names, "method": method, **found})
    columns = [*_keys(frame)[:-2], "method", "metric", "n", "mean", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def _share(values: np.ndarray, seed: int) -> dict[str, float]:
    """Share and interval from rows (method, floor, ceiling), one an image."""

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
    rng = np.random.default_rng(seed)
    low, high = stats.bootstrap(
        (method, floor, ceiling), share, paired=True, n_resamples=4999, batch=1000, rng=rng
    ).confidence_interval
    return found | {"low": float(low), "high": float(high)}


def across_subjects(numbers: pd.DataFrame) -> pd.DataFrame:
    """Average each subject's numbers: one value a subject, no interval, no pretended n.

    Parameters
    ----------
    numbers : DataFrame
        `subject, method, metric, mean, …`, from `summary`; other numbers are averaged as well.

    Returns
    -------
    DataFrame
        `subject` ("mean of 2"), `method, metric, mean, …`; methods that every subject has.
    """
    n = numbers["subject"].nunique()
    groups = numbers.groupby(["method", "metric"], sort=False)
    means = groups[[name for name in ("mean", "share") if name in numbers]].mean()
    return means[groups.size() == n].reset_index().assign(subject=f"mean of {n}")


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
        way = shares(rows, seed).drop(columns="n")
        way = way.rename(columns={"mean": "share", "low": "share_low", "high": "share_high"})
        found = summary(rows, seed).merge(way, "left", ["method", "metric"])
        found.insert(0, "subject", subject)
        parts.append(found)
    table = pd.concat(parts, ignore_index=True)
    if len(parts) > 1:
        table = pd.concat([table, across_subjects(table)], ignore_index=True)
    return table.astype({"n": "Int64"})


# --- tables for people ---------------------------------------------------------------------


def summary_table(
    frame: pd.DataFrame, seed: int = 0, interval: Callable = bootstrap_interval
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
        Rows in the order of `METHODS`, the judge's CLIP first, `n` images last. With several
        subjects the rows are (subject, method), then the mean over subjects, without an interval:
        two or four people are no sample. `attrs["note"]` says what the intervals are over.
    """
    numbers = summary(frame, seed, interval)
    numbers["text"] = [_text(row) for row in numbers.itertuples()]
    if "subject" in numbers:
        mean = across_subjects(numbers)
        mean["text"] = [leading(f"{value:.3f}") for value in mean["mean"]]
        numbers = pd.concat([numbers, mean], ignore_index=True)
    return wide_table(
        numbers,
        _keys(frame)[:-1],
        f"Mean over the test images, with its 95{NBSP}% bootstrap interval (BCa) over images "
        "in brackets; n is the number of images.",
    )


def difference_table(found: pd.DataFrame) -> pd.DataFrame:
    """Write `differences` for people: `mean [low, high]` and p-value, one pair of methods a row.

    Returns
    -------
    DataFrame of str
        Columns in the order of `summary_table`.
    """
    texts = [f"{_text(row, '+')}, {p_text(row.p_holm)}" for row in found.itertuples()]
    names = list(map(pair_name, found["method"], found["baseline"]))
    return wide_table(
        found.assign(text=texts, method=names),
        [name for name in ("subject", "method") if name in found],
        f"Mean paired difference over the test images, with its 95{NBSP}% bootstrap interval "
        "(BCa) over images in brackets and the two-sided p of a sign-flip permutation test, "
        "corrected by Holm for all comparisons of the table within a subject; n is the number of "
        "images.",
    )


def short_name(method: str) -> str:
    """Return what a method is called where two are compared."""
    return ROWS[method].short or ROWS[method].label if method in ROWS else method


def pair_name(method: str, baseline: str) -> str:
    """Return "both stages − no z" for the pair ("stage2", "no_z")."""
    return f"{short_name(method)} − {short_name(baseline)}"


def share_table(frame: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Write `shares` for people, in per cent; see there.

    Returns
    -------
    DataFrame of str
        One row a method, blind baselines and ceiling left out. The note names the floor.
    """
    numbers = shares(frame, seed)
    numbers = numbers[~numbers["method"].isin([*BLIND, "ceiling"])].copy()
    numbers["text"] = [_percent_text(row) for row in numbers.itertuples()]
    floors = [names | {"method": wide.attrs.get("floor")} for names, wide in by_metric(frame)]
    return wide_table(
        numbers,
        _keys(frame)[:-1],
        f"Share of the way from the floor (0{NBSP}%) to the ceiling (true features, 100{NBSP}%), "
        f"with its 95{NBSP}% bootstrap interval (BCa) over images. A dash stands where the "
        f"ceiling is not above the floor. {_floor_text(pd.DataFrame(floors))}",
    )


def _floor_text(floor: pd.DataFrame) -> str:
    """Name the floor from rows `metric, method`, and `subject` where they may differ."""
    measures: dict[str, list[str]] = {}
    for metric, part in floor.groupby("metric", sort=False):
        alike = part["method"].nunique(dropna=False) == 1
        for row in part[: 1 if alike else None].itertuples():
            measure = METRICS.get(metric, metric) + ("" if alike else f" of {row.subject}")
            measures.setdefault(METHODS.get(row.method, "none was made"), []).append(measure)
    parts = (f"{name} ({', '.join(of)})" for name, of in measures.items())
    return f"Floor: the best control that knows nothing of what was seen, {'; '.join(parts)}."


def seed_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Tell the spread over generation seeds apart from the spread over images.

    Parameters
    ----------
    frame : DataFrame
        Tidy: `seed, method, stimulus_id, metric, value`.

    Returns
    -------
    DataFrame of str
        For each method and metric the number of `draws`, the `mean` over seeds and images, and
        standard deviations: over draws, of the mean over images ("SD of means"); over draws, for
        one image ("in an image"); over images, of their mean over draws ("of images"). A
        dash where they need two draws or more.
    """
    keys = ["method", "metric"]
    wide = frame.pivot(index=[*keys, "stimulus_id"], columns="seed", values="value")
    means = wide.groupby(keys).mean()
    numbers = {
        "mean": means.mean(axis=1),
        "SD of means": means.std(axis=1),
        "SD in an image": np.sqrt(wide.var(axis=1).groupby(keys).mean()),
        "SD of images": wide.mean(axis=1).groupby(keys).std(),
    }
    table = pd.DataFrame(numbers).loc[[names for names, _ in groups_in_order(frame, keys)]]
    table = table.map(lambda value: "–" if np.isnan(value) else leading(f"{value:.3f}"))
    table.insert(0, "draws", str(wide.shape[1]))
    return table.reset_index("metric").rename(index=METHODS).replace({"metric": METRICS})


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
    subjects = [str(subject) for subject in each["subject"].unique()]
    groups = each.groupby(["method", "metric"], sort=False)[["mean", "low", "high"]]
    table = groups.apply(_interval_or_each).unstack().fillna("–")
    rows = [name for name in FRONT if name in table.index]
    table = table.loc[rows, in_order(table.columns, METRICS)]
    table = table.rename(index=FRONT, columns=METRICS).rename_axis(columns=None)
    note = f"Mean over the test images with its 95{NBSP}% interval."
    if len(subjects) > 1:
        note = "Mean over subjects of the mean over their test images; in parentheses that of "
        note += f"each, {', '.join(subjects)}."
    table.attrs["note"] = f"{note} {_floor_text(floor)}" if len(floor) else note
    return table


def _interval_or_each(rows: pd.DataFrame) -> str:
    """One cell of the first page: of one subject with its interval, or of each."""
    if len(rows) == 1:
        return interval_text(*rows.iloc[0])
    each = f",{NBSP}".join(f"{value:.3f}" for value in rows["mean"])
    return leading(f"{rows['mean'].mean():.3f} ({each})")


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
        images that failed below each.
    """
    folder, main = Path(folder), main_metrics(frame)
    with atomic_path(folder / "results.csv") as temporary:
        results(frame, seed).to_csv(temporary, index=False)
    tables = [
        summary_table(main, seed),
        difference_table(differences(main, PAIRS, seed)),
        difference_table(differences(main, CONTROL_PAIRS, seed)),
        share_table(main, seed),
    ]
    own = {who: folder / str(who) for who in frame["subject"].unique()}
    own = {who: path if path.is_dir() else folder for who, path in own.items()}
    texts: list[str] = []
    for table in filter(len, tables):
        failed = failure_note(own, frame["method"].unique(), quiet=bool(texts))
        texts.append(markdown_table(table) + failed)
    return write_text(folder / "results.md", "\n".join(texts))


# --- layout and text -----------------------------------------------------------------------


def _keys(frame: pd.DataFrame) -> list[str]:
    several = "subject" in frame and frame["subject"].nunique() > 1
    return [*(["subject"] if several else []), "method", "metric"]


def groups_in_order(frame: pd.DataFrame, keys: list[str]) -> list[tuple[tuple, pd.DataFrame]]:
    """Return the groups of a tidy frame, methods and metrics in the order of the paper's table."""
    known: dict[str, Iterable[str]] = {"method": METHODS, "metric": METRICS}
    places = {key: in_order(frame[key], known.get(key, ())).index for key in keys}
    groups = list(frame.groupby(keys, sort=False))
    groups.sort(key=lambda group: [places[k](name) for k, name in zip(keys, group[0], strict=True)])
    return groups


def by_metric(frame: pd.DataFrame) -> Iterator[tuple[dict[str, str], pd.DataFrame]]:
    """Each (subject and) metric: its names, and a table of images by methods with the floor."""
    keys = [key for key in _keys(frame) if key != "method"]
    for names, group in groups_in_order(frame, keys):
        wide = group.pivot(index="stimulus_id", columns="method", values="value")
        yield dict(zip(keys, names, strict=True)), with_floor(wide)


def wide_table(
    numbers: pd.DataFrame, index: list[str], note: str = "", none: str = ""
) -> pd.DataFrame:
    """Write a tidy table for people: its `text`, a metric a column.

    Parameters
    ----------
    numbers : DataFrame
        The columns of `index`, `metric`, `text`, and `n` of the row and metric.
    index : list of str
        What the rows are; names of methods are written as people read them.
    note : str
        Goes below the table, as `attrs["note"]`.
    none : str
        The note where there are no numbers, and thus no rows.

    Returns
    -------
    DataFrame of str
        In the order that rows and metrics have in `numbers`, with `n` last.
    """
    if numbers.empty:
        table = pd.DataFrame()
        table.attrs["note"] = none
        return table
    numbers = numbers.replace({"method": METHODS, "metric": METRICS})
    groups = numbers.groupby(index, sort=False)["n"]
    table = numbers.pivot(index=index, columns="metric", values="text").fillna("–")
    table = table.reindex(index=groups.size().index, columns=numbers["metric"].unique())
    low, high = (n.map("{:.0f}".format) for n in (groups.min(), groups.max()))
    table["n"] = low.where(low == high, low + "–" + high).replace("nan", "–")
    table.attrs["note"] = note
    return table.rename_axis(columns=None)


def interval_text(mean: float, low: float, high: float, sign: str = "") -> str:
    """Return ".765 [.701, .812]", or with the sign "+" "+.093 [+.031, +.159]"."""
    return leading(f"{mean:{sign}.3f} [{low:{sign}.3f},{NBSP}{high:{sign}.3f}]")


def _text(row, sign: str = "") -> str:
    return interval_text(row.mean, row.low, row.high, sign)


def _percent_text(row) -> str:
    if not np.isfinite(row.mean):
        return "–"
    interval = f" [{100 * row.low:z.0f},{NBSP}{100 * row.high:z.0f}]"
    return f"{100 * row.mean:z.0f}{NBSP}%" + (interval if np.isfinite(row.low) else "")


def leading(text: str) -> str:
    return re.sub(r"(?<!\d)0\.", ".", text)  # .765, as the paper's table has it


def p_text(p: float) -> str:
    """Return "p = 0.012", or "p < 0.001" for all below: the same in tables and figures."""
    return f"p{NBSP}<{NBSP}0.001" if p < 0.001 else f"p{NBSP}={NBSP}{p:.3f}"


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


# --- pictures that failed -------------------------------------------------------------------


def failed_pictures(folder: str | Path, methods: Iterable[str]) -> dict[str, list[int]]:
    """Find the images that failed, as `Reconstruction` defines it.

    Parameters
    ----------
    folder : str or Path
        Of a subject.
    methods : iterable of str

    Returns
    -------
    dict of method to list of stimulus ids
        An entry for each that was painted and is there, mostly an empty list.
    """
    found = {}
    for method in methods:
        if (path := method_file(folder, method)).is_file():
            with h5py.File(path, "r") as file:
                if "failed" in file:
                    found[method] = file["stimulus_id"][:][file["failed"][:]].tolist()
    return found


def failure_note(
    folders: Mapping[str, str | Path], methods: Iterable[str], quiet: bool = False
) -> str:
    """Say how many images of each method failed, and which.

    Parameters
    ----------
    folders : mapping of subject to the subject's folder
    methods : iterable of str
        As for `failed_pictures`.
    quiet : bool
        Say nothing where no image failed.

    Returns
    -------
    str
        A sentence of markdown; "" where none of the runs is there.
    """
    found = {subject: failed_pictures(folder, methods) for subject, folder in folders.items()}
    parts = []
    for subject, failed in found.items():
        for method, ids in failed.items():
            if ids:
                listed = ", ".join(map(str, ids[:LISTED])) + ", …" * (len(ids) > LISTED)
                parts.append(f"{subject}, {METHODS.get(method, method)}: {len(ids)} ({listed})")
    if parts:
        return (
            "\n**Failed images** (values that are no numbers, or a loss that doubled; the "
            "iterate of least loss stands for them, grey where there is none): "
            f"{'; '.join(parts)}.\n"
        )
    return "" if quiet or not any(found.values()) else "\nFailed images: none.\n"
