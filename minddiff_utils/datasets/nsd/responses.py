"""Single-trial responses ("betas"): read from NSD's HDF5 or NIfTI files, gathered into one file.

NSD stores them as int16, 300 to one per cent signal change, in both formats. The axes of the HDF5
dataset, (n_trials, Z, Y, X), are the reverse of those of the NIfTI volume, (X, Y, Z, n_trials).

The betas of a subject fill 42 GB; the voxels of its visual cortex fill about one. They are gathered
session by session, so that memory holds one session's share and no more.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import h5py
import nibabel as nib
import numpy as np

from minddiff_utils.datasets.nsd.design import PART, held_rows
from minddiff_utils.datasets.reading import open_hdf5, read_rows, reading
from minddiff_utils.datasets.recording import partly_missing, trial_fault
from minddiff_utils.io import Ids, InputError, atomic_path, open_to_write, progress, rows_done

BETA_SCALE = 300
BLOCK_BYTES = 32 * 2**20  # how much of a session is held at once
NIFTI = (".gz", ".nii")
PLACE = np.array([10**6, 10**3, 1])  # in a part of a file, voxel (x, y, z) is xxxyyyzzz
GATHERED = "betas.h5"  # in the folder of the cache

Rows: TypeAlias = "int | slice | Ids"
Target: TypeAlias = np.ndarray | h5py.Dataset


class BetaFile(NamedTuple):
    """What one session's file holds, known without reading its values.

    Parameters
    ----------
    path : Path
    n_trials : int
    scale : int
        What divides the values to give per cent signal change: 300 for NSD's int16, else 1.
    """

    path: Path
    n_trials: int
    scale: int


def inspect_betas(path: str | Path, shape: tuple[int, int, int]) -> BetaFile:
    """Look at a session's file without reading its values.

    Parameters
    ----------
    path : str or Path
        `betas_sessionNN.hdf5`, `.nii.gz` or `.nii`, or a part of the first.
    shape : tuple of three int
        Of the NIfTI volume (X, Y, Z).

    Returns
    -------
    BetaFile

    Raises
    ------
    InputError
        If the file is missing or damaged, or of another shape or type.
    """
    path, plain = Path(path), True
    if path.suffix in NIFTI:
        with reading(path, "NIfTI file", ""):
            image: Any = nib.load(path)
        found, dtype = image.shape, image.dataobj.dtype
        # A header that scales integers makes them per cent, not NSD's integers.
        plain = (image.dataobj.slope, image.dataobj.inter) == (1, 0)
    else:
        with open_hdf5(path, "betas") as betas:
            found, dtype = betas.shape[::-1], betas.dtype
            if path.name.endswith(PART):
                found = (*json.loads(betas.file.attrs["record"])["volume"], found[0])
    known = dtype.kind == "f" or (dtype.kind, dtype.itemsize) == ("i", 2)
    if len(found) != 4 or found[:3] != tuple(shape) or not known:
        expected = f"{tuple(shape)}, the grid of the regions, by trials, int16 or float in per cent"
        raise InputError(f"{path}: betas are {dtype} {found}; expected {expected}. Fetch it again.")
    return BetaFile(path, found[3], BETA_SCALE if plain and dtype.kind == "i" else 1)


def stored_type(scale: int) -> type[np.generic]:
    """Return the type of values that `scale` divides to give per cent."""
    return np.float32 if scale == 1 else np.int16


def read_stored(file: BetaFile, ijk: np.ndarray) -> np.ndarray:
    """Read some voxels of one session as they are stored, never holding the whole volume.

    Parameters
    ----------
    file : BetaFile
    ijk : int array of shape (n_voxels, 3)
        Places in the NIfTI volume (X, Y, Z).

    Returns
    -------
    int16 or float32 array of shape (n_trials, n_voxels)

    Raises
    ------
    InputError
        If the file is damaged.
    """
    # Voxel after voxel: NSD's files keep all trials of a voxel together.
    out = np.empty((len(ijk), file.n_trials), stored_type(file.scale))
    if file.path.suffix in NIFTI:
        with reading(file.path, "NIfTI file", ""):
            _fill_from_nifti(file.path, ijk, out)
        return out.T
    with open_hdf5(file.path, "betas") as betas:
        if file.path.name.endswith(PART):
            out[:] = read_rows(betas, rows_of_voxels(file.path, ijk))
        else:
            (fill_from_columns if one_chunk_a_voxel(betas) else _fill_from_slabs)(betas, ijk, out)
    return out.T


def rows_of_voxels(path: Path, ijk: np.ndarray) -> np.ndarray:
    """Find the rows of some voxels in a part of a session's file; InputError if it lacks some."""
    return held_rows(path, "voxel", ijk @ PLACE)


