"""Responses of many sessions gathered into one file on disk, and read from there row by row.

The betas of a subject of NSD fill 42 GB; the voxels of its visual cortex fill about one. They are
gathered session by session, so that memory holds one session's share and no more.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minddiff_utils.datasets.content import trial_fault
from minddiff_utils.datasets.nsd.betas import BetaFile, read_stored, stored_type
from minddiff_utils.datasets.reading import UnreadableError, open_file, open_hdf5, read_rows
from minddiff_utils.io import InputError
from minddiff_utils.storage import open_to_write

GATHERED = "betas.h5"  # in the folder of the cache

Rows = int | slice | Sequence[int] | np.ndarray


@dataclass(frozen=True)
class StoredResponses:
    """Responses in a file, (n_trials, n_voxels) float32, of which only what is asked for is read.

    Indexing with rows, or with rows and columns, gives an ordinary array. Lists of rows and of
    columns give each of the rows at each of the columns.

    Parameters
    ----------
    path : Path
        A file that `gather_responses` wrote.
    key : str
        What it was gathered from; the file may have been replaced since.
    n_trials : int
    voxels : int64 array of shape (n_voxels,)
        Which voxels of the file these are.
    """

    path: Path
    key: str
    n_trials: int
    voxels: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """(n_trials, n_voxels)."""
        return self.n_trials, len(self.voxels)

    def __getitem__(self, index: Rows | tuple[Rows, Rows]) -> np.ndarray:
        """Read some trials, some voxels; float32.

        Raises
        ------
        InputError
            If the file is missing, damaged, or was gathered anew from something else.
        """
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        trials, voxels = np.arange(self.n_trials)[rows], self.voxels[columns]
        near = slice(voxels.min(), voxels.max() + 1)
        with open_hdf5(self.path, "responses") as stored:
            if stored.file.attrs["key"] != self.key:
                raise InputError(
                    f"{self.path} was gathered anew with other parameters since this subject was "
                    "loaded: load it again."
                )
            found = read_rows(stored, np.atleast_1d(trials), (near,))
            scale = np.float32(stored.attrs["scale"])
        found = found[:, np.atleast_1d(voxels) - near.start] / scale
        return found.reshape(np.shape(trials) + np.shape(voxels))


def gather_responses(
    files: Mapping[int, BetaFile], ijk: np.ndarray, cache: str | Path | None = None
) -> tuple[np.ndarray | StoredResponses, np.ndarray]:
    """Read some voxels of several sessions, but for those that are of no use in one of them.

    Parameters
    ----------
    files : dict of int to BetaFile
        By number of the session, in order.
    ijk : int array of shape (n_voxels, 3)
        Places in the NIfTI volume (X, Y, Z).
    cache : str or Path, optional
        A folder for the file `betas.h5`. It is written session by session, so that a run that was
        stopped goes on with the next session, and taken as it is by the next run with the same
        voxels and the same files (by name, size and date). Without it, everything is read into
        memory.

    Returns
    -------
    responses : float32 array of shape (n_trials, n_kept), or StoredResponses
        In per cent signal change.
    keep : bool array of shape (n_voxels,)
        Which voxels change in every session, and are numbers.

    Raises
    ------
    InputError
        If a file is damaged, a voxel is NaN in some trials only, or the disk is too full.
    """
    n_trials = sum(file.n_trials for file in files.values())
    if cache is None:
        responses, faults = np.empty((n_trials, len(ijk)), np.float32), np.zeros(len(ijk), bool)
        for _, rows, values, faulty in _read_sessions(files, ijk, scale=1):
            responses[rows] = values
            faults |= faulty
        return (responses[:, ~faults] if faults.any() else responses), ~faults
    path, key = Path(cache) / GATHERED, _key(files, ijk)
    if _sessions_done(path, key) < len(files):
        _gather_on_disk(files, ijk, key, path)
    with open_hdf5(path, "faults") as stored:
        keep = ~stored[()].any(axis=0)
    return StoredResponses(path, key, n_trials, np.flatnonzero(keep)), keep


def _gather_on_disk(files: Mapping[int, BetaFile], ijk: np.ndarray, key: str, path: Path) -> None:
    """Write `path`, going on with what an earlier call has left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial")
    done = _sessions_done(partial, key)
    # NSD's integers stay integers, if all sessions hold some: half the size, and exact.
    scale = min(file.scale for file in files.values())
    lengths = [file.n_trials for file in files.values()]
    needed = 0 if done else sum(lengths) * len(ijk) * np.dtype(stored_type(scale)).itemsize
    with open_to_write(partial, "a" if done else "w", needed) as stored:
        if not done:
            stored.create_dataset("responses", (sum(lengths), len(ijk)), stored_type(scale))
            stored["responses"].attrs["scale"] = scale
            stored["responses"].attrs["about"] = "(trial, voxel); divide by scale for per cent"
            stored["faults"] = np.zeros((len(files), len(ijk)), np.uint8)
            stored["voxel_ijk"] = np.asarray(ijk, np.int64)
            stored["session"] = np.repeat(np.array(list(files), np.int64), lengths)
            stored.attrs["key"] = key
        for place, rows, values, faulty in _read_sessions(files, ijk, scale, done):
            stored["responses"][rows] = values
            stored["faults"][place] = faulty
            stored.attrs["done"] = place + 1
            stored.flush()
    os.replace(partial, path)


