"""Responses of many sessions gathered into one file on disk, and read from there row by row.

The betas of a subject of NSD fill 42 GB; the voxels of its visual cortex fill about one. They are
gathered session by session, so that memory holds one session's share and no more.
"""

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

from minddiff_utils.datasets.content import trial_fault
from minddiff_utils.datasets.nsd.betas import BetaFile, Shape, read_stored
from minddiff_utils.datasets.reading import open_hdf5, read_rows
from minddiff_utils.io import InputError, lock_file

GATHERED = "betas.h5"  # in the folder of the cache
LOCK = ".betas.lock"
FORMAT = 1  # counts up when the file's layout changes
# Why a voxel cannot be used, by the number under which the file notes it.
FAULTS = ("", "not a number", "zero throughout", "constant")

Rows = int | slice | Sequence[int] | np.ndarray


@dataclass(frozen=True)
class StoredResponses:
    """Responses in a file, (n_trials, n_voxels) float32, of which only what is asked for is read.

    Indexing with rows, or with rows and columns, gives an ordinary array, as does `np.asarray`.
    Lists of rows and of columns give each of the rows at each of the columns.

    Parameters
    ----------
    path : Path
        A file that `gather_responses` wrote.
    key : str
        What it was gathered from; the file may have been replaced since.
    shape : tuple of int
    voxels : int64 array of shape (n_voxels,)
        Which voxels of the file these are.
    """

    path: Path
    key: str
    shape: tuple[int, int]
    voxels: np.ndarray

    dtype = np.dtype(np.float32)
    ndim = 2

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Rows | tuple[Rows, Rows]) -> np.ndarray:
        """Read some trials, some voxels; float32.

        Raises
        ------
        InputError
            If the file is missing, damaged, or was gathered anew from something else.
        """
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        trials = np.arange(self.shape[0])[_plain(rows)]
        voxels = self.voxels[_plain(columns)]
        with open_hdf5(self.path, "responses") as stored:
            if stored.file.attrs.get("key") != self.key:
                raise InputError(
                    f"{self.path} was gathered anew with other parameters since this subject was "
                    "loaded: load it again."
                )
            scale = int(stored.attrs["scale"])
            flat = np.atleast_1d(voxels)
            first = int(flat.min()) if flat.size else 0
            reach = slice(first, int(flat.max()) + 1 if flat.size else 0)
            found = read_rows(stored, np.atleast_1d(trials), (reach,))
        if len(flat) < found.shape[1]:
            found = found[:, flat - first]
        found = found.astype(np.float32)
        if scale != 1:
            found /= scale
        return found.reshape(np.shape(trials) + np.shape(voxels))

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("responses on disk cannot be an array without being read")
        return self[:].astype(dtype or self.dtype, copy=False)


@dataclass(frozen=True)
class Gathered:
    """Responses of all sessions read, before voxels are left out.

    Parameters
    ----------
    responses : float32 array of shape (n_trials, n_voxels), or StoredResponses
    faults : uint8 array of shape (n_sessions, n_voxels)
        Places in `FAULTS`; 0 where nothing is wrong.
    """

    responses: np.ndarray | StoredResponses
    faults: np.ndarray

    def without_faults(self) -> tuple[np.ndarray | StoredResponses, np.ndarray, dict[str, int]]:
        """Leave out the voxels that are at fault in any session.

        Returns
        -------
        responses : array or StoredResponses of shape (n_trials, n_kept)
        keep : bool array of shape (n_voxels,)
        dropped : dict of str to int
            How many voxels were left out for which reason, the first of `FAULTS` that applies.
        """
        marks = np.where(self.faults == 0, len(FAULTS), self.faults).min(axis=0)
        keep = marks == len(FAULTS)
        dropped = {name: int((marks == i).sum()) for i, name in enumerate(FAULTS) if i}
        dropped = {name: count for name, count in dropped.items() if count}
        if isinstance(self.responses, StoredResponses):
            of = self.responses
            shape = (of.shape[0], int(keep.sum()))
            return StoredResponses(of.path, of.key, shape, of.voxels[keep]), keep, dropped
        return _squeeze(self.responses, keep), keep, dropped


