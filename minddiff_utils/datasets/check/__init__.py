"""What files a recording needs: which are there, which are missing or wrong, where to get them."""

from collections.abc import Callable, Sequence
from pathlib import Path

from minddiff_utils.datasets.check.entry import (
    ORIGINS,
    Entry,
    Origin,
    download_size,
    is_ready,
    report,
)
from minddiff_utils.datasets.check.nsd import fetch_options, nsd_entries
from minddiff_utils.datasets.check.recordings import kay_entries, miyawaki_entries
from minddiff_utils.io import InputError

__all__ = [
    "INVENTORIES",
    "ORIGINS",
    "Entry",
    "Origin",
    "download_size",
    "fetch_options",
    "is_ready",
    "report",
    "take_stock",
]

# One line a dataset: a function of its path, the subjects (none named: empty), `rois` and the
# number of sessions (None for all) that returns the entries of the table.
INVENTORIES: dict[str, Callable[[Path, Sequence[str], str, int | None], list[Entry]]] = {
    "nsd": nsd_entries,
    "miyawaki": miyawaki_entries,
    "miyawaki_full": miyawaki_entries,
    "kay": kay_entries,
}


def take_stock(
    dataset: str,
    path: str | Path,
    subjects: Sequence[str] = (),
    rois: str = "kastner2015",
    sessions: int | None = None,
) -> list[Entry]:
    """List every file that a run needs, and look at each.

    Parameters
    ----------
    dataset : {"nsd", "miyawaki", "miyawaki_full", "kay"}
    path : str or Path
        The folder or file that is, or will be, the parameter `data_path`.
    subjects : sequence of str
        Whose files; none for those that are there, or the first.
    rois : str
        As the parameter `rois` of the notebooks.
    sessions : int, optional
        Only the first so many.

    Returns
    -------
    list of Entry

    Raises
    ------
    InputError
        If the dataset is unknown.
    """
    if dataset not in INVENTORIES:
        raise InputError(f"dataset={dataset!r} is unknown; choose one of {', '.join(INVENTORIES)}")
    return INVENTORIES[dataset](Path(path), tuple(subjects), rois, sessions)
