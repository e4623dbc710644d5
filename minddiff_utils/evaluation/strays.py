"""Pictures that failed: the file of every method that paints flags them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import h5py

from minddiff_utils.evaluation.metrics import METHODS

# Method -> file of its run, in a subject's folder; every other one is in `controls`.
FILES = {
    "stage1": "stage1.h5",
    "stage2": "trace.h5",
    "algorithm_1": "trace.h5",
    "no_z": "trace_no_z.h5",
    "no_c": "trace_no_c.h5",
    "shuffled": "trace_shuffled.h5",
}
SOLVERS = {"stage2": "guided", "algorithm_1": "algorithm_1"}  # whose file `trace.h5` is
LISTED = 10  # ids of one method that a note lists


def find_strays(folder: str | Path, methods: Iterable[str] | None = None) -> dict[str, list[int]]:
    """Find the pictures that failed, as `Reconstruction` defines it.

    Parameters
    ----------
    folder : str or Path
        Of a subject.
    methods : iterable of str, optional
        Only of these; None: of all that have a row in the tables.

    Returns
    -------
    dict of method to list of stimulus ids
        An entry for every run that is there, mostly an empty list.
    """
    found = {}
    for method in METHODS if methods is None else methods:
        path = Path(folder) / FILES.get(method, f"controls/{method}.h5")
        if path.is_file():
            with h5py.File(path, "r") as file:
                solver = json.loads(file.attrs["record"])["solver"]
                if SOLVERS.get(method, solver) == solver:
                    found[method] = file["stimulus_id"][:][file["failed"][:]].tolist()
    return found


def stray_note(
    folders: Mapping[str, str | Path], methods: Iterable[str] | None = None, quiet: bool = False
) -> str:
    """Say how many pictures of each method failed, and which.

    Parameters
    ----------
    folders : mapping of subject to the subject's folder
    methods : iterable of str, optional
        As for `find_strays`.
    quiet : bool
        Say nothing where no picture failed.

    Returns
    -------
    str
        A sentence of markdown; "" where none of the runs is there.
    """
    methods = None if methods is None else list(methods)
    found = {subject: find_strays(folder, methods) for subject, folder in folders.items()}
    parts = [
        f"{subject}, {METHODS.get(method, method)}: {len(ids)} ({_listed(ids)})"
        for subject, failed in found.items()
        for method, ids in failed.items()
        if ids
    ]
    if not parts and (quiet or not any(found.values())):
        return ""
    about = "**Failed pictures** (values that are no numbers, or a loss that doubled; the iterate "
    about += "of least loss stands for them, grey where there is none): "
    return f"\n{about if parts else 'Failed pictures: '}{'; '.join(parts) or 'none'}.\n"


def _listed(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:LISTED])) + ", …" * (len(ids) > LISTED)
