"""HDF5 files on a disk that may fill up, digests that tell whether one may be kept, and times."""

import ast
import hashlib
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import h5py
import numpy as np

from minddiff_utils.io import InputError, atomic_path

PACKAGE = Path(__file__).parent
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
WHOLE = 64 * 2**20  # bytes of a file that are read to tell it from another
PART = 2**18  # bytes, of each of 16 parts of a larger file
SPARE = 4 * 2**20  # bytes that stay free: HDF5 does not bear a disk that is quite full


def content_hash(arrays: Iterable[tuple[str, np.ndarray | bytes]]) -> str:
    """Return a digest of arrays: their names, types, shapes and every byte, all in order.

    About a second a gigabyte.

    Parameters
    ----------
    arrays : iterable of (str, array)
        Pass `sorted(mapping.items())` where the order of the names does not count.

    Returns
    -------
    str
        32 hexadecimal digits (BLAKE2b).
    """
    total = hashlib.blake2b(digest_size=16)
    for name, values in arrays:
        values = np.asarray(values, order="C")
        total.update(repr((name, values.dtype.str, values.shape)).encode())
        total.update(values.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def file_digest(path: str | Path) -> str:
    """Return a digest of a file's content; of one above 64 MiB, of 16 parts and its size."""
    size = Path(path).stat().st_size
    total = hashlib.blake2b(str(size).encode(), digest_size=16)
    whole = size <= WHOLE
    with open(path, "rb") as file:
        for start in [0] if whole else range(0, size, size // 16):
            file.seek(start)
            total.update(file.read(WHOLE if whole else PART))
    return total.hexdigest()


def code_digest(*parts: str) -> str:
    """Return a digest of what our Python files do: comments, docstrings and layout do not count.

    Parameters
    ----------
    *parts : str
        Modules and subpackages, such as "decoding" or "settings.py".
    """
    total = hashlib.blake2b(digest_size=16)
    for part in parts:
        found = PACKAGE / part
        for path in sorted(found.rglob("*.py")) if found.is_dir() else [found]:
            total.update(str(path.relative_to(PACKAGE)).encode() + _without_words(path))
    return total.hexdigest()


@cache
def _without_words(path: Path) -> bytes:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return ast.dump(tree).encode()


def check_room(path: str | Path, n_bytes: int) -> None:
    """Raise InputError unless `n_bytes` more fit on the disk of `path`, a file, and some to spare.

    Parameters
    ----------
    path : str or Path
        The folder that it is in must be there.
    n_bytes : int
    """
    path = Path(path)
    free = shutil.disk_usage(path.parent).free
    if free < n_bytes + SPARE:
        needed = max(0.1, (n_bytes + SPARE - free) / 1e6)
        raise InputError(
            f"{path} cannot be written: no space is left on its disk, {needed:.1f} MB more are "
            "needed. Make room there, or choose another `run_dir`; the same command then goes on "
            "from here."
        )


def rows_done(path: str | Path, record: str) -> int:
    """Return how many rows a resumable file holds, if it was made from this; 0 if not."""
    try:
        with h5py.File(path, "r") as file:
            return int(file.attrs.get("done", 0)) if file.attrs.get("record") == record else 0
    except OSError:
        return 0


def row_dataset(file: h5py.File, name: str, shape: tuple[int, ...], dtype) -> h5py.Dataset:
    """Return a dataset, made if it is not there, whose rows each carry a checksum.

    A bit that flips on the disk is an error then, and not another number.
    """
    checked = {"chunks": (1, *shape[1:]), "fletcher32": True} if shape and all(shape) else {}
    return file.require_dataset(name, shape, dtype, **checked)


def open_to_write(path: str | Path, mode: str = "w", n_bytes: int = 0) -> h5py.File:
    """Open an HDF5 file so that whatever cannot be written raises at once.

    HDF5 holds small pieces back until their dataset is closed, and h5py cannot raise what goes
    wrong then: on a full disk zeros would be left in their place. So nothing is held back here.

    Parameters
    ----------
    path : str or Path
    mode : {"w", "a"}
        A new file, or one that is there.
    n_bytes : int
        Room to check for; see `check_room`.

    Returns
    -------
    h5py.File

    Raises
    ------
    InputError
        If there is no room.
    OSError
        If the file cannot be opened.
    """
    check_room(path, n_bytes)
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    access.set_sieve_buf_size(0)
    access.set_cache(0, 521, 0, 0.75)  # bytes of chunks that are held back: none
    name = str(path).encode()
    if mode == "w":
        return h5py.File(h5py.h5f.create(name, h5py.h5f.ACC_TRUNC, fapl=access))
    return h5py.File(h5py.h5f.open(name, h5py.h5f.ACC_RDWR, fapl=access))


@contextmanager
def timed(path: str | Path, step: str, n_pictures: int) -> Iterator[None]:
    """Note how long a block takes, beside its results.

    Parameters
    ----------
    path : str or Path
        CSV with the columns `step, n_pictures, seconds`. A step that is there already keeps the
        longer time: done again, it finds its results and takes none.
    step : str
    n_pictures : int
        That the step worked on.
    """
    import pandas as pd  # the command line starts without it

    begun = time.perf_counter()
    yield
    row = {"step": step, "n_pictures": n_pictures, "seconds": time.perf_counter() - begun}
    known = pd.read_csv(path).to_dict("records") if Path(path).exists() else []
    for one in known:
        if (one["step"], one["n_pictures"]) == (step, n_pictures):
            row["seconds"] = max(row["seconds"], one["seconds"])
    rows = [*(one for one in known if one["step"] != step), row]
    with atomic_path(path) as temporary:
        pd.DataFrame(rows).round(2).to_csv(temporary, index=False)
