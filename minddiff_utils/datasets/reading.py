"""Opening files of a recording, with one clear error for whatever is wrong with them."""

import csv
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np

from minddiff_utils.io import InputError, unreadable

MAX_SIDE = 2048  # pixels; models paint 512, and a larger picture is a mistake or a trap
TEXT_BYTES = 100  # about what Python takes to hold a short text
NESTED = 4  # virtual datasets that lead to one another


@contextmanager
def reading(
    path: Path, kind: str, hint: str, errors: type[Exception] = Exception
) -> Iterator[None]:
    """Turn whatever a library raises while it reads a file into one InputError.

    The block should hold that one call.

    Parameters
    ----------
    path : Path
    kind : str
        What the file should be, such as "NIfTI file".
    hint : str
        A sentence on where to get the file.
    errors : type
        What the library raises: scipy alone raises nine kinds for damaged files.

    Raises
    ------
    InputError
        If the file is missing or damaged; `UnreadableError` if the system does not let it be read.
    """
    try:
        if not path.is_file():
            raise InputError(f"{path} is missing. {hint or 'Fetch it, or run what writes it.'}")
        yield
    except (InputError, MemoryError):
        raise
    except errors as error:
        damage = f"is truncated, damaged or no {kind} ({error}): fetch or write it again. {hint}"
        raise unreadable(path, error, damage) from error


@contextmanager
def open_file(path: Path, hint: str = "") -> Iterator[h5py.File]:
    """Open an HDF5 file to read; errors as of `reading`."""
    with reading(path, "HDF5 file", hint, OSError), h5py.File(path, "r") as file:
        yield file


@contextmanager
def open_hdf5(path: Path, name: str, hint: str = "") -> Iterator[h5py.Dataset]:
    """Open one dataset of an HDF5 file; see `open_file` and `open_dataset`."""
    with open_file(path, hint) as file:
        yield open_dataset(file, name)


def open_dataset(file: h5py.File, name: str, nested: int = NESTED) -> h5py.Dataset:
    """Open what a file holds under a name, if all its values are there and can be unpacked.

    HDF5 itself reads zeros where a virtual dataset's sources are missing, and takes any file of
    the system, a list of passwords too, for the storage of a dataset.

    Parameters
    ----------
    file : h5py.File
    name : str
    nested : int
        How many virtual datasets may lead to one another; a circle of them stops the process.

    Returns
    -------
    h5py.Dataset

    Raises
    ------
    InputError
        If there is no such dataset, a link or virtual dataset leads to what is not there, the
        values lie in a file that is not HDF5, or are compressed by a filter that is not installed.
    """
    try:
        data = file[name]
    except (KeyError, RuntimeError, OSError) as error:
        link = file.get(name, getlink=True)
        why = f" has no dataset {name!r}; it has {', '.join(file) or 'none'}"
        if isinstance(link, h5py.SoftLink | h5py.ExternalLink):
            target = f"{getattr(link, 'filename', '')} {link.path}".strip()
            why = f": `{name}` is a link to {target}, which cannot be opened ({error})"
        raise InputError(f"{file.filename}{why}. Fetch or write it again.") from error
    if not isinstance(data, h5py.Dataset):
        raise InputError(f"{file.filename}: `{name}` is a group; expected a dataset.")
    _check_storage(data, f"{file.filename}: `{name}`", nested)
    return data


def _check_storage(data: h5py.Dataset, where: str, nested: int) -> None:
    """Refuse a dataset whose values HDF5 would take from elsewhere or cannot unpack."""
    made = data.id.get_create_plist()
    filters = [made.get_filter(place)[0] for place in range(made.get_nfilters())]
    absent = [str(code) for code in filters if not h5py.h5z.filter_avail(code)]
    if absent:
        raise InputError(
            f"{where} needs HDF5's filter {', '.join(absent)}, which is not installed: write it "
            "with compression='gzip', or set HDF5_PLUGIN_PATH to hdf5plugin's folder."
        )
    if data.external:
        raise InputError(f"{where} lies in {data.external[0][0]}, which is not HDF5: copy it here.")
    sources = data.virtual_sources() if data.is_virtual else []
    if sources and not nested:
        raise InputError(f"{where} is put together from datasets that lead in a circle.")
    path = Path(data.file.filename)
    for other, name in sorted({(source.file_name, source.dset_name) for source in sources}):
        try:
            with open_file(path if other == "." else path.parent / other) as file:
                open_dataset(file, name, nested - 1)
        except InputError as error:
            raise InputError(f"{where} is put together from others, and {error}") from error


