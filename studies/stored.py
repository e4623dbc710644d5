"""Write the small files of `book/results`, which `evaluation.stored` reads for the book's pages."""

from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from minddiff_utils.evaluation.statistics import bootstrap_interval
from minddiff_utils.evaluation.stored import FIRST, decoded_statistics, read_tables
from minddiff_utils.io import atomic_path


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


def write_summary(folder: str | Path) -> Path:
    """Write `ways.csv` from the pictures' values that lie beside it."""
    path = Path(folder) / "ways.csv"
    with atomic_path(path) as temporary:
        ways_summary(read_ways(folder)).round(5).to_csv(temporary, index=False)
    return path
