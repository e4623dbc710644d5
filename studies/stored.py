"""Write the small files of `book/results`: what was computed once, in hours, for the book's pages.

`python -m studies stage2 --out book/results` and `python -m studies variants` do so.
"""

from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from minddiff_utils.evaluation.metrics import METRICS
from minddiff_utils.evaluation.statistics import bootstrap_interval
from minddiff_utils.evaluation.stored import decoded_statistics
from minddiff_utils.evaluation.tables import interval_text, markdown_table
from minddiff_utils.io import InputError, atomic_path

SHOWN = ("clip_judge", "ssim", "pcc")
COSTS = {
    "equivalents": "UNet passes a picture",
    "processor_seconds": "seconds of the processor",
    "loss": "structure loss",
}
FIRST = "stage 1 alone"  # what the other variants are compared with


def read_tables(folder: str | Path, kind: str) -> dict[str, pd.DataFrame]:
    """Return one table a subject of the files `<kind>_<subject>.csv`."""
    paths = sorted(Path(folder).glob(f"{kind}_*.csv"))
    if not paths:
        raise InputError(f"{folder} has no {kind}_<subject>.csv: restore it from the repository.")
    return {path.stem.removeprefix(f"{kind}_"): pd.read_csv(path) for path in paths}


def store_pictures(
    path: str | Path, decoded: Mapping[str, np.ndarray], pictures: np.ndarray, about: str
) -> None:
    """Keep pictures that took hours, with what tells the decoded features that they follow from.

    Parameters
    ----------
    path : str or Path
        HDF5 file: `stimulus_id`, `pictures`, and `statistics` float32 (n, n_families, 2), mean and
        standard deviation of each picture's decoded values.
    decoded : mapping of str to array, shape (n, …)
        As for `reconstruct`.
    pictures : uint8 array, shape (n, h, w, 3)
    about : str
        How they were made; shown wherever they are.
    """
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["about"] = about
        file["stimulus_id"] = decoded["stimulus_id"]
        file["statistics"] = decoded_statistics(decoded)
        file.create_dataset("pictures", data=pictures, compression="gzip", compression_opts=9)


def solver_table(folder: str | Path) -> str:
    """Compare both solvers of stage 2, as they were measured on the phantom.

    Parameters
    ----------
    folder : str or Path
        `book/results` of the project.

    Returns
    -------
    str
        Markdown: cost and quality of each solver, and the mean paired difference of the fast to the
        paper's with its 95 % interval over pictures, or how many times the paper's costs.

    Raises
    ------
    InputError
        If no file is there.
    """
    rows = []
    for who, table in read_tables(folder, "solvers").items():
        by_solver = table.set_index("solver")
        paper, fast = by_solver.loc["algorithm_1"], by_solver.loc["guided"]
        for name in (*COSTS, *SHOWN, "clip_guide"):
            if name in METRICS:
                parts = (paper[f"{name}_{part}"] for part in ("gain", "low", "high"))
                last = interval_text(*parts, sign="+")
            else:
                last = f"1 / {paper[name] / fast[name]:,.0f}" if name != "loss" else "–"
            label = METRICS.get(name) or COSTS[name]
            rows.append([who, label, *map(_number, (paper[name], fast[name])), last])
    solvers = [f'solver="{name}"' for name in ("algorithm_1", "guided")]
    columns = ["subject", "a picture", *solvers, "guided compared with Algorithm 1"]
    return markdown_table(pd.DataFrame(rows, columns=columns).set_index("subject"))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def read_ways(folder: str | Path) -> pd.DataFrame:
    """Return what `python -m studies variants` wrote, all subjects in one table.

    Returns
    -------
    DataFrame
        `subject, way, equivalents, seconds, stimulus_id, metric, value`.
    """
    parts = [table.assign(subject=who) for who, table in read_tables(folder, "variants").items()]
    return pd.concat(parts, ignore_index=True)


def ways_summary(ways: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Mean of every way and metric over all pictures, and its difference to stage 1.

    Parameters
    ----------
    ways : DataFrame
        From `read_ways`.
    seed : int
        Of the bootstrap.

    Returns
    -------
    DataFrame
        `way, equivalents, seconds, metric, value, gain, low, high`: a row a way and metric, in the
        order of `ways`. Pictures of two subjects are different pictures of different brains; the
        interval is over all of them.
    """
    wide = ways.pivot(index=["subject", "stimulus_id"], columns=["way", "metric"], values="value")
    rows = []
    for (way, metric), part in ways.groupby(["way", "metric"], sort=False):
        gain = (wide[way, metric] - wide[FIRST, metric]).to_numpy()
        low, high = bootstrap_interval(gain, seed=seed)
        cost = part[["equivalents", "seconds"]].mean()
        row = {"way": way, "metric": metric, **cost, "value": part.value.mean()}
        rows.append(row | {"gain": gain.mean(), "low": low, "high": high})
    return pd.DataFrame(rows)


def ways_table(summary: pd.DataFrame) -> str:
    """Show a summary as markdown: passes, and the difference to stage 1 by each metric."""
    rows = []
    for number, (way, part) in enumerate(summary.groupby("way", sort=False), start=1):
        by = part.set_index("metric")
        cells = [interval_text(*by.loc[name, ["gain", "low", "high"]], sign="+") for name in SHOWN]
        cost = by.iloc[0]
        rows.append([number, way, f"{cost.equivalents:.0f}", *cells])
    columns = ["no.", "way", "passes", *(METRICS[name] for name in SHOWN)]
    return markdown_table(pd.DataFrame(rows, columns=columns).set_index("no."))


def write_summary(folder: str | Path) -> Path:
    """Write `ways.csv` and `ways.md` from the pictures' values that lie beside them."""
    path = Path(folder) / "ways.csv"
    summary = ways_summary(read_ways(folder)).round(5)
    with atomic_path(path) as temporary:
        summary.to_csv(temporary, index=False)
    path.with_suffix(".md").write_text(ways_table(summary), encoding="utf-8")
    return path
