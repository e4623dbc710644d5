"""Files that are either whole or absent, and errors that say what to do."""

import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:  # the command line starts without it
    import numpy as np

Ids: TypeAlias = "Sequence[int] | np.ndarray"  # numbers of stimuli, trials or voxels
MARK = ".minddiff-run"  # in a folder that runs write into
# What a disk answers that has no locks, as some network disks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class InputError(ValueError):
    """Something that the user gave is missing or wrong; the message says what to do about it."""


class BookError(RuntimeError):
    """A notebook failed, or the HTML could not be built cleanly; the message says where."""


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
    handle, name = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix or ".tmp"
    )
    os.close(handle)
    try:
        yield Path(name)
        # Temporary files are private; a result is as readable as any other file of the user.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def lock_file(file: IO, wait: bool = False) -> bool:
    """Lock an open file until it is closed or its process has ended.

    Parameters
    ----------
    file : file object
    wait : bool
        Wait while another process holds it.

    Returns
    -------
    bool
        False if another process holds it. A disk without locks counts as free: better no guard
        against a second process than no run.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
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
            raise InputError(
                f"run_dir: {folder} is not empty, and no run has made it. Choose a new folder. If "
                f"it is a run that was copied without its hidden files, make {MARK} in it."
            )
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
        raise InputError(
            f"{path} is missing. Notebook {notebook} writes it: run that one first, with the same "
            "`run_dir` and `subject`."
        )
    return path
