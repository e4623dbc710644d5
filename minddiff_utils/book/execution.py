"""Execute one notebook so that what lies in its place is whole, and say how far it is."""

import errno
import json
import os
import platform
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from importlib import metadata
from pathlib import Path
from typing import Any

import h5py
import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from minddiff_utils.book.runs import Job
from minddiff_utils.io import InputError, NotebookError, atomic_path
from minddiff_utils.models.hub import (
    CLIP_FILES,
    CLIP_PARTS,
    DIFFUSION_FILES,
    PAPER,
    PARTS,
    clip_name,
    find_model,
    hub_name,
)
from minddiff_utils.parameters import WORDS
from minddiff_utils.storage import open_to_write

# What each notebook leaves in the subject's folder, `.partial` files among it. A computation whose
# parameters, data or code have changed starts without these; one that was merely stopped finds them
# and goes on.
WRITES = {
    "02_decoding": (
        "features.h5*",
        "decoders",
        "decoded.h5",
        "decoded_shuffled.h5",
        "accuracy*.csv",
    ),
    "03_stage1": ("stage1.h5*", "reconstructions.h5"),
    "04_stage2": ("trace*.h5*", "shards"),
    "05_metrics": ("metrics.csv", "results.*", "seconds.csv", "controls"),
}
# What it adds to a file of an earlier notebook.
ADDS = {
    "04_stage2": (
        "reconstructions.h5",
        frozenset({"stage2", "algorithm_1", "no_z", "no_c", "shuffled"}),
    ),
    "05_metrics": ("reconstructions.h5", frozenset(WORDS["controls"])),
}
SHARDED = "04_stage2"  # the chapter whose pictures can be shared out among processes
QUIET_SECONDS = 5.0  # between two lines about the same cell
STARTS = 3  # of a kernel, before it is given up
START_SECONDS = 600  # for a kernel to answer, also on a machine that is very busy
FULL = (errno.ENOSPC, errno.EDQUOT)  # a full disk, and a share of it that is used up


class Progress:
    """Turns cells and the `tqdm` bars inside them into single lines of text.

    Parameters
    ----------
    label : str
        What every line begins with.
    n_cells : int
        Number of cells, for "cell 3 of 14"; 0 for what has no cells.
    say : callable
        Takes a line.
    """

    def __init__(self, label: str, n_cells: int, say: Callable[[str], None]) -> None:
        self.label, self.n_cells, self.say = label, n_cells, say
        self.started = self.spoken = time.monotonic()
        self.place = f"cell 0 of {n_cells}" if n_cells else ""

    def on_cell(self, cell: nbformat.NotebookNode, cell_index: int) -> None:
        """Remember where we are; nbclient calls this before each cell."""
        self.place = f"cell {cell_index + 1} of {self.n_cells}"
        self._line(self.place)

    def write(self, text: str) -> None:
        """Take what a cell prints; papermill calls this as it comes."""
        parts = [part.strip() for part in text.replace("\r", "\n").split("\n")]
        bars = [part for part in parts if "%|" in part or "it/s" in part or "s/it" in part]
        if bars:
            self._line(f"{self.place} · {bars[-1]}" if self.place else bars[-1])

    def flush(self) -> None:
        """Nothing is held back."""

    def _line(self, text: str) -> None:
        now = time.monotonic()
        if now - self.spoken >= QUIET_SECONDS:
            self.spoken = now
            self.say(f"{self.label} · {text} · {clock(now - self.started)}")


def clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def execute(job: Job, say: Callable[[str], None] = print) -> Path:
    """Execute a job's notebook; its output appears under its name only when it ran to the end.

    Parameters
    ----------
    job : Job
    say : callable
        Takes lines about the progress.

    Returns
    -------
    Path
        The executed notebook.

    Raises
    ------
    NotebookError
        If a cell fails; the notebook up to there is kept as `NN_name.failed.ipynb`.
    """
    output = Path(job.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    failed = output.with_suffix(".failed.ipynb")
    failed.unlink(missing_ok=True)
    begin(job)
    _gather(job, say)
    begun = time.monotonic()
    running = output.with_name(f".{output.stem}.running.ipynb")
    try:
        _papermill(job, running, say)
    except PapermillExecutionError as error:
        os.replace(running, failed)
        raise NotebookError(_explain(job, error, failed), error.ename == "InputError") from None
    except DeadKernelError:
        os.replace(running, failed)
        raise NotebookError(
            f"{job.label}: its Python process was ended from outside, most often because the "
            f"machine ran out of memory. What it had done is in {failed}."
        ) from None
    _need_figures(job, running, failed)
    os.replace(running, output)
    if job.notebook == SHARDED:
        shutil.rmtree(_shards(job), ignore_errors=True)
    seconds = time.monotonic() - begun
    _record(job, seconds)
    say(f"{job.label} · done in {clock(seconds)}")
    return output


def _need_figures(job: Job, running: Path, failed: Path) -> None:
    """Raise NotebookError if a cell that makes a figure of the book has drawn none."""
    for cell in nbformat.read(running, as_version=4).cells:
        name = cell.metadata.get("mystnb", {}).get("figure", {}).get("name")
        drawn = [kind for out in cell.get("outputs", []) for kind in out.get("data", {})]
        if name and not any(kind.startswith("image/") for kind in drawn):
            os.replace(running, failed)
            raise NotebookError(
                f"{job.label}: the cell of {name} has drawn no figure: its last line must be a "
                f"figure of matplotlib. All of it: {failed}"
            )


def _papermill(job: Job, running: Path, say: Callable[[str], None]) -> None:
    # papermill adds a cell with the parameters of this run.
    n_cells = len(nbformat.read(job.source, as_version=4).cells) + 1
    progress = Progress(job.label, n_cells, say)
    _stay_offline(job)
    say(f"{job.label} · started")
    # papermill fills in `{name}` in a path, where a folder may be called just so.
    paths = (job.source, str(running))
    source, output = (path.replace("{", "{{").replace("}", "}}") for path in paths)
    for starts_left in reversed(range(STARTS)):
        try:
            papermill.execute_notebook(
                source,
                output,
                parameters=job.parameters,
                kernel_name="python3",
                start_timeout=START_SECONDS,
                cwd=job.cwd,
                progress_bar=False,
                stderr_file=progress,
                stdout_file=progress,
                on_cell_start=progress.on_cell,
            )
            return
        except RuntimeError as error:
            # Kernels that start at the same moment may choose the same port; one of them dies.
            if not starts_left or "before replying" not in str(error):
                raise


def _stay_offline(job: Job) -> None:
    """Models that lie in folders need no network; their libraries may ask it for news otherwise."""
    if not _revisions(job):
        os.environ["HF_HUB_OFFLINE"] = "1"


def execute_shard(
    job: Job, number: int, count: int, say: Callable[[str], None] = print
) -> list[Path]:
    """Compute a chapter's results for one block of pictures; see `shards.compute_shard`.

    Parameters
    ----------
    job : Job
        That of the chapter.
    number, count : int
        Which shard, from 1, of how many.
    say : callable
        Takes lines about the progress.

    Raises
    ------
    NotebookError
        With what is wrong.
    """
    label = f"{job.label} · shard {number} of {count}"
    progress = Progress(label, 0, say)
    say(f"{label} · started")
    try:
        _stay_offline(job)
        # Only now: libraries of the models ask the network for news when they are imported.
        from minddiff_utils.reconstruction.shards import compute_shard

        with redirect_stderr(progress):
            files = compute_shard(job.parameters, number, count, job.cwd)
    except InputError as error:
        raise NotebookError(f"{label}: {error}", user=True) from None
    except RuntimeError as error:  # among them a GPU without memory left
        if is_full(error):
            raise NotebookError(f"{label}: {no_space(job.run)}") from error
        raise NotebookError(f"{label} failed: {type(error).__name__}: {error}") from error
    say(f"{label} · done in {clock(time.monotonic() - progress.started)}")
    return files


def _shards(job: Job) -> Path:
    """Where shards leave their files until the chapter has used them."""
    return Path(job.run) / job.subject / "shards"


def _gather(job: Job, say: Callable[[str], None]) -> None:
    """Put together what shards of this chapter have computed, if there were any."""
    if job.notebook != SHARDED or not _shards(job).is_dir():
        return
    from minddiff_utils.reconstruction.shards import gather

    files = gather(_shards(job).parent)
    names = ", ".join(path.name for path in files) or "nothing: shards are missing, or do not fit"
    say(f"{job.label} · gathered {names}")


def _explain(job: Job, error: PapermillExecutionError, failed: Path) -> str:
    """The notebook, the cell, the beginning of its source, and the error."""
    place = f"{job.label}: cell {_source_cell(job, error.cell_index)}"
    if error.ename == "InputError":
        return f"{place}: {error.evalue}"
    # HDF5 fails once more when it closes the file; what the system said stands above.
    if is_full("\n".join([error.evalue, *error.traceback])):
        return f"{place}: {no_space(job.run)}"
    head = [line for line in error.source.splitlines() if line.strip()][:4]
    source = "\n".join(f"    {line}" for line in head)
    return f"{place} failed:\n{source}\n{error.ename}: {error.evalue}\nAll of it: {failed}"


def is_full(error: BaseException | str | None) -> bool:
    """Whether an error, or one that it came from, says that a disk is full."""
    if isinstance(error, BaseException):
        return is_full(str(error)) or is_full(error.__context__)
    return any(os.strerror(code) in (error or "") for code in FULL)


def no_space(folder: str | Path) -> str:
    """What to tell when the disk of a folder is full."""
    return (
        f"no space is left on the disk that holds {folder}. Make room there, or choose another "
        "`run_dir`; the same command then goes on from here."
    )


def _source_cell(job: Job, index: int) -> int:
    """Which cell of the source, from 1: papermill has put one after the parameters' cell."""
    cells = nbformat.read(job.source, as_version=4).cells
    tagged = [i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", [])]
    return index if tagged and index > tagged[0] else index + 1


def begin(job: Job) -> None:
    """Start afresh unless the same computation was begun before and only has to go on.

    Without effect if called again: of shards that run side by side none removes another's work if
    this was called before them.

    Raises
    ------
    InputError
        If the recording or a folder of models is not there; then nothing is removed.
    """
    folder = Path(job.run) / job.subject
    mark = Path(job.output).with_name(f".{job.notebook}.begun")
    if not mark.exists() or mark.read_text(encoding="utf-8") != job.data:
        _check_inputs(job)  # a mistyped path must not cost the results of the right one
        forget(folder, job.notebook)
        with atomic_path(mark) as temporary:
            temporary.write_text(job.data, encoding="utf-8")


def _check_inputs(job: Job) -> None:
    """Raise InputError if the recording is not there, or a folder of models lacks a part."""
    given, folder = job.parameters, Path(job.cwd)
    if given.get("data_path") and not (folder / given["data_path"]).exists():
        raise InputError(
            f"There is no {folder / given['data_path']}: give the recording's folder or file as "
            "`data_path`."
        )
    if not given.get("models"):
        return
    models = _from_folder(given["models"], folder)
    if hub_name(models) is None:
        alone = (Path(models) / "model_index.json").exists()
        inside = Path(models) if alone else Path(models) / "stable_diffusion"
        find_model(inside, DIFFUSION_FILES, PARTS)
    for role in PAPER.keys() & given.keys():
        name = clip_name(models, role, _from_folder(given[role], folder))
        if hub_name(name) is None:
            find_model(name, CLIP_FILES, CLIP_PARTS)


def forget(folder: Path, notebook: str) -> None:
    """Remove what a notebook wrote into a subject's folder."""
    for pattern in WRITES.get(notebook, ()):
        for path in folder.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    name, methods = ADDS.get(notebook, ("", frozenset()))
    if name and (folder / name).exists():
        _drop(folder / name, methods)


def _drop(path: Path, names: frozenset[str]) -> None:
    """Take datasets out of an HDF5 file."""
    with h5py.File(path) as old:
        if names.isdisjoint(old):
            return
        n_bytes = path.stat().st_size
        with atomic_path(path) as temporary, open_to_write(temporary, "w", n_bytes) as new:
            for name in old.keys() - names:
                old.copy(name, new)


def _record(job: Job, seconds: float) -> None:
    """Add a notebook to the `provenance.json` of its subject."""
    path = Path(job.run) / job.subject / "provenance.json"
    record: dict[str, Any] = {}
    if path.exists():
        record = json.loads(path.read_text(encoding="utf-8"))
    record |= {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "git_commit": _git_commit(Path(job.cwd)),
        "packages": _versions(),
    }
    record.setdefault("notebooks", {})[job.notebook] = {
        "parameters": job.parameters,
        "model_revisions": _revisions(job),
        "computation": job.data,
        "wall_time_s": round(seconds, 1),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")


def _revisions(job: Job) -> dict[str, str]:
    """The repositories of the Hugging Face hub that a notebook's models come from, if any."""
    given = [job.parameters.get(key) or "" for key in ("models", *PAPER)]
    models, *clips = (_from_folder(name, Path(job.cwd)) for name in given)
    roles = zip(PAPER, clips, strict=True)
    names = [models, *(clip_name(models, role, clip) for role, clip in roles)]
    return dict(filter(None, map(hub_name, names)))


def _from_folder(name: str, folder: Path) -> str:
    """A path as seen from a folder; a name of the hub stays as it is."""
    return str(folder / name) if name and (folder / name).exists() else name


def _git_commit(folder: Path) -> str | None:
    """The commit that is checked out, with "+changes" if files differ from it; None without git."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def _versions() -> dict[str, str]:
    found = {dist.metadata["Name"]: dist.version for dist in metadata.distributions()}
    return {name: found[name] for name in sorted(found, key=str.lower) if name}


def watch_parent(pid: int, every: float = 1.0) -> None:
    """End this process when the process `pid` has gone, so that no orphan writes into a run."""

    def watch() -> None:
        while True:
            time.sleep(every)
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                # The kernel notices by itself that we have gone and ends too.
                os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
