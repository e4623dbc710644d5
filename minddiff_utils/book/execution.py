"""Execute one notebook so that what lies in its place is whole, and say how far it is."""

import errno
import json
import os
import platform
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from importlib import metadata
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from minddiff_utils.book.plan import Plan, Sheet
from minddiff_utils.book.run import (
    SHARDED,
    inputs_digest,
    is_done,
    output_digest,
    read_record,
    state_folder,
    subject_folder,
)
from minddiff_utils.io import InputError, NotebookError, atomic_path
from minddiff_utils.models.hub import PAPER, clip_name, hub_name
from minddiff_utils.settings import ADVANCED, recall, resolve

QUIET_SECONDS = 5.0  # between two lines about the same cell
STARTS = 3  # of a kernel, before it is given up
START_SECONDS = 600  # for a kernel to answer, also on a machine that is very busy
FULL = (errno.ENOSPC, errno.EDQUOT)  # a full disk, and a share of it that is used up
Say = Callable[[str], None]


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

    def __init__(self, label: str, n_cells: int, say: Say) -> None:
        self.label, self.n_cells, self.say = label, n_cells, say
        self.started = self.spoken = time.monotonic()
        self.place = f"cell 0 of {n_cells}" if n_cells else ""

    def on_cell(self, cell: nbformat.NotebookNode, cell_index: int) -> None:
        """Remember where we are; nbclient calls this before each cell."""
        self.place = f"cell {cell_index + 1} of {self.n_cells}"
        self._line(self.place)

    def write(self, text: str) -> int:
        """Take what a cell prints; papermill calls this as it comes."""
        parts = [part.strip() for part in text.replace("\r", "\n").split("\n")]
        bars = [part for part in parts if "%|" in part or "it/s" in part or "s/it" in part]
        if bars:
            self._line(f"{self.place} · {bars[-1]}" if self.place else bars[-1])
        return len(text)

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


def label_of(sheet: Sheet, subject: str) -> str:
    """Subject and notebook, for messages."""
    return f"{subject or 'all subjects'} · {sheet.name}"


