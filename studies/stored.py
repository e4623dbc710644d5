"""Write the small files of `book/results`: what was computed once, in hours, for pages."""

from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from minddiff_utils.evaluation.baselines import decoded_statistics
from minddiff_utils.evaluation.metrics import METRICS
from minddiff_utils.evaluation.statistics import paired_difference
from minddiff_utils.evaluation.tables import interval_text, markdown_table
from minddiff_utils.io import atomic_path

MAIN = ("clip_judge", "ssim", "pcc")
DEFAULTS = "defaults"
# Columns of the table of settings: feature space or stage, and metric, as `compare` names them.
COMPARED = {
    **{name: (name, "correlation") for name in ("z", "c", "block_1", "block_6")},
    **{f"stage 1: {METRICS[name]}": ("stage 1", name) for name in MAIN},
    **{f"both: {METRICS[name]}": ("stage 2", name) for name in MAIN},
}
COSTS = {"equivalents": "passes of the UNet", "processor_seconds": "seconds of the processor"}


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
    pictures : uint8 array, shape (n, n_seeds, h, w, 3)
        From so many draws of the noise, with the seeds 0, 1 …
    about : str
        How they were made; shown wherever they are.
    """
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["about"] = about
        file["stimulus_id"] = decoded["stimulus_id"]
        file["statistics"] = decoded_statistics(decoded)
        file.create_dataset("pictures", data=pictures, compression="gzip", compression_opts=9)


def solver_table(folder: str | Path) -> str:
    """Say what a picture costs with either solver of stage 2, as it was measured on the phantom.

    Parameters
    ----------
    folder : str or Path
        `book/results` of the project, with `solvers.csv`.

    Returns
    -------
    str
        Markdown: what either solver takes, and the share that is left of what the paper's takes.
    """
    table = pd.read_csv(Path(folder) / "solvers.csv", index_col="solver")
    paper, fast = table.loc["algorithm_1"], table.loc["guided"]
    rows = {
        label: [_number(paper[name]), _number(fast[name]), f"1 / {paper[name] / fast[name]:,.0f}"]
        for name, label in COSTS.items()
    }
    columns = ["Algorithm 1 as published", "this book's solver", "share"]
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    return markdown_table(frame.rename_axis("an image"))


def course_table(folder: str | Path) -> str:
    """Say what the iterations of Algorithm 1 change, for each setting that `published` varied.

    Parameters
    ----------
    folder : str or Path
        `book/results` of the project, with `published_<subject>.csv`: `change, iteration,
        stimulus_id, metric, value` of held-out training pictures.

    Returns
    -------
    str
        Markdown: the share of the loss that is left in the end, and the mean paired difference
        between the last iteration and stage 1 over the pictures of all subjects, with its 95 %
        interval.
    """
    paths = sorted(Path(folder).glob("published_*.csv"))
    values = pd.concat([pd.read_csv(path) for path in paths], keys=range(len(paths)))
    values = values.rename_axis(["subject", "row"]).reset_index("subject")
    keys = ["change", "metric", "subject", "stimulus_id"]
    wide = values.pivot(index=keys, columns="iteration", values="value")
    first, last = wide[wide.columns.min()], wide[wide.columns.max()]
    rows = {}
    for change in dict.fromkeys(values["change"]):
        left = last[change, "loss"].mean() / first[change, "loss"].mean()
        found = {"loss left": f"{100 * left:.0f}\u00a0%"}
        for metric in MAIN:
            gain = paired_difference(last[change, metric], first[change, metric])
            text = interval_text(*(gain[part] for part in ("mean", "low", "high")), sign="+")
            found[METRICS[metric]] = text
        rows[change] = found
    return markdown_table(pd.DataFrame.from_dict(rows, orient="index").rename_axis("changed"))


def compare_table(folder: str | Path) -> str:
    """Say what changed settings do to decoding and to the pictures of both stages.

    Parameters
    ----------
    folder : str or Path
        With `compare_<subject>.csv`, what `compare` wrote.

    Returns
    -------
    str
        Markdown: the defaults' values, and each change's differences to them, subjects beside one
        another; a star marks those whose 95 % interval over pictures leaves out zero.
    """
    keys = ["settings", "of", "metric"]
    tables = [pd.read_csv(p).set_index(keys) for p in sorted(Path(folder).glob("compare_*.csv"))]
    settings = list(dict.fromkeys(tables[0].index.get_level_values("settings")))
    rows = {}
    for name in settings:
        cells = {}
        for column, key in COMPARED.items():
            found = [table.loc[(name, *key)] for table in tables if (name, *key) in table.index]
            cells[column] = ", ".join(_gain(one, name == DEFAULTS) for one in found)
        rows[name] = cells
    return markdown_table(pd.DataFrame.from_dict(rows, orient="index").rename_axis("changed"))


def _gain(row: pd.Series, absolute: bool) -> str:
    if absolute:
        return f"{row.value:.3f}".replace("0.", ".")
    if max(abs(row.low), abs(row.high)) < 5e-4:
        return "·"
    star = r"\*" if row.low > 0 or row.high < 0 else ""
    return f"{row.gain:+.3f}".replace("0.", ".").replace("-", "−") + star


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
