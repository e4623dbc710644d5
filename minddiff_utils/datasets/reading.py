"""Opening files of a recording, with one clear error for whatever is wrong with them."""

import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np

from minddiff_utils.io import InputError

MAX_SIDE = 2048  # pixels; models paint 512, and a larger picture is a mistake or a trap
TEXT_BYTES = 100  # about what Python takes to hold a short text
NESTED = 4  # virtual datasets that lead to one another


class UnreadableError(InputError):
    """The system does not let a file be read now; its content may be whole."""


def unreadable(path: str | Path, error: Exception, damage: str) -> InputError:
    """Make the error to raise for a file that cannot be read.

    Parameters
    ----------
    path : Path
    error : Exception
        What was raised while reading.
    damage : str
        What to say after the path where it is the content that is wrong.

    Returns
    -------
    InputError
        An `UnreadableError` where the file is in use, locked, forbidden or out of reach.
    """
    noted = re.search(r"errno = (\d+)", str(error))  # HDF5's own errors only write it
    number = getattr(error, "errno", None) or (int(noted[1]) if noted else 0)
    forbidden = number in (errno.EACCES, errno.EPERM)
    locked = "unable to lock file" in str(error)
    if "already open for write" in str(error) or (locked and (forbidden or number == errno.EAGAIN)):
        why = (
            "is open for writing elsewhere: close it in the program that has it open, then try "
            "again. If that program was stopped, `h5clear -s` on the file frees it."
        )
    elif locked:
        why = "lies on a disk without locks: set HDF5_USE_FILE_LOCKING=FALSE, then try again."
    elif forbidden:
        why = f"may not be read by you ({os.strerror(number)}): ask its owner for the right."
    # Seeking in a file that was cut short is an invalid argument.
    elif number in (0, errno.EINVAL, errno.ENOENT, errno.EISDIR):
        return InputError(f"{path} {damage}")
    else:
        why = f"cannot be reached ({os.strerror(number)}): is its disk or network folder mounted?"
    return UnreadableError(f"{path} {why}")


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


def existing(path: Path, hint: str) -> Path:
    """Return `path`, or raise InputError with `hint` if no file is there."""
    with reading(path, "file", hint):
        return path


@contextmanager
def open_file(path: Path, hint: str = "") -> Iterator[h5py.File]:
    """Open an HDF5 file to read; errors as of `reading`."""
    with reading(path, "HDF5 file", hint, OSError), h5py.File(path, "r") as file:
        yield file


@contextmanager
def open_hdf5(path: Path, name: str) -> Iterator[h5py.Dataset]:
    """Open one dataset of an HDF5 file; see `open_file` and `open_dataset`."""
    with open_file(path) as file:
        data = open_dataset(file, name)
        if not isinstance(data, h5py.Dataset):
            raise InputError(f"{path} has no dataset {name!r}, but a group. Write it again.")
        yield data


def open_dataset(file: h5py.File, name: str, nested: int = NESTED) -> h5py.Dataset | h5py.Group:
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
    h5py.Dataset, or h5py.Group where there is one

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
    if isinstance(data, h5py.Dataset):
        _check_storage(data, f"{file.filename}: `{name}`", nested)
    return data


def linked_files(path: Path) -> list[Path]:
    """Return the files that links and virtual datasets of an HDF5 file lead to; else none."""
    found = set()
    with suppress(OSError), h5py.File(path, "r") as file:
        for name in file:
            link = file.get(name, getlink=True)
            data = file[name] if isinstance(link, h5py.HardLink) else None
            if isinstance(link, h5py.ExternalLink):
                found.add(link.filename)
            elif isinstance(data, h5py.Dataset) and data.is_virtual:
                found |= {source.file_name for source in data.virtual_sources()}
    return [path.parent / name for name in sorted(found) if (path.parent / name).is_file()]


def _check_storage(data: h5py.Dataset, where: str, nested: int) -> None:
    """Refuse a dataset whose values HDF5 would take from elsewhere or cannot unpack."""
    made = data.id.get_create_plist()
    filters = [made.get_filter(place)[0] for place in range(made.get_nfilters())]
    absent = [str(code) for code in filters if not h5py.h5z.filter_avail(code)]
    if absent:
        raise InputError(
            f"{where} is compressed with HDF5's filter {', '.join(absent)}, which is not installed "
            "here. Write it with compression='gzip', or install hdf5plugin and set "
            "HDF5_PLUGIN_PATH to its folder."
        )
    if data.external:
        other = data.external[0][0]
        raise InputError(f"{where} takes its values from {other}, which is not HDF5: copy them.")
    sources = data.virtual_sources() if data.is_virtual else []
    if sources and not nested:
        raise InputError(f"{where} is put together from datasets that lead in a circle.")
    path = Path(data.file.filename)
    for other, name in sorted({(source.file_name, source.dset_name) for source in sources}):
        # As HDF5 looks for them: beside the file as it was named, else beside what that links to.
        places = [
            path if other == "." else folder.parent / other for folder in (path, path.resolve())
        ]
        try:
            with open_file(next(filter(Path.is_file, places), places[0])) as file:
                if not isinstance(open_dataset(file, name, nested - 1), h5py.Dataset):
                    raise InputError(f"{file.filename} has a group {name!r}, not a dataset.")
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
        raise InputError(
            f"{data.file.filename}: `{data.name.lstrip('/')}` is declared as {data.shape}, "
            f"{needed / 1e9:,.0f} GB in memory; this machine has {memory / 1e9:,.0f} GB."
        )


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


def read_volume(path: Path, shape: tuple[int, ...] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read a NIfTI volume, which must have `shape` if that is given.

    Returns
    -------
    values : array of shape (X, Y, Z)
    affine : float array of shape (4, 4)
        From voxel indices to millimetres.
    """
    with reading(path, "NIfTI file", "It is part of NSD's nsddata or nsddata_betas."):
        image: Any = nib.load(path)
        if shape is not None and image.shape != shape:
            expected = f"{shape}, as the betas' ncsnr has: fetch again what is of another space"
            raise InputError(f"{path} has shape {image.shape}; expected {expected}")
        return np.asarray(image.dataobj), image.affine


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
    from scipy.io import loadmat

    with reading(Path(path), "MATLAB file", hint):
        content = loadmat(path, variable_names=list(names))
    missing = [name for name in names if name not in content]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}. {hint}")
    return {name: content[name] for name in names}
