"""Single-trial responses ("betas") of one session, from NSD's HDF5 or NIfTI files.

NSD stores them as int16, 300 to one per cent signal change, in both formats. The axes of the HDF5
dataset, (n_trials, Z, Y, X), are the reverse of those of the NIfTI volume, (X, Y, Z, n_trials).
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
from nibabel.openers import ImageOpener

from minddiff_utils.datasets.reading import open_hdf5, open_image, unreadable
from minddiff_utils.io import InputError

BETA_SCALE = 300
BLOCK_BYTES = 32 * 2**20  # how much of a session is held at once

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class BetaFile:
    """What one session's file holds, known without reading its values.

    Parameters
    ----------
    path : Path
    n_trials : int
    dtype : dtype
        Of the values as `read_stored` gives them.
    scale : int
        What divides them to give per cent signal change: 300 for NSD's integers, else 1.
    """

    path: Path
    n_trials: int
    dtype: np.dtype
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
    path, shape = Path(path), tuple(shape)
    if path.suffix == ".hdf5":
        with open_hdf5(path, "betas") as betas:
            n_trials, dtype, integers = _hdf5_form(path, betas, shape)
    else:
        n_trials, dtype, integers = _nifti_form(path, open_image(path), shape)
    if dtype.kind not in "iuf":
        raise InputError(
            f"{path}: betas are {dtype}; expected int16, or float in per cent. Fetch it again."
        )
    if not integers:
        return BetaFile(path, n_trials, np.dtype(np.float32), 1)
    return BetaFile(path, n_trials, dtype.newbyteorder("="), BETA_SCALE)


def read_stored(file: BetaFile, ijk: np.ndarray, shape: Shape) -> np.ndarray:
    """Read some voxels of one session as they are stored, never holding the whole volume.

    Parameters
    ----------
    file : BetaFile
    ijk : int array of shape (n_voxels, 3)
        Places in the NIfTI volume (X, Y, Z).
    shape : tuple of three int
        Of that volume.

    Returns
    -------
    array of shape (n_trials, n_voxels), of `file.dtype`

    Raises
    ------
    InputError
        If the file is damaged.
    """
    # Voxel after voxel: NSD's files keep all trials of a voxel together.
    out = np.empty((len(ijk), file.n_trials), file.dtype)
    if file.path.suffix != ".hdf5":
        _fill_from_nifti(file, ijk, out)
        return out.T
    with open_hdf5(file.path, "betas") as betas:
        if betas.chunks is None:
            _fill_from_rows(betas, ijk, out)
        elif betas.chunks == (len(betas), 1, 1, 1) and _is_plain(betas):
            _fill_from_columns(betas, ijk, out)
        else:
            _fill_from_chunks(betas, ijk, out)
    return out.T


def read_betas(path: str | Path, ijk: np.ndarray, shape: Shape) -> np.ndarray:
    """Read some voxels of one session in per cent signal change.

    Parameters
    ----------
    path, ijk, shape
        As for `inspect_betas` and `read_stored`.

    Returns
    -------
    float32 array of shape (n_trials, n_voxels)

    Raises
    ------
    InputError
        If the file is missing or damaged, or of another shape or type.
    """
    file = inspect_betas(path, shape)
    values = np.ascontiguousarray(read_stored(file, ijk, shape), dtype=np.float32)
    return values if file.scale == 1 else values / np.float32(file.scale)


def _hdf5_form(path: Path, betas: h5py.Dataset, shape: Shape) -> tuple[int, np.dtype, bool]:
    """Return number of trials, type, and whether the values are NSD's integers."""
    if betas.ndim != 4 or betas.shape[1:] != shape[::-1]:
        raise InputError(
            f"{path}: betas have shape {betas.shape}; expected (n_trials, "
            f"{', '.join(str(n) for n in shape[::-1])}): the ROI volume's axes reversed. "
            "One of the two is damaged or of another space: fetch it again."
        )
    return len(betas), betas.dtype, betas.dtype.kind in "iu"