def _key(files: Mapping[int, BetaFile], ijk: np.ndarray) -> str:
    """Return a digest of what is gathered, and from which files."""
    facts = [(number, file.path.absolute(), file.path.stat()) for number, file in files.items()]
    sessions = [(number, str(path), stat.st_size, stat.st_mtime_ns) for number, path, stat in facts]
    return hashlib.sha256(json.dumps([sessions, ijk.tolist()]).encode()).hexdigest()


def _sessions_done(path: Path, key: str) -> int:
    """Return how many sessions a file holds; 0 if it is of no use, or not there."""
    try:
        with open_file(path) as stored:
            return int(stored.attrs["done"]) if stored.attrs["key"] == key else 0
    except UnreadableError:  # another process is writing it
        raise
    except (InputError, KeyError):
        return 0


def _read_sessions(
    files: Mapping[int, BetaFile], ijk: np.ndarray, scale: int, done: int = 0
) -> Iterator[tuple[int, slice, np.ndarray, np.ndarray]]:
    """Yield place, rows, values times `scale`, and faulty voxels of each session not yet done."""
    stop = np.cumsum([file.n_trials for file in files.values()])
    todo = list(enumerate(files.values()))[done:]
    bar = {"total": len(files), "initial": done, "disable": len(files) < 2}
    for place, file in tqdm(todo, "gathering sessions", **bar):
        values = read_stored(file, ijk)
        faulty = _faulty(file.path, values)
        if file.scale != scale:
            values = values / np.float32(file.scale)
        yield place, slice(stop[place] - file.n_trials, stop[place]), values, faulty


def _faulty(path: Path, values: np.ndarray) -> np.ndarray:
    """Return which voxels of a session are constant or not a number; bool (n_voxels,).

    Raises
    ------
    InputError
        If a voxel is NaN or infinite in some trials only: no part of the brain does that; or
        trials are zero throughout or equal to others.
    """
    fault = trial_fault(values)
    bad = ~np.isfinite(values)
    partly = bad.any(axis=0) & ~bad.all(axis=0)
    if partly.any():
        trial = int(np.flatnonzero(bad[:, partly].any(axis=1))[0])
        fault = (
            f"betas of {int(partly.sum())} voxels are NaN or infinite in some trials (first in "
            f"trial {trial}). The file is damaged."
        )
    if fault:
        raise InputError(f"{path}: {fault} Fetch it again.")
    return bad.all(axis=0) | (values.min(axis=0) == values.max(axis=0))