def execute(plan: Plan, sheet: Sheet, subject: str, say: Say = print) -> Path:
    """Execute a notebook unless it is done; it appears under its name only when it ran to the end.

    Parameters
    ----------
    plan : Plan
    sheet : Sheet
    subject : str
        "" for a notebook about all subjects.
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
    folder, label = subject_folder(plan, subject), label_of(sheet, subject)
    output = folder / "notebooks" / f"{sheet.name}.ipynb"
    if is_done(plan, sheet, subject):
        return output
    output.parent.mkdir(parents=True, exist_ok=True)
    inputs, before = inputs_digest(plan, sheet, subject), _files(folder, subject)
    begun = time.monotonic()
    if sheet.name == SHARDED and plan.shards > 1:
        _gather(folder)
    running = output.with_name(f".{sheet.name}.running.ipynb")
    try:
        _papermill(plan, sheet, subject, running, say)
        _need_figures(label, running)
    except (PapermillExecutionError, DeadKernelError, NotebookError) as error:
        failed = output.with_suffix(".failed.ipynb")
        os.replace(running, failed)
        raise _failure(plan, sheet, label, error, failed) from None
    os.replace(running, output)
    _record(plan, sheet, subject, inputs, before, time.monotonic() - begun)
    say(f"{label} · done in {clock(time.monotonic() - begun)}")
    return output


def execute_shard(plan: Plan, subject: str, number: int, say: Say = print) -> None:
    """Compute the pictures of one shard of stage 2; see `stage2.compute_shard`.

    Raises
    ------
    NotebookError
        With what is wrong.
    """
    (sheet,) = (sheet for sheet in plan.chapters if sheet.name == SHARDED)
    if is_done(plan, sheet, subject):
        return
    label = f"{label_of(sheet, subject)} · shard {number} of {plan.shards}"
    progress = Progress(label, 0, say)
    say(f"{label} · started")
    _stay_offline(plan)
    # Only now: libraries of the models ask the network for news when they are imported.
    from minddiff_utils.reconstruction.stage2 import compute_shard

    known = {**vars(recall(subject_folder(plan, subject))), **sheet.defaults, **ADVANCED[SHARDED]}
    given = {**known, **plan.values, "run_dir": str(plan.run), "subject": subject}
    try:
        with redirect_stderr(progress):
            compute_shard(given, number, plan.shards, plan.root)
    except RuntimeError as error:  # among them a GPU without memory left
        raise NotebookError(f"{label} failed: {type(error).__name__}: {error}") from error
    say(f"{label} · done in {clock(time.monotonic() - progress.started)}")


def _gather(folder: Path) -> None:
    from minddiff_utils.reconstruction.stage2 import gather

    gather(folder)


def _papermill(plan: Plan, sheet: Sheet, subject: str, running: Path, say: Say) -> None:
    # papermill adds a cell with the parameters of this run.
    n_cells = len(nbformat.read(sheet.path, as_version=4).cells) + 1
    label = label_of(sheet, subject)
    progress = Progress(label, n_cells, say)
    _stay_offline(plan)
    say(f"{label} · started")
    # papermill fills in `{name}` in a path, where a folder may be called just so.
    paths = (str(sheet.path), str(running))
    source, output = (path.replace("{", "{{").replace("}", "}}") for path in paths)
    for starts_left in reversed(range(STARTS)):
        try:
            papermill.execute_notebook(
                source,
                output,
                parameters=plan.given(sheet, subject),
                kernel_name="python3",
                start_timeout=START_SECONDS,
                cwd=str(plan.root / "notebooks"),
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


def _stay_offline(plan: Plan) -> None:
    """Models that lie in folders need no network; their libraries may ask it for news otherwise."""
    names = [plan.values.get(name) for name in ("models", "guide", "judge")]
    if all(resolve(name, plan.root).exists() for name in names if name):
        os.environ["HF_HUB_OFFLINE"] = "1"


def _need_figures(label: str, running: Path) -> None:
    """Raise NotebookError if a cell that makes a figure of the book has drawn none."""
    for cell in nbformat.read(running, as_version=4).cells:
        name = cell.metadata.get("mystnb", {}).get("figure", {}).get("name")
        drawn = [kind for out in cell.get("outputs", []) for kind in out.get("data", {})]
        if name and not any(kind.startswith("image/") for kind in drawn):
            raise NotebookError(
                f"{label}: the cell of {name} has drawn no figure: its last line must be a figure "
                "of matplotlib."
            )


def _failure(plan: Plan, sheet: Sheet, label: str, error: Any, failed: Path) -> NotebookError:
    """The notebook, the cell, the beginning of its source, and the error."""
    if isinstance(error, NotebookError):
        return NotebookError(f"{error} All of it: {failed}")
    if isinstance(error, DeadKernelError):
        return NotebookError(
            f"{label}: its Python process was ended from outside, most often because the machine "
            f"ran out of memory. What it had done is in {failed}."
        )
    place = f"{label}: cell {_source_cell(sheet, error.cell_index)}"
    if error.ename == "InputError":
        return NotebookError(f"{place}: {error.evalue}", user=True)
    # HDF5 fails once more when it closes the file; what the system said stands above.
    if is_full("\n".join([error.evalue, *error.traceback])):
        return NotebookError(f"{place}: {no_space(plan.run)}")
    head = [line for line in error.source.splitlines() if line.strip()][:4]
    source = "\n".join(f"    {line}" for line in head)
    said = f"{error.ename}: {error.evalue}"
    return NotebookError(f"{place} failed:\n{source}\n{said}\nAll of it: {failed}")


def _source_cell(sheet: Sheet, index: int) -> int:
    """Which cell of the source, from 1: papermill has put one after the parameters' cell."""
    cells = nbformat.read(sheet.path, as_version=4).cells
    tagged = [i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", [])]
    return index if tagged and index > tagged[0] else index + 1


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


def _files(folder: Path, subject: str) -> dict[str, tuple[int, int]]:
    """Size and date of what lies in a subject's folder, or beside the subjects' folders."""
    found = filter(Path.is_file, folder.rglob("*") if subject else folder.glob("*"))
    facts = {str(path.relative_to(folder)): path.stat() for path in found}
    return {
        name: (stat.st_size, stat.st_mtime_ns)
        for name, stat in facts.items()
        if not name.startswith((".", "shards", "notebooks")) and name != "provenance.json"
    }


def _record(
    plan: Plan, sheet: Sheet, subject: str, inputs: str, before: dict, seconds: float
) -> None:
    """Add a notebook to the `provenance.json` of its folder: what it came from and what it left."""
    folder = subject_folder(plan, subject)
    record = read_record(folder)
    known = record.setdefault("notebooks", {})
    after = _files(folder, subject)
    changed = {name for name, facts in after.items() if before.get(name) != facts}
    kept = known.get(sheet.name, {}).get("outputs", {}).keys() & after.keys()
    names = sorted(changed | kept) + [f"notebooks/{sheet.name}.ipynb"]
    known[sheet.name] = {
        "parameters": plan.given(sheet, subject),
        "model_revisions": model_revisions(plan),
        "inputs": inputs,
        "outputs": {n: output_digest(folder / n) for n in names if (folder / n).is_file()},
        "wall_time_s": round(seconds, 1),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    record |= {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "git_commit": _git_commit(plan.root),
        "packages": _versions(),
    }
    with atomic_path(folder / "provenance.json") as temporary:
        temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")


def model_revisions(plan: Plan) -> dict[str, str]:
    """The repositories of the Hugging Face hub that a run's models come from, if any."""
    given = {name: str(plan.values.get(name) or "") for name in ("models", *PAPER)}
    paths = {name: resolve(text, plan.root) for name, text in given.items()}
    names = {k: str(paths[k]) if text and paths[k].exists() else text for k, text in given.items()}
    models = names.pop("models")
    if not models:
        return {}
    clips = [clip_name(models, role, name) for role, name in names.items()]
    return dict(filter(None, map(hub_name, [models, *clips])))


def _git_commit(folder: Path) -> str | None:
    """The commit that is checked out, with "+changes" if files differ from it; None without git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"]
    try:
        answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def _versions() -> dict[str, str]:
    found = {dist.metadata["Name"]: dist.version for dist in metadata.distributions()}
    return {name: found[name] for name in sorted(found, key=str.lower) if name}


@contextmanager
def noted(plan: Plan, name: str, label: str) -> Iterator[None]:
    """Leave a note of a failure in the run's state, none after success."""
    note = state_folder(plan) / f"{name}.failure"
    note.unlink(missing_ok=True)
    try:
        try:
            yield
        except InputError as error:
            raise NotebookError(f"{label}: {error}", user=True) from None
        except OSError as error:
            told = no_space(plan.run) if is_full(error) else f"{error.strerror}: {error.filename}"
            raise NotebookError(f"{label}: {told}") from error
    except NotebookError as error:
        with atomic_path(note) as temporary:
            text = json.dumps({"message": str(error), "user": error.user})
            temporary.write_text(text, encoding="utf-8")
        raise


def watch_parent(parent: str, every: float = 1.0) -> None:
    """End this process with the one that asked for it, `HOST:PID`, if that runs on this machine."""
    host, _, pid = parent.rpartition(":")

    def watch() -> None:
        while True:
            try:
                os.kill(int(pid), 0)
                time.sleep(every)
            except ProcessLookupError:
                # The kernel notices by itself that we have gone and ends too.
                os.kill(os.getpid(), signal.SIGKILL)

    if host == os.uname().nodename:
        threading.Thread(target=watch, daemon=True).start()
