"""Pictures whose stage 2 went astray: the files of every run of stage 2 flag them."""

from collections.abc import Mapping
from pathlib import Path

import h5py

from minddiff_utils.metrics import METHODS

__all__ = ["find_strays", "stray_note"]

# Method -> file of its run of stage 2, in a subject's folder.
FILES = {
    "stage2": "trace.h5",
    "no_z": "trace_no_z.h5",
    "no_c": "trace_no_c.h5",
    "shuffled": "trace_shuffled.h5",
    "neuraldiffuser": "controls/neuraldiffuser.h5",
    "ceiling": "controls/ceiling.h5",
    "mean_features": "controls/mean_features.h5",
}


def find_strays(folder: str | Path) -> dict[str, list[int]]:
    """Find the pictures that fell back to their iterate of least loss.

    Parameters
    ----------
    folder : str or Path
        Of a subject.

    Returns
    -------
    dict of method to list of stimulus ids
        An entry for every run of stage 2 that is there, mostly an empty list.
    """
    found = {}
    for method, name in FILES.items():
        if (path := Path(folder) / name).is_file():
            with h5py.File(path, "r") as file:
                found[method] = file["stimulus_id"][:][file["failed"][:]].tolist()
    return found


def stray_note(folders: Mapping[str, str | Path]) -> str:
    """Say below a table which of its pictures went astray.

    Parameters
    ----------
    folders : mapping of subject to the subject's folder

    Returns
    -------
    str
        A sentence of markdown; "" where no run of stage 2 is there.
    """
    found = {subject: find_strays(folder) for subject, folder in folders.items()}
    if not any(found.values()):
        return ""
    parts = [
        f"{subject}, {METHODS[method]}: {', '.join(map(str, ids))}"
        for subject, methods in found.items()
        for method, ids in methods.items()
        if ids
    ]
    about = "Pictures whose stage 2 went astray, for which the iterate of least loss stands: "
    return f"{about}{'; '.join(parts) or 'none'}.\n"