def check_size(data: h5py.Dataset, item_bytes: int) -> None:
    """Raise InputError if a dataset is declared larger than this machine's memory.

    Parameters
    ----------
    data : h5py.Dataset
    item_bytes : int
        What each value takes once it is read.
    """
    needed = data.size * item_bytes
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        name, size = f"{data.file.filename}: `{data.name.lstrip('/')}`", f"{needed / 1e9:,.0f} GB"
        there = f"{size} in memory; this machine has {memory / 1e9:,.0f} GB"
        raise InputError(f"{name} is declared as {data.shape}, {there}.")


def as_text(value: bytes | str) -> str:
    """Return a text that HDF5 stored, which may be UTF-8 or Latin-1, cut to length or padded."""
    if isinstance(value, str):  # h5py takes every text for UTF-8 and marks what is not
        value = value.encode("utf-8", "surrogateescape")
    value = value.split(b"\0")[0]
    try:
        return value.decode("utf-8").strip()
    except UnicodeDecodeError:
        return value.decode("latin-1").strip()


def read_texts(data: h5py.Dataset) -> np.ndarray:
    """Read a dataset of texts of fixed or variable length; object array of str, stripped."""
    check_size(data, max(TEXT_BYTES, data.dtype.itemsize))
    return np.vectorize(as_text, otypes=[object])(data[()])


def read_rows(
    dataset: h5py.Dataset, rows: np.ndarray, columns: tuple[slice, ...] = ()
) -> np.ndarray:
    """Read rows of an HDF5 dataset in any order, each run of neighbours in one go.

    Parameters
    ----------
    dataset : h5py.Dataset of shape (n, …)
    rows : int array of shape (m,)
        From 0 to n - 1, at least one; repeats are allowed.
    columns : tuple of slice
        What to read of the other axes; all of it by default.

    Returns
    -------
    array of shape (m, …)
    """
    wanted, place = np.unique(rows, return_inverse=True)
    runs = np.split(wanted, np.flatnonzero(np.diff(wanted) > 1) + 1)
    found = np.concatenate([dataset[(slice(run[0], run[-1] + 1), *columns)] for run in runs])
    return found[place.ravel()]


def read_nifti(path: Path, hint: str, shape: tuple[int, ...] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Read a NIfTI volume, or a series of them.

    Parameters
    ----------
    path : Path
    hint : str
        A sentence on where to get the file.
    shape : tuple of int
        What it must have; anything if empty.

    Returns
    -------
    values : array of shape (X, Y, Z) or (X, Y, Z, n_volumes)
    affine : float array of shape (4, 4)
        From voxel indices to millimetres.
    """
    with reading(path, "NIfTI file", hint):
        image: Any = nib.load(path)
        if shape and image.shape != shape:
            expected = f"{shape}, as the betas, its mask, `ncsnr` or table of volumes has"
            raise InputError(f"{path} has shape {image.shape}; expected {expected}. {hint}")
        return np.asarray(image.dataobj), image.affine


def read_table(
    path: Path, columns: Sequence[str], hint: str, delimiter: str = ",", kind: type = str
) -> list[tuple[Any, ...]]:
    """Read some columns of a table of text whose first row names them.

    Parameters
    ----------
    path : Path
    columns : sequence of str
        Those to return, in this order.
    hint : str
        A sentence on where to get the file.
    delimiter : str
    kind : type
        What each value is made to be, without the blanks around it.

    Returns
    -------
    list of tuple
        One a row.

    Raises
    ------
    InputError
        If the file is missing, lacks a column, or has a value of another kind.
    """
    with reading(path, f"table of {' and '.join(columns)}", hint):
        text = io.StringIO(path.read_text(encoding="utf-8-sig"))
        rows = csv.DictReader(text, delimiter=delimiter)
        return [tuple(kind(row[name].strip()) for name in columns) for row in rows]


def read_matlab(path: str | Path, names: Sequence[str], hint: str) -> dict[str, np.ndarray]:
    """Read variables of a MATLAB file (up to version 7).

    Parameters
    ----------
    path : str or Path
    names : sequence of str
        The variables that must be there.
    hint : str
        A sentence on where to get the file, for error messages.

    Returns
    -------
    dict of str to array

    Raises
    ------
    InputError
        If the file is missing or damaged, or lacks a variable.
    """
    with reading(Path(path), "MATLAB file", hint):
        from scipy.io import loadmat

        content = loadmat(path, variable_names=list(names))
    missing = [name for name in names if name not in content]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}. {hint}")
    return {name: content[name] for name in names}
