"""Files that are whole or absent, HDF5 that goes on after a stop, digests; errors that help."""

import ast
import errno
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, TypeAlias

import h5py
import numpy as np
from tqdm import auto, std

Ids: TypeAlias = Sequence[int] | np.ndarray  # numbers of stimuli, trials or voxels
MARK = ".minddiff-run"  # in a folder that runs write into
PACKAGE = Path(__file__).parent
# What a disk answers that has no locks, as some network disks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
MAKE_ROOM = "Make room there, or choose another folder (`run_dir`); the same command then goes on."
SPARE = 4 * 2**20  # bytes that stay free: HDF5 does not bear a disk that is quite full


class InputError(ValueError):
    """Something that the user gave is missing or wrong; the message says what to do about it."""


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
    forbidden, locked = number in (errno.EACCES, errno.EPERM), "unable to lock" in str(error)
    if "already open for write" in str(error) or (locked and (forbidden or number == errno.EAGAIN)):
        why = "is open for writing elsewhere: close it there; if that has died, run `h5clear -s`."
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
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Write a file under a temporary name; rename it to `path` once it is whole.

    Parameters
    ----------
    path : str or Path
        The final name. Missing folders above it are created.

    Yields
    ------
    Path
        A temporary path in the same folder with the same suffix. When the block raises, it is
        removed and a file already at `path` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{os.urandom(16).hex()}{path.suffix or '.tmp'}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file in UTF-8, whole or not at all, and return its path."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def lock_file(file: IO) -> bool:
    """Lock an open file until it is closed or its process has ended.

    Parameters
    ----------
    file : file object

    Returns
    -------
    bool
        False if another process holds it. A disk without locks counts as free: better no guard
        against a second process than no run.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, *NO_LOCKS):
            raise
        return error.errno in NO_LOCKS
    return True


def claim_run(folder: str | Path) -> Path:
    """Return the folder of a run, marked as one; make it if it is not there.

    Raises
    ------
    InputError
        If something else lies there: a run's folder holds nothing but what runs write.
    """
    folder = Path(folder)
    if not (folder / MARK).exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            said = f"run_dir: {folder} is not empty, and no run has made it. Choose a new folder"
            raise InputError(f"{said}; if it is a copy of a run, make the file {MARK} in it.")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARK).touch()
    return folder


def require(path: str | Path, notebook: str) -> Path:
    """Return `path` if the file is there.

    Raises
    ------
    InputError
        If it is missing; the message names the notebook that writes it.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} is missing. Run {notebook}, for this `run_dir` and `subject`.")
    return path


def method_file(folder: str | Path, method: str, seed: int | None = None) -> Path:
    """Return where a subject's folder keeps the pictures of a method.

    Parameters
    ----------
    folder : str or Path
        Of the subject.
    method : str
        "truth" for the pictures that were seen.
    seed : int, optional
        Of another draw of the noise than the run's own.
    """
    draw = "" if seed is None else f"_seed_{seed}"
    return Path(folder) / "reconstructions" / f"{method}{draw}.h5"


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


@cache
def code_digest(*parts: str) -> str:
    """Return a digest of what our Python files do: comments, docstrings and layout do not count.

    Parameters
    ----------
    *parts : str
        Modules and subpackages, such as "decoding" or "settings.py".
    """
    total = hashlib.blake2b(digest_size=16)
    for part in parts:
        for path in sorted((PACKAGE / part).rglob("*.py")) or [PACKAGE / part]:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                    node.value.value = None  # a docstring
            total.update(f"{path.relative_to(PACKAGE)} {ast.dump(tree)}".encode())
    return total.hexdigest()


def check_room(path: str | Path, n_bytes: int) -> None:
    """Raise InputError unless `n_bytes` more fit on the disk of `path`, a file, and some to spare.

    Parameters
    ----------
    path : str or Path
        The folder that it is in need not be there yet.
    n_bytes : int
    """
    folder = next(one for one in Path(path).absolute().parents if one.exists())
    lacking = n_bytes + SPARE - shutil.disk_usage(folder).free
    if lacking > 0:
        said = f"no space is left on its disk, {lacking / 1e6:,.2f} MB more are needed"
        raise InputError(f"{path} cannot be written: {said}. {MAKE_ROOM}")


