"""Opening files of a recording, with one clear error for whatever is wrong with them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError

from minddiff_utils.files import InputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["existing", "open_hdf5", "open_image", "read_rows", "read_table", "read_volume"]


def existing(path: Path, hint: str) -> Path:
    """Return `path`, or raise InputError with `hint` if no file is there."""
    if not path.is_file():
        raise InputError(f"{path} is missing. {hint}")
    return path


@contextmanager
def open_hdf5(path: Path, name: str) -> Iterator[h5py.Dataset]:
    """Open one dataset of an HDF5 file; a missing or damaged file becomes an InputError."""
    existing(path, "Fetch it, or run the command that writes it.")
    try:
        with h5py.File(path, "r") as file:
            if name not in file:
                raise InputError(
                    f"{path} has no dataset {name!r}; it has {', '.join(file) or 'none'}. Fetch or "
                    "write it again."
                )
            yield file[name]
    except OSError as error:
        raise InputError(
            f"{path} is truncated or not an HDF5 file ({error}). Delete it and fetch or write it "
            "again."
        ) from error


def read_rows(
    dataset: h5py.Dataset, rows: np.ndarray, columns: tuple[slice, ...] = ()
) -> np.ndarray:
    """Read rows of an HDF5 dataset in any order, each run of neighbours in one go.

    Parameters
    ----------
    dataset : h5py.Dataset of shape (n, …)
    rows : int array of shape (m,)
        From 0 to n - 1; repeats are allowed.
    columns : tuple of slice
        What to read of the other axes; all of it by default.

    Returns
    -------
    array of shape (m, …)
    """
    wanted, place = np.unique(rows, return_inverse=True)
    parts = [
        dataset[(slice(run[0], run[-1] + 1), *columns)]
        for run in np.split(wanted, np.flatnonzero(np.diff(wanted) > 1) + 1)
        if run.size
    ]
    found = (
        np.concatenate(parts) if len(parts) > 1 else (parts or [dataset[(slice(0), *columns)]])[0]
    )
    in_order = len(rows) == len(wanted) and (place.ravel() == np.arange(len(rows))).all()
    return found if in_order else found[place.ravel()]


def open_image(path: Path) -> nib.Nifti1Image:
    """Open a NIfTI file without reading its values, or raise InputError."""
    existing(path, "It is part of NSD's nsddata (regions) or nsddata_betas (betas, ncsnr).")
    try:
        return nib.load(path)
    except (ImageFileError, OSError, EOFError) as error:
        raise InputError(
            f"{path} is not a readable NIfTI file ({error}): fetch it again"
        ) from error


def read_volume(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read a NIfTI volume that must have `shape`."""
    image = open_image(path)
    if image.shape != tuple(shape):
        raise InputError(
            f"{path} has shape {image.shape}; expected {tuple(shape)}, as other volumes have. It "
            "is damaged or of another space: fetch it again."
        )
    try:
        return np.asarray(image.dataobj)
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}): fetch it again") from error


def read_table(path: Path, separator: str, columns: Sequence[str]) -> "pd.DataFrame":
    """Read a table of text that must have `columns`."""
    import pandas as pd

    existing(path, "It is part of NSD's nsddata.")
    try:
        table = pd.read_csv(path, sep=separator)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a readable table ({error}): fetch it again") from error
    missing = [name for name in columns if name not in table]
    if missing:
        raise InputError(f"{path} lacks column {', '.join(missing)}: fetch it again")
    return table
