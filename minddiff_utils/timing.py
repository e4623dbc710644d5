"""Seconds that steps take, noted beside their results."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from minddiff_utils.io import atomic_path


@contextmanager
def timed(path: str | Path, step: str, n_pictures: int) -> Iterator[None]:
    """Note how long a block takes.

    Parameters
    ----------
    path : str or Path
        CSV with the columns `step, n_pictures, seconds`. A step that is there already keeps the
        longer time: done again, it finds its results and takes none.
    step : str
    n_pictures : int
        That the step worked on.
    """
    begun = time.perf_counter()
    yield
    seconds = time.perf_counter() - begun
    known = read_seconds(path)
    same = (known["step"] == step) & (known["n_pictures"] == n_pictures)
    seconds = max([seconds, *known.loc[same, "seconds"]])
    row = pd.DataFrame({"step": [step], "n_pictures": [n_pictures], "seconds": [round(seconds, 2)]})
    known = known[known["step"] != step]
    with atomic_path(path) as temporary:
        pd.concat([known, row] if len(known) else [row]).to_csv(temporary, index=False)


def read_seconds(path: str | Path) -> pd.DataFrame:
    """Return what `timed` noted, empty if there is nothing."""
    if not Path(path).exists():
        return pd.DataFrame({"step": [], "n_pictures": [], "seconds": []})
    return pd.read_csv(path)
