"""What was computed once, in hours: small files of `book/results`, made by benches.

`python -m studies stage2 --out book/results` and `python -m studies variants` write them.
"""

from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from minddiff_utils.evaluation.metrics import METRICS
from minddiff_utils.evaluation.tables import interval_text, markdown_table
from minddiff_utils.io import InputError

SHOWN = ("clip_judge", "ssim", "pcc")
COSTS = {
    "equivalents": "UNet passes a picture",
    "processor_seconds": "seconds of the processor",
    "loss": "structure loss",
}
SAME = 1e-3  # of the spread of statistics: what rounding leaves
FIRST = "stage 1 alone"  # what the other variants are compared with
DEFAULT_WAY = "guided pass"
REFERENCE_WAY = "one look, both halves"  # of the rows that follow it


def read_tables(folder: str | Path, kind: str) -> dict[str, pd.DataFrame]:
    """Return one table a subject of the files `<kind>_<subject>.csv`."""
    paths = sorted(Path(folder).glob(f"{kind}_*.csv"))
    if not paths:
        raise InputError(f"{folder} has no {kind}_<subject>.csv: restore it from the repository.")
    return {path.stem.removeprefix(f"{kind}_"): pd.read_csv(path) for path in paths}


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


def stored_pictures(
    path: str | Path, decoded: Mapping[str, np.ndarray]
) -> tuple[np.ndarray | None, str]:
    """Return what `store_pictures` kept, if it follows from these decoded features.

    Parameters
    ----------
    path : str or Path
    decoded : mapping of str to array, shape (n, …)
        Of this run. Rounding of another processor is no difference.

    Returns
    -------
    pictures : uint8 array, shape (n, h, w, 3), or None
    note : str
        How they were made, or why there are none.
    """
    if not Path(path).is_file():
        return None, "No pictures of Algorithm 1 are stored for this recording."
    with h5py.File(path, "r") as file:
        statistics, ours = file["statistics"][:], decoded_statistics(decoded)
        same = np.array_equal(file["stimulus_id"][:], decoded["stimulus_id"])
        same &= statistics.shape == ours.shape  # as many blocks
        if not same or not np.allclose(statistics, ours, rtol=0, atol=SAME * statistics.std()):
            return None, "The stored pictures of Algorithm 1 follow from other decoded features."
        return file["pictures"][:], f"Stored, not made here: {file.attrs['about']}"


def decoded_statistics(decoded: Mapping[str, np.ndarray]) -> np.ndarray:
    """Mean and standard deviation of each picture's decoded values; float32 (n, n_names, 2)."""
    names = sorted(name for name in decoded if name in ("z", "c") or name.startswith("block_"))
    found = []
    for name in names:
        values = decoded[name].reshape(len(decoded[name]), -1).astype(np.float64)
        found.append(np.stack([np.nanmean(values, 1), np.nanstd(values, 1)], axis=1))
    return np.stack(found, axis=1).astype(np.float32)


def read_summary(folder: str | Path) -> pd.DataFrame:
    """Return what `studies.stored.ways_summary` makes of all subjects: quick to read for pages."""
    return pd.read_csv(Path(folder) / "ways.csv")


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