def gather_responses(
    files: Mapping[int, BetaFile], ijk: np.ndarray, shape: Shape, cache: str | Path | None = None
) -> Gathered:
    """Read some voxels of several sessions.

    Parameters
    ----------
    files : dict of int to BetaFile
        By number of the session, in order.
    ijk : int array of shape (n_voxels, 3)
        Places in the NIfTI volume (X, Y, Z).
    shape : tuple of three int
        Of that volume.
    cache : str or Path, optional
        A folder for the file `betas.h5`. It is written session by session, so that a run that was
        stopped goes on with the next session, and taken as it is by the next run with the same
        voxels and the same files (by name, size and date). Without it, everything is read into
        memory.

    Returns
    -------
    Gathered

    Raises
    ------
    InputError
        If a file is damaged, a voxel is NaN in some trials only, or the disk is too full.
    """
    if cache is None:
        return _gather_in_memory(files, ijk, shape)
    plan = _Plan.of(files, ijk, shape)
    path = Path(cache) / GATHERED
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path.parent):
        if not plan.is_whole(path):
            _gather_on_disk(plan, ijk, path)
    with open_hdf5(path, "faults") as faults:
        voxels = np.arange(len(ijk))
        return Gathered(StoredResponses(path, plan.key, plan.size, voxels), faults[()])


@dataclass(frozen=True)
class _Plan:
    """What is gathered from what, and the key that stands for all of it."""

    files: Mapping[int, BetaFile]
    shape: Shape
    size: tuple[int, int]
    dtype: np.dtype
    key: str

    @classmethod
    def of(cls, files: Mapping[int, BetaFile], ijk: np.ndarray, shape: Shape) -> "_Plan":
        # NSD's integers stay integers: half the size, and exact.
        scaled = {file.scale for file in files.values()}
        dtype = np.dtype(np.float32)
        if scaled != {1} and len(scaled) == 1:
            dtype = np.result_type(*(file.dtype for file in files.values()))
        facts = [(number, file.path.name, file.path.stat()) for number, file in files.items()]
        content = {
            "format": FORMAT,
            "sessions": [[n, name, stat.st_size, stat.st_mtime_ns] for n, name, stat in facts],
            "folder": str(next(iter(files.values())).path.resolve().parent),
            "voxels": hashlib.sha256(np.ascontiguousarray(ijk, np.int64).tobytes()).hexdigest(),
            "shape": [int(n) for n in shape],
            "dtype": str(dtype),
        }
        key = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        n_trials = sum(file.n_trials for file in files.values())
        return cls(files, tuple(shape), (n_trials, len(ijk)), dtype, key)

    @property
    def scale(self) -> int:
        """What divides the stored values to give per cent."""
        return next(iter(self.files.values())).scale if self.dtype.kind in "iu" else 1

    def rows(self) -> Iterator[tuple[int, BetaFile, slice]]:
        """Yield place, file and rows of each session."""
        first = 0
        for place, file in enumerate(self.files.values()):
            yield place, file, slice(first, first + file.n_trials)
            first += file.n_trials

    def is_whole(self, path: Path) -> bool:
        """Whether `path` holds all of this."""
        try:
            with h5py.File(path, "r") as file:
                return file.attrs.get("key") == self.key and file["responses"].shape == self.size
        except (OSError, KeyError):
            return False


def _gather_in_memory(files: Mapping[int, BetaFile], ijk: np.ndarray, shape: Shape) -> Gathered:
    """Read all sessions into one array."""
    responses = np.empty((sum(file.n_trials for file in files.values()), len(ijk)), np.float32)
    faults, first = [], 0
    for file in files.values():
        values = read_stored(file, ijk, shape)
        faults.append(_faults(file.path, values))
        block = responses[first : first + len(values)]
        np.divide(values, np.float32(file.scale), out=block, casting="same_kind")
        first += len(values)
    return Gathered(responses, np.stack(faults))


def _gather_on_disk(plan: _Plan, ijk: np.ndarray, path: Path) -> None:
    """Write `path`, going on with what an earlier call has left of the same plan."""
    partial = path.with_name(f".{path.stem}-{plan.key[:16]}.partial")
    for other in path.parent.glob(f".{path.stem}-*.partial"):
        if other != partial:
            other.unlink()
    done = _sessions_done(plan, partial)
    if done is None:
        _check_space(plan, path)
        _lay_out(plan, ijk, partial)
        done = np.zeros(len(plan.files), bool)
    bar = tqdm(
        total=len(done), initial=int(done.sum()), desc="gathering sessions", disable=len(done) < 2
    )
    for place, file, rows in plan.rows():
        if done[place]:
            continue
        values = read_stored(file, ijk, plan.shape)
        faults = _faults(file.path, values)
        values = np.ascontiguousarray(values, plan.dtype)
        if plan.scale == 1 and file.scale != 1:
            values /= file.scale
        _write_session(partial, place, rows, values, faults)
        bar.update()
    bar.close()
    os.replace(partial, path)