def one_chunk_a_voxel(betas: h5py.Dataset) -> bool:
    """Whether all trials of a voxel lie in one piece, as they are: NSD's own layout."""
    packed = betas.id.get_create_plist().get_nfilters()
    return betas.chunks == (len(betas), 1, 1, 1) and not packed


def _fill_from_nifti(path: Path, ijk: np.ndarray, out: np.ndarray) -> None:
    """Read a NIfTI file from front to end, a few volumes at a time."""
    # The file stays open, so that a `.gz` is unpacked once, not once a block.
    image: Any = nib.load(path, keep_file_open=True)
    stored = image.dataobj
    step = max(1, BLOCK_BYTES // (int(np.prod(stored.shape[:3])) * stored.dtype.itemsize))
    for first in range(0, stored.shape[3], step):
        block = stored[..., first : first + step]
        out[:, first : first + step] = block[tuple(ijk.T)]


def fill_from_columns(betas: h5py.Dataset, ijk: np.ndarray, out: np.ndarray) -> None:
    """Read NSD's own chunks, each one voxel by all trials, in the order of the volume.

    Nothing else is read at all. Asked for as selections they would take five times as long.
    """
    for voxel in np.lexsort(ijk.T):
        corner = ijk[voxel, ::-1].tolist()
        try:
            out[voxel] = np.frombuffer(betas.id.read_direct_chunk((0, *corner))[1], betas.dtype)
        except RuntimeError:  # a chunk that was never written holds the fill value
            out[voxel] = betas[(slice(None), *corner)]


def _fill_from_slabs(betas: h5py.Dataset, ijk: np.ndarray, out: np.ndarray) -> None:
    """Read the planes that hold a voxel, as thick and as many trials at a time as a chunk is."""
    x, y, z = ijk.T
    n_at_once = max(1, BLOCK_BYTES // (betas.dtype.itemsize * int(np.prod(betas.shape[1:]))))
    n_trials, thick = (betas.chunks or (n_at_once, betas.shape[1]))[:2]
    for slab in np.unique(z // thick):
        here, low = np.flatnonzero(z // thick == slab), slab * thick
        for first in range(0, len(betas), n_trials):
            block = betas[first : first + n_trials, low : low + thick]
            out[here, first : first + len(block)] = block[:, z[here] - low, y[here], x[here]].T


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
    shape : tuple of two int
    voxels : int64 array of shape (n_voxels,)
        Which voxels of the file these are.
    """

    path: Path
    key: str
    shape: tuple[int, int]
    voxels: np.ndarray

    def __getitem__(self, index: "Rows | tuple[Rows, Rows]") -> np.ndarray:
        """Read some trials, some voxels; float32.

        Raises
        ------
        InputError
            If the file is missing, damaged, or was gathered anew from something else.
        """
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        trials, voxels = np.arange(self.shape[0])[rows], self.voxels[columns]
        near = slice(voxels.min(), voxels.max() + 1)
        with open_hdf5(self.path, "responses") as stored:
            if stored.file.attrs["record"] != self.key:
                why = "was gathered anew with other parameters since this subject was loaded"
                raise InputError(f"{self.path} {why}: load it again.")
            found = read_rows(stored, np.atleast_1d(trials), (near,))
            scale = np.float32(stored.attrs["scale"])
        found = found[:, np.atleast_1d(voxels) - near.start] / scale
        return found.reshape(np.shape(trials) + np.shape(voxels))


def gather_responses(
    files: Mapping[int, BetaFile], ijk: np.ndarray, cache: str | Path | None = None, n_test: int = 0
) -> tuple[np.ndarray | StoredResponses, np.ndarray]:
    """Read some voxels of several sessions, but for those that are of no use in one of them.

    Parameters
    ----------
    files : dict of int to BetaFile
        By number of the session, in order.
    ijk : int array of shape (n_voxels, 3)
        Places in the NIfTI volume (X, Y, Z).
    cache : str or Path, optional
        A folder for the file `betas.h5`, which the next run takes as it is if it has the same
        voxels and files (by name, size and date). Without it, everything is read into memory.
    n_test : int
        So many of the last sessions only test, and have no say in which voxels are kept.

    Returns
    -------
    responses : float32 array of shape (n_trials, n_kept), or StoredResponses
        In per cent signal change.
    keep : bool array of shape (n_voxels,)
        Which voxels change in every session but those that only test, and are numbers.

    Raises
    ------
    InputError
        If a file is damaged, a voxel is NaN in some trials only, or the disk is too full.
    """
    lengths = [file.n_trials for file in files.values()]
    size, usual = (sum(lengths), len(ijk)), len(files) - n_test
    if cache is None:
        responses = np.empty(size, np.float32)
        keep = ~np.any(_fill(files, ijk, responses, scale=1)[:usual], axis=0)
        return responses if keep.all() else responses[:, keep], keep
    path, key = Path(cache) / GATHERED, _key(files, ijk)
    if rows_done(path, key) != size[0]:
        # NSD's integers stay integers, if all sessions hold some: half the size, and exact.
        scale = min(file.scale for file in files.values())
        with atomic_path(path) as new, open_to_write(new, n_bytes=4 * size[0] * size[1]) as stored:
            responses = stored.create_dataset("responses", size, stored_type(scale))
            responses.attrs["scale"] = scale  # divides the values to give per cent
            stored["voxel_ijk"] = np.asarray(ijk, np.int64)
            stored["session"] = np.repeat(np.array(list(files), np.int64), lengths)
            stored["faults"] = _fill(files, ijk, responses, scale).astype(np.uint8)
            stored.attrs["record"], stored.attrs["done"] = key, size[0]
    with open_hdf5(path, "faults") as faults:
        keep = ~faults[:usual].any(axis=0)
    return StoredResponses(path, key, (size[0], int(keep.sum())), np.flatnonzero(keep)), keep


def _fill(files: Mapping[int, BetaFile], ijk: np.ndarray, out: Target, scale: int) -> np.ndarray:
    """Read sessions into `out`, per cent times `scale`; return which voxels are `_faulty`."""
    stop, faults = 0, []
    for file in progress(files.values(), "gathering sessions"):
        values = read_stored(file, ijk)
        faults.append(_faulty(file.path, values))
        start, stop = stop, stop + file.n_trials
        out[start:stop] = values if file.scale == scale else values / np.float32(file.scale)
    return np.array(faults)


def _key(files: Mapping[int, BetaFile], ijk: np.ndarray) -> str:
    """Return a digest of what is gathered, and from which files."""
    facts = [(number, file.path.absolute(), file.path.stat()) for number, file in files.items()]
    sessions = [(number, str(path), stat.st_size, stat.st_mtime_ns) for number, path, stat in facts]
    return hashlib.sha256(json.dumps([sessions, ijk.tolist()]).encode()).hexdigest()


def _faulty(path: Path, values: np.ndarray) -> np.ndarray:
    """Return which voxels of a session are constant or not a number; bool (n_voxels,).

    Raises
    ------
    InputError
        If a voxel is NaN or infinite in some trials only: no part of the brain does that; or
        trials are zero throughout or equal to others.
    """
    if fault := partly_missing(values) or trial_fault(values):
        raise InputError(f"{path}: {fault} Fetch it again.")
    return ~np.isfinite(values[0]) | (values.min(axis=0) == values.max(axis=0))
