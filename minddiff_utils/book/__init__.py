"""From notebooks to HTML: running, building, galleries.

This module imports little, for every command begins with it: what the processes that compute find
around them, whatever the user's shell and home hold, and how they say something.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

# For glibc: freed memory is kept for the next step of the same size, which spares the system's
# clearing of it, some 5 % of stage 2's time.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "1000000000", "MALLOC_TRIM_THRESHOLD_": "4000000000"}
# What a job is given unless the user's shell says otherwise.
USUAL = {"HDF5_USE_FILE_LOCKING": "BEST_EFFORT", "TRANSFORMERS_VERBOSITY": "error", **KEEP_MEMORY}
# And whatever it says: figures go into the notebook with matplotlib's own defaults.
FIXED = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "MATPLOTLIBRC": os.devnull,
    "JUPYTER_PREFER_ENV_PATH": "1",  # this environment's Python, not a kernel in the home
    "NO_COLOR": "1",
    "MINDDIFF_PROGRESS": "text",
    "TQDM_MININTERVAL": "5",  # seconds between two lines about the same loop
    "PYTHONHASHSEED": "0",
    "PYTHONUTF8": "1",
}
# Other profiles, kernels of the same name, and a file that IPython runs before every notebook.
DROPPED = ("SNAKEMAKE_PROFILE", "JUPYTER_PATH", "PYTHONSTARTUP")


class BookError(RuntimeError):
    """A notebook failed, or the HTML could not be built cleanly; the message says where."""


@contextmanager
def known_environment() -> Iterator[None]:
    """Set the environment variables of this process, and of those that it starts.

    What libraries write for themselves goes into a temporary folder where the home cannot be
    written. No start-up file of IPython runs.
    """
    with tempfile.TemporaryDirectory(prefix="minddiff-", ignore_cleanup_errors=True) as scratch:
        os.environ.update({**USUAL, **os.environ, **FIXED})
        os.environ.update(IPYTHONDIR=f"{scratch}/ipython", JUPYTER_RUNTIME_DIR=f"{scratch}/jupyter")
        for name in DROPPED:
            os.environ.pop(name, None)
        if not os.access(Path.home(), os.W_OK | os.X_OK):
            os.environ["HOME"] = scratch
        yield


def say(line: str) -> None:
    """Tell the user something; what a command answers alone goes to the standard output."""
    print(line, file=sys.stderr, flush=True)


def span(seconds: float) -> str:
    """Seconds as hours, minutes and seconds: 0:02:05."""
    return str(timedelta(seconds=round(seconds)))


def ask_git(folder: Path, *words: str) -> str:
    """What a command of git says in a folder; "" without git."""
    with suppress(OSError):
        answer = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True)
        return answer.stdout.strip()
    return ""
