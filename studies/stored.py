"""Write the small files of `book/results`: what was computed once, in hours, for pages."""

from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from minddiff_utils.evaluation.metrics import METRICS
from minddiff_utils.evaluation.pictures import decoded_statistics
from minddiff_utils.evaluation.tables import interval_text, markdown_table
from minddiff_utils.io import InputError, atomic_path

COSTS = {
    "equivalents": "UNet passes a picture",
    "processor_seconds": "seconds of the processor",
    "loss": "structure loss",
}


def store_pictures(
    path: str | Path, decoded: Mapping[str, np.ndarray], pictures: np.ndarray, about: str
) -> None:
    """Keep pictures that took hours, with what tells the decoded features that they follow from.

    Parameters
    ----------
    path : str or Path
        HDF5 file: `stimulus_id`, `pictures`, and `statistics` float32 (n, n_spaces, 2), mean and
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
    for path in sorted(Path(folder).glob("solvers_*.csv")):
        table = pd.read_csv(path, index_col="solver")
        paper, fast = table.loc["algorithm_1"], table.loc["guided"]
        for name in (*COSTS, "clip_judge", "ssim", "pcc", "clip_guide"):
            if name in METRICS:
                parts = (paper[f"{name}_{part}"] for part in ("gain", "low", "high"))
                last = interval_text(*parts, sign="+")
            else:
                last = f"1 / {paper[name] / fast[name]:,.0f}" if name != "loss" else "–"
            label = METRICS.get(name) or COSTS[name]
            shown = map(_number, (paper[name], fast[name]))
            rows.append([path.stem.removeprefix("solvers_"), label, *shown, last])
    if not rows:
        raise InputError(f"{folder} has no solvers_<subject>.csv: restore it from the repository.")
    solvers = [f'solver="{name}"' for name in ("algorithm_1", "guided")]
    columns = ["subject", "a picture", *solvers, "guided compared with Algorithm 1"]
    return markdown_table(pd.DataFrame(rows, columns=columns).set_index("subject"))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
