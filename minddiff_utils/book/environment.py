"""What the processes that compute find around them, whatever the user's shell and home hold."""

import importlib.util
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# For glibc: freed memory is kept for the next step of the same size, which spares the system's
# clearing of it, some 5 % of stage 2's time.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "1000000000", "MALLOC_TRIM_THRESHOLD_": "4000000000"}
# What other tools may have set for themselves, and would change results or pages here.
DROPPED = (
    "SNAKEMAKE_PROFILE",
    "PYTHONSTARTUP",  # IPython runs that file before every notebook
    "PYTHONIOENCODING",
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
    for name in DROPPED:
        found.pop(name, None)
    matplotlib = importlib.util.find_spec("matplotlib")
    assert matplotlib and matplotlib.origin
    found |= {
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "MATPLOTLIBRC": str(Path(matplotlib.origin).parent / "mpl-data"),
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
        models = home / ".cache" / "huggingface"
        found |= {"HF_HOME": str(models)} if models.is_dir() and "HF_HOME" not in found else {}
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
