"""Single-trial responses ("betas") of one session, from NSD's HDF5 or NIfTI files.

NSD stores them as int16, 300 to one per cent signal change, in both formats. The axes of the HDF5
dataset, (n_trials, Z, Y, X), are the reverse of those of the NIfTI volume, (X, Y, Z, n_trials).
"""

from pathlib import Path
from typing import NamedTuple

import h5py
import nibabel as nib
import numpy as np
from nibabel.openers import ImageOpener

from minddiff_utils.datasets.reading import open_hdf5, reading
from minddiff_utils.io import InputError

BETA_SCALE = 300
BLOCK_BYTES = 32 * 2**20  # how much of a session is held at once
HINT = "It is part of NSD's nsddata_betas."

Shape = tuple[int, int, int]


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


def inspect_betas(path: str | Path, shape: Shape) -> BetaFile:
    """Look at a session's file without reading its values.

    Parameters
    ----------
    path : str or Path
        `betas_sessionNN.hdf5`, `.nii.gz` or `.nii`.
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
    path, scale, expected = Path(path), BETA_SCALE, (*shape, "n_trials")
    if path.suffix == ".hdf5":
        with open_hdf5(path, "betas") as betas:
            found, dtype = betas.shape[::-1], betas.dtype
    else:
        with reading(path, "NIfTI file", HINT):
            stored = nib.load(path).dataobj
        found, dtype = stored.shape, stored.dtype
        # A header that scales integers makes them per cent, not NSD's integers.
        scale = BETA_SCALE if (stored.slope, stored.inter) == (1, 0) else 1
    if len(found) != 4 or found[:3] != tuple(shape) or dtype.kind not in "if":
        raise InputError(
            f"{path}: betas are {dtype} {found}; expected int16, or float in per cent, "
            f"({', '.join(map(str, expected))}), on the grid of the regions. Fetch it again."
        )
    return BetaFile(path, found[3], scale if dtype.kind == "i" else 1)


def stored_type(scale: int) -> type:
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
    if file.path.suffix != ".hdf5":
        with reading(file.path, "NIfTI file", HINT):
            _fill_from_nifti(file, ijk, out)
        return out.T
    with open_hdf5(file.path, "betas") as betas:
        packed = betas.id.get_create_plist().get_nfilters()
        if betas.chunks == (len(betas), 1, 1, 1) and not packed:
            _fill_from_columns(betas, ijk, out)
        else:
            _fill_from_slabs(betas, ijk, out)
    return out.T


def _fill_from_nifti(file: BetaFile, ijk: np.ndarray, out: np.ndarray) -> None:
    """Read a NIfTI file from front to end, a few volumes at a time; unpacks `.gz` on the way."""
    stored = nib.load(file.path).dataobj
    place = np.ravel_multi_index(tuple(ijk.T), stored.shape[:3], order="F")
    volume_bytes = int(np.prod(stored.shape[:3])) * stored.dtype.itemsize
    step = max(1, BLOCK_BYTES // volume_bytes)
    with ImageOpener(str(file.path)) as stream:
        stream.seek(stored.offset)
        for first in range(0, file.n_trials, step):
            n = min(step, file.n_trials - first)
            block = np.frombuffer(stream.read(n * volume_bytes), stored.dtype)
            picked = block.reshape(n, -1)[:, place]
            if file.scale == 1:
                picked = picked * np.float32(stored.slope) + np.float32(stored.inter)
            out[:, first : first + n] = picked.T
        stream.read(1)  # past the end of a `.gz`, where its checksum stands


def _fill_from_columns(betas: h5py.Dataset, ijk: np.ndarray, out: np.ndarray) -> None:
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