def _lay_out(plan: _Plan, ijk: np.ndarray, partial: Path) -> None:
    """Create the file at its full size: later only values are written, so a kill does no harm."""
    early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    partial.unlink(missing_ok=True)
    with h5py.File(partial, "w") as file:
        responses = file.create_dataset("responses", plan.size, plan.dtype, dcpl=early)
        responses.attrs["scale"] = plan.scale
        responses.attrs["about"] = "(trial, voxel); divide by scale for per cent signal change"
        file["voxel_ijk"] = np.asarray(ijk, np.int64)
        sessions = [[number, file.n_trials] for number, file in plan.files.items()]
        file["session"] = np.repeat(*np.array(sessions, np.int64).T)
        file["faults"] = np.zeros((len(plan.files), plan.size[1]), np.uint8)
        # One number a session, zero until it is there.
        file["checksum"] = np.zeros(len(plan.files), np.int64)
        file.attrs["key"] = plan.key


def _write_session(
    partial: Path, place: int, rows: slice, values: np.ndarray, faults: np.ndarray
) -> None:
    """Write one session; its checksum comes last, and so says that all the rest is there."""
    with h5py.File(partial, "r+") as file:
        file["responses"][rows] = values
        file["faults"][place] = faults
        file.flush()
        file["checksum"][place] = _checksum(values, faults)


def _sessions_done(plan: _Plan, partial: Path) -> np.ndarray | None:
    """Return which sessions a file left behind holds whole; None if it is of no use."""
    try:
        with h5py.File(partial, "r") as file:
            if file.attrs.get("key") != plan.key:
                return None
            done = file["checksum"][()] != 0
            for place, _, rows in plan.rows():
                if done[place]:
                    values, faults = file["responses"][rows], file["faults"][place]
                    done[place] = _checksum(values, faults) == file["checksum"][place]
            return done
    except (OSError, KeyError):
        return None


def _checksum(values: np.ndarray, faults: np.ndarray) -> int:
    """Return a number above zero."""
    return zlib.crc32(faults, zlib.crc32(values)) + 1


def _check_space(plan: _Plan, path: Path) -> None:
    needed = plan.size[0] * plan.size[1] * plan.dtype.itemsize + 2**20
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise InputError(
            f"{path} needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free there: make room "
            "or choose another run_dir."
        )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time write into a folder; the others wait."""
    with open(folder / LOCK, "a", encoding="utf-8") as file:
        lock_file(file, wait=True)  # ends with the process, also when that is killed
        yield


def _faults(path: Path, values: np.ndarray) -> np.ndarray:
    """Return what is wrong with each voxel of a session; uint8 (n_voxels,), places in `FAULTS`.

    Raises
    ------
    InputError
        If a voxel is NaN or infinite in some trials only: no part of the brain does that; or
        trials are zero throughout or equal to others.
    """
    fault = trial_fault(values)
    if fault:
        raise InputError(f"{path}: {fault} Fetch it again.")
    low, high = values.min(axis=0), values.max(axis=0)
    faults = np.where(low == high, np.where(low == 0, 2, 3), 0).astype(np.uint8)
    bad = ~np.isfinite(low) | ~np.isfinite(high)
    if bad.any():
        missing = ~np.isfinite(values[:, bad])
        partly = ~missing.all(axis=0)
        if partly.any():
            trial = int(np.flatnonzero(missing[:, partly].any(axis=1))[0])
            raise InputError(
                f"{path}: betas of {int(partly.sum())} voxels are NaN or infinite in some trials "
                f"(first in trial {trial}). The file is damaged: fetch it again."
            )
        faults[bad] = 1
    return faults


def _squeeze(responses: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Move the columns to keep together, in place: a second array might not fit."""
    if keep.all():
        return responses
    n = int(keep.sum())
    for first in range(0, len(responses), 256):
        block = responses[first : first + 256]
        block[:, :n] = block[:, keep]
    return responses[:, :n]


def _plain(index: Rows) -> int | slice | np.ndarray:
    """Return an index as numpy takes it; of an empty list it would make one of floats."""
    if isinstance(index, int | slice | np.integer):
        return index
    return np.asarray(index) if len(index) else np.empty(0, np.int64)
