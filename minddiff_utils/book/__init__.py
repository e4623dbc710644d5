"""From notebooks to HTML: running, building, galleries.

This module imports little, for every command begins with it: what the processes that compute find
around them, whatever the user's shell and home hold, and how they say something.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

# For glibc: freed memory is kept for the next step of the same size, which spares the system's
# clearing of it, some 5 % of stage 2's time.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "1000000000", "MALLOC_TRIM_THRESHOLD_": "4000000000"}
# What other tools may have set for themselves, and would change results or pages here.
DROPPED = (
    "SNAKEMAKE_PROFILE",
    "PYTHONIOENCODING",
    "PYTHONSTARTUP",  # IPython runs that file before every notebook
    "PYTHONOPTIMIZE",
    "PYTHONWARNINGS",
    "FORCE_COLOR",
    "JUPYTER_PATH",  # kernels of the same name, but with another Python
)


def job_environment(scratch: Path) -> dict[str, str]:
    """The environment variables of a job's process: the user's, but for what must be known.

    Figures go into the notebook with matplotlib's own defaults, no start-up file of IPython runs,
    and what libraries write for themselves goes into `scratch` where the home cannot be written.

    Parameters
    ----------
    scratch : Path
        A folder that can be written.
    """
    defaults = {"HDF5_USE_FILE_LOCKING": "BEST_EFFORT", "TRANSFORMERS_VERBOSITY": "error"}
    found = {**KEEP_MEMORY, **defaults, **os.environ}
    found = {name: value for name, value in found.items() if name not in DROPPED}
    found |= {
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "MATPLOTLIBRC": os.devnull,
        "IPYTHONDIR": str(scratch / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(scratch / "jupyter"),
        "JUPYTER_PREFER_ENV_PATH": "1",  # this environment's Python, not a kernel in the home
        "NO_COLOR": "1",
        "MINDDIFF_PROGRESS": "text",
        "PYTHONHASHSEED": "0",
        "PYTHONUTF8": "1",
    }
    home = Path(os.path.expanduser("~"))
    if not os.access(home, os.W_OK | os.X_OK):
        if (models := home / ".cache" / "huggingface").is_dir():
            found.setdefault("HF_HOME", str(models))
        found["HOME"] = str(scratch)
    return found


@contextmanager
def known_environment() -> Iterator[None]:
    """Give this process and those that it starts the variables of `job_environment` for a while."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="minddiff-", ignore_cleanup_errors=True) as scratch:
        _replace(job_environment(Path(scratch)))
        try:
            yield
        finally:
            _replace(before)


def _replace(variables: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)


def say(line: str) -> None:
    """Tell the user something; what a command answers alone goes to the standard output."""
    print(line, file=sys.stderr, flush=True)


def span(seconds: float) -> str:
    """Seconds as hours, minutes and seconds: 0:02:05."""
    return str(timedelta(seconds=round(seconds)))