def rows_done(path: str | Path, record: str) -> int:
    """Return how many rows a resumable file holds, if it was made from this; 0 if not.

    Raises
    ------
    InputError
        If the system does not let it be read now: it may hold hours of work.
    """
    try:
        with h5py.File(path, "r") as file:
            return int(file.attrs.get("done", 0)) if file.attrs.get("record") == record else 0
    except OSError as error:
        if isinstance(problem := unreadable(path, error, ""), UnreadableError):
            raise problem from None
        return 0


def row_dataset(file: h5py.File, name: str, shape: tuple[int, ...], dtype) -> h5py.Dataset:
    """Return a dataset, made if it is not there, whose rows each carry a checksum.

    A bit that flips on the disk is an error then, and not another number.
    """
    checked = {"chunks": (1, *shape[1:]), "fletcher32": True} if shape and all(shape) else {}
    return file.require_dataset(name, shape, dtype, **checked)


def progress(items: Collection, label: str, done: int = 0) -> std.tqdm:
    """Show how far a loop is: by a widget in JupyterLab, by a line of text elsewhere.

    Parameters
    ----------
    items : collection
        What is left to do.
    label : str
    done : int
        How many have been done before.
    """
    # The book reads the line, to say how far its jobs are.
    bar = std.tqdm if os.environ.get("MINDDIFF_PROGRESS") == "text" else auto.tqdm
    return bar(items, label, initial=done, total=done + len(items))


def write_rows(
    path: str | Path,
    ids: np.ndarray,
    record: str,
    compute: Callable[[slice], Mapping[str, np.ndarray]],
    batch: int,
    label: str,
    first: Mapping[str, int] | None = None,
    ids_name: str = "stimulus_id",
) -> Path:
    """Write arrays that have a row a stimulus, a batch at a time; go on where a run stopped.

    Parameters
    ----------
    path : str or Path
        HDF5 file. Until it is whole it is called `<path>.partial`; one that is whole and has this
        `record` is left as it is.
    ids : int array, shape (n,)
        Stimuli, or what else the rows are of.
    record : str
        What the arrays follow from; an attribute.
    compute : callable
        Returns the arrays of some rows by name.
    batch : int
        Rows at a time.
    label : str
        Name of the progress bar.
    first : mapping of name to int, optional
        Arrays of which only the first so many rows are kept.
    ids_name : str
        The dataset that holds `ids`.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        If there is no room on the disk.
    """
    path, n = Path(path), len(ids)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    if rows_done(path, record) == n:
        return path
    done = rows_done(partial, record)
    with open_to_write(partial, "r+" if done else "w") as file:
        for start in progress(range(done, n, batch), label, done // batch):
            rows = slice(start, min(start + batch, n))
            values = compute(rows)
            check_room(partial, sum(part.nbytes for part in values.values()))
            file.attrs["record"] = record
            file.require_dataset(ids_name, ids.shape, ids.dtype)[:] = ids
            for name, part in values.items():
                kept = min((first or {}).get(name, n), n)
                stored = row_dataset(file, name, (kept, *part.shape[1:]), part.dtype)
                stored[rows] = part[: max(0, kept - start)]
            file.attrs["done"] = rows.stop
            file.flush()
    partial.replace(path)
    return path


def open_to_write(path: str | Path, mode: str = "w", n_bytes: int = 0) -> h5py.File:
    """Open an HDF5 file so that whatever cannot be written raises at once.

    HDF5 holds small pieces back until their dataset is closed, and h5py cannot raise what goes
    wrong then: on a full disk zeros would be left in their place. So nothing is held back here.

    Parameters
    ----------
    path : str or Path
    mode : {"w", "r+"}
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
    # No bytes of chunks are held back, and by the driver none of other datasets.
    return h5py.File(path, mode, driver="unbuffered", rdcc_nbytes=0)


h5py.register_driver("unbuffered", lambda access: access.set_sieve_buf_size(0))
