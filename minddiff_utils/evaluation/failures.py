"""Pictures that failed: the file of every method that paints flags them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import h5py

from minddiff_utils.evaluation.methods import METHODS, ROWS, SOLVERS

LISTED = 10  # ids of one method that a note lists


def failed_pictures(folder: str | Path, methods: Iterable[str] = METHODS) -> dict[str, list[int]]:
    """Find the pictures that failed, as `Stage2` defines it.

    Parameters
    ----------
    folder : str or Path
        Of a subject.
    methods : iterable of str
        Only of these; else of all that have a row in the tables.

    Returns
    -------
    dict of method to list of stimulus ids
        An entry for every run that is there, mostly an empty list.
    """
    found = {}
    for method in methods:
        name = ROWS[method].file if method in ROWS else ""
        path = Path(folder) / (name or f"controls/{method}.h5")
        if path.is_file():
            with h5py.File(path, "r") as file:
                solver = json.loads(file.attrs["record"])["solver"]
                if SOLVERS.get(method, solver) == solver:
                    found[method] = file["stimulus_id"][:][file["failed"][:]].tolist()
    return found


def failure_note(
    folders: Mapping[str, str | Path], methods: Iterable[str] = METHODS, quiet: bool = False
) -> str:
    """Say how many pictures of each method failed, and which.

    Parameters
    ----------
    folders : mapping of subject to the subject's folder
    methods : iterable of str
        As for `failed_pictures`.
    quiet : bool
        Say nothing where no picture failed.

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
            "\n**Failed pictures** (values that are no numbers, or a loss that doubled; the "
            "iterate of least loss stands for them, grey where there is none): "
            f"{'; '.join(parts)}.\n"
        )
    return "" if quiet or not any(found.values()) else "\nFailed pictures: none.\n"