def _nifti_form(path: Path, image: nib.Nifti1Image, shape: Shape) -> tuple[int, np.dtype, bool]:
    """Likewise. A file whose header scales its integers holds per cent, not NSD's integers."""
    if len(image.shape) != 4 or image.shape[:3] != shape:
        raise InputError(
            f"{path} has shape {image.shape}; expected ({', '.join(map(str, shape))}, n_trials), "
            "as the ROI volume has. One of the two is damaged or of another space: fetch it again."
        )
    stored = image.dataobj
    plain = (stored.slope, stored.inter) == (1.0, 0.0)
    return image.shape[3], stored.dtype, plain and stored.dtype.kind in "iu"


def _fill_from_nifti(file: BetaFile, ijk: np.ndarray, out: np.ndarray) -> None:
    """Read a NIfTI file from front to end, a few volumes at a time; unpacks `.gz` on the way."""
    stored = open_image(file.path).dataobj
    volume = int(np.prod(stored.shape[:3]))
    place = np.ravel_multi_index(tuple(ijk.T), stored.shape[:3], order="F")
    step = max(1, BLOCK_BYTES // (volume * stored.dtype.itemsize))
    try:
        with ImageOpener(str(file.path)) as stream:
            stream.seek(stored.offset)
            for first in range(0, file.n_trials, step):
                n = min(step, file.n_trials - first)
                block = np.frombuffer(stream.read(n * volume * stored.dtype.itemsize), stored.dtype)
                picked = block.reshape(n, volume)[:, place]
                if file.scale == 1:
                    picked = picked * np.float32(stored.slope) + np.float32(stored.inter)
                out[:, first : first + n] = picked.T
            stream.read(1)  # past the end of a `.gz`, where its checksum stands
    except (OSError, EOFError, ValueError, zlib.error) as error:
        damage = f"is damaged or truncated ({error}): fetch it again"
        raise unreadable(file.path, error, damage) from error


def _fill_from_rows(betas: h5py.Dataset, ijk: np.ndarray, out: np.ndarray) -> None:
    """Read a dataset without chunks from front to end, a few trials at a time."""
    x, y, z = ijk.T
    planes = slice(z.min(), z.max() + 1)
    sides = (planes.stop - planes.start, *betas.shape[2:])
    place = np.ravel_multi_index((z - planes.start, y, x), sides)
    step = max(1, BLOCK_BYTES // (betas.dtype.itemsize * int(np.prod(sides))))
    for first in range(0, len(betas), step):
        block = betas[first : first + step, planes]
        out[:, first : first + len(block)] = block.reshape(len(block), -1)[:, place].T


def _fill_from_columns(betas: h5py.Dataset, ijk: np.ndarray, out: np.ndarray) -> None:
    """Read NSD's own chunks, each one voxel by all trials, in the order of the volume.

    Nothing else is read at all. Asked for as selections they would take five times as long.
    """
    read, dtype = betas.id.read_direct_chunk, betas.dtype
    order = np.lexsort(ijk.T)
    for voxel, corner in zip(order.tolist(), ijk[order, ::-1].tolist(), strict=True):
        try:
            out[voxel] = np.frombuffer(read((0, *corner))[1], dtype)
        except RuntimeError:  # a chunk that was never written holds the fill value
            out[voxel] = betas[(slice(None), *corner)]


def _is_plain(betas: h5py.Dataset) -> bool:
    """Whether chunks are on the disk as they are in memory, not compressed."""
    return betas.id.get_create_plist().get_nfilters() == 0


def _fill_from_chunks(betas: h5py.Dataset, ijk: np.ndarray, out: np.ndarray) -> None:
    """Read each chunk that holds a voxel, once, in the order of the volume."""
    zyx = ijk[:, ::-1]
    n_trials, sides = betas.chunks[0], np.array(betas.chunks[1:])
    for voxels in _by_chunk(zyx // sides, -(-np.array(betas.shape[1:]) // sides)):
        corner = zyx[voxels[0]] // sides * sides
        box = tuple(slice(a, b) for a, b in zip(corner, corner + sides, strict=True))
        inside = tuple((zyx[voxels] - corner).T)
        for first in range(0, len(betas), n_trials):
            block = betas[(slice(first, first + n_trials), *box)]
            out[voxels, first : first + len(block)] = block[(slice(None), *inside)].T


def _by_chunk(chunk: np.ndarray, counts: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the voxels of each chunk; `chunk` (n_voxels, 3) says which one each is in."""
    number = np.ravel_multi_index(tuple(chunk.T), tuple(counts))
    order = np.argsort(number, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(number[order])) + 1)
