"""Files of pictures: which of them failed, and which were made once and still follow."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import h5py
import numpy as np

from minddiff_utils.evaluation.methods import METHODS, ROWS, SOLVERS

LISTED = 10  # ids of one method that a note lists
SAME = 1e-3  # of the spread of statistics: what rounding leaves


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


def stored_pictures(
    path: str | Path, decoded: Mapping[str, np.ndarray]
) -> tuple[np.ndarray | None, str]:
    """Return what `studies.stored.store_pictures` kept, if it follows from these decoded features.

    Parameters
    ----------
    path : str or Path
    decoded : mapping of str to array, shape (n, …)
        Of this run. Rounding of another processor is no difference.

    Returns
    -------
    pictures : uint8 array, shape (n, n_seeds, h, w, 3), or None
        From draws of the noise with the seeds 0, 1 …
    note : str
        How they were made, or why there are none.
    """
    if not Path(path).is_file():
        return None, "No pictures of Algorithm 1 are stored for this recording."
    with h5py.File(path, "r") as file:
        ids = set(file["stimulus_id"][:].tolist())
        if ids < set(np.asarray(decoded["stimulus_id"]).tolist()):
            n = f"{len(ids)} of {len(decoded['stimulus_id'])}"
            return None, f"Of the pictures of Algorithm 1, {n} are stored yet: too few for a row."
        statistics, ours = file["statistics"][:], decoded_statistics(decoded)
        same = np.array_equal(file["stimulus_id"][:], decoded["stimulus_id"])
        same &= statistics.shape == ours.shape  # as many blocks
        if not same or not np.allclose(statistics, ours, rtol=0, atol=SAME * statistics.std()):
            return None, "The stored pictures of Algorithm 1 follow from other decoded features."
        return file["pictures"][:], f"Stored, not made here: {file.attrs['about']}"


def add_stored(
    draws: Mapping[int, dict[str, np.ndarray]], path: str | Path, decoded: Mapping[str, np.ndarray]
) -> None:
    """Add what is stored of Algorithm 1 to the draws of the noise that a run has made.

    Parameters
    ----------
    draws : dict of seed to dict of method to uint8 array, shape (n, h, w, 3)
        Extended in place, unless the run has made Algorithm 1's pictures itself.
    path, decoded
        As for `stored_pictures`.
    """
    stored, _ = stored_pictures(path, decoded)
    for seed, drawn in draws.items():
        if stored is not None and seed < stored.shape[1]:
            drawn.setdefault("algorithm_1", stored[:, seed])


def decoded_statistics(decoded: Mapping[str, np.ndarray]) -> np.ndarray:
    """Mean and standard deviation of each picture's decoded values; float32 (n, n_names, 2)."""
    names = sorted(name for name in decoded if name in ("z", "c") or name.startswith("block_"))
    found = []
    for name in names:
        values = decoded[name].reshape(len(decoded[name]), -1).astype(np.float64)
        found.append(np.stack([np.nanmean(values, 1), np.nanstd(values, 1)], axis=1))
    return np.stack(found, axis=1).astype(np.float32)
