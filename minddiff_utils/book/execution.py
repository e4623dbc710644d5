"""Execute one notebook so that what lies in its place is whole, and say how far it is."""

import errno
import io
import json
import os
import platform
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from functools import partial
from importlib import metadata
from pathlib import Path

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from minddiff_utils.book import span
from minddiff_utils.book.plan import Plan, Sheet
from minddiff_utils.book.run import (
    SHARDED,
    inputs_digest,
    is_done,
    output_digest,
    read_plan,
    read_record,
)
from minddiff_utils.io import BookError, InputError, atomic_path
from minddiff_utils.models.hub import PAPER, clip_name, hub_name
from minddiff_utils.settings import ADVANCED, recall

QUIET_SECONDS = 5.0  # between two lines about the same cell
STARTS = 3  # of a kernel, before it is given up
START_SECONDS = 600  # for a kernel to answer, also on a machine that is very busy
FULL = (errno.ENOSPC, errno.EDQUOT)  # a full disk, and a share of it that is used up


class Progress(io.TextIOBase):
    """A stream that turns the bars of `tqdm` into single lines of text, and drops the rest.

    Parameters
    ----------
    label : str
        What every line begins with.
    say : callable
        Takes a line.
    """

    def __init__(self, label: str, say: Callable[[str], None]) -> None:
        self.label, self.say, self.spoken = label, say, time.monotonic()

    def write(self, text: str) -> int:
        """Take what is printed, as it comes."""
        bars = re.findall(r"[^\r\n]*%\|[^\r\n]*", text)
        if bars and time.monotonic() - self.spoken >= QUIET_SECONDS:
            self.spoken = time.monotonic()
            self.say(f"{self.label} · {bars[-1].strip()}")
        return len(text)


def run_job(state: Path, subject: str, name: str, shard: int = 0) -> None:
    """Execute a notebook of the plan in a run's state, or compute one shard of its pictures.

    Parameters
    ----------
    state : Path
        What it is doing goes to `progress.log`, why it failed to a note beside it.
    subject : str
        Any word for a notebook about all subjects.
    name : str
        Of the notebook.
    shard : int
        Its number, from 1; 0 for the notebook itself.

    Raises
    ------
    InputError, BookError
        With what is wrong, and label.
    """
    plan = read_plan(state / "plan.json")
    (sheet,) = (sheet for sheet in plan.sheets if sheet.name == name)
    subject = "" if sheet.group else subject
    note = plan.state / f"{subject or 'all'}-{name}-{shard}.failure"
    note.unlink(missing_ok=True)
    label, begun = f"{subject or 'all subjects'} · {name}", time.monotonic()
    label += f" · shard {shard} of {plan.values['shards']}" if shard else ""
    with open(state / "progress.log", "a", buffering=1, encoding="utf-8") as log:
        print(f"{label} · started", file=log)
        try:
            with redirect_stderr(Progress(label, partial(print, file=log))):
                # Models in folders need no network; their libraries may ask it for news.
                if not model_revisions(plan):
                    os.environ["HF_HUB_OFFLINE"] = "1"
                if shard:
                    execute_shard(plan, sheet, subject, shard)
                else:
                    execute(plan, sheet, subject)
        except (InputError, OSError, RuntimeError, PapermillExecutionError) as error:
            told = explain(plan, sheet, subject, label, error)
            failure = {"message": str(told), "user": isinstance(told, InputError)}
            with atomic_path(note) as temporary:
                temporary.write_text(json.dumps(failure), encoding="utf-8")
            raise told from error
        print(f"{label} · done in {span(time.monotonic() - begun)}", file=log)


def execute(plan: Plan, sheet: Sheet, subject: str) -> Path:
    """Execute a notebook unless it is done; it appears under its name only when it ran to the end.

    Parameters
    ----------
    plan : Plan
    sheet : Sheet
    subject : str
        "" for a notebook about all subjects.
    Returns
    -------
    Path
        The executed notebook.

    Raises
    ------
    PapermillExecutionError, DeadKernelError, BookError
        If a cell fails; the notebook up to there is kept as `NN_name.failed.ipynb`.
    """
    folder = plan.run / subject
    output = folder / "notebooks" / f"{sheet.name}.ipynb"
    if is_done(plan, sheet, subject):
        return output
    output.parent.mkdir(parents=True, exist_ok=True)
    inputs, before = inputs_digest(plan, sheet, subject), _files(folder, subject)
    begun = time.monotonic()
    if sheet.name == SHARDED and plan.values["shards"] > 1:
        from minddiff_utils.reconstruction.shards import gather

        gather(folder)
    running = output.with_name(f".{sheet.name}.running.ipynb")
    try:
        _papermill(plan, sheet, subject, running)
        _need_figures(running)
    except (PapermillExecutionError, DeadKernelError, BookError):
        os.replace(running, output.with_suffix(".failed.ipynb"))
        raise
    os.replace(running, output)
    _record(plan, sheet, subject, inputs, before, time.monotonic() - begun)
    return output


def execute_shard(plan: Plan, sheet: Sheet, subject: str, number: int) -> None:
    """Compute the pictures of one shard of stage 2; see `shards.compute_shard`."""
    if is_done(plan, sheet, subject):
        return
    # Only now: libraries of the models ask the network for news when they are imported.
    from minddiff_utils.reconstruction.shards import compute_shard

    known = {**vars(recall(plan.run / subject)), **sheet.defaults, **ADVANCED[sheet.name]}
    given = {**known, **plan.values, "run_dir": str(plan.run), "subject": subject}
    compute_shard(given, number, plan.values["shards"], plan.root)


def _papermill(plan: Plan, sheet: Sheet, subject: str, running: Path) -> None:
    # papermill fills in `{name}` in a path, label a folder may be called just so.
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
                progress_bar={"desc": "cells"},
                stderr_file=sys.stderr,
            )
            return
        except RuntimeError as error:
            # Kernels that start at the same moment may choose the same port; one of them dies.
            if not starts_left or "before replying" not in str(error):
                raise


def _need_figures(running: Path) -> None:
    """Raise BookError if a cell that makes a figure of the book has drawn none."""
    for cell in nbformat.read(running, as_version=4).cells:
        name = cell.metadata.get("mystnb", {}).get("figure", {}).get("name")
        drawn = [kind for out in cell.get("outputs", []) for kind in out.get("data", {})]
        if name and not any(kind.startswith("image/") for kind in drawn):
            raise BookError(
                f"the cell of {name} has drawn no figure: its last line must be a figure of "
                "matplotlib."
            )


def explain(plan: Plan, sheet: Sheet, subject: str, label: str, error: Exception) -> Exception:
    """Return what to tell of an error: InputError if its cause lies in what was given."""
    kind, text = type(error).__name__, str(error)
    failed = plan.run / subject / "notebooks" / f"{sheet.name}.failed.ipynb"
    if isinstance(error, PapermillExecutionError):
        kind, text = error.ename, error.evalue
        above = nbformat.read(sheet.path, as_version=4).cells[: error.cell_index]
        tags = [tag for cell in above for tag in cell.metadata.get("tags", [])]
        # papermill has put a cell after the one of the parameters.
        label += f": cell {error.cell_index + ('parameters' not in tags)}"
    if kind == "InputError":
        return InputError(f"{label}: {text}")
    # HDF5 fails once more when it closes the file; what the system said stands above.
    trace = "".join(traceback.format_exception(error))
    if any(os.strerror(code) in trace for code in FULL):
        return BookError(
            f"{label}: no space is left on the disk that holds {plan.run}. Make room there, or "
            "choose another `run_dir`; the same command then goes on from here."
        )
    if isinstance(error, DeadKernelError):
        return BookError(
            f"{label}: its Python process was ended from outside, most often because the machine "
            f"ran out of memory. What it had done is in {failed}."
        )
    if isinstance(error, PapermillExecutionError):
        head = [line for line in error.source.splitlines() if line.strip()][:4]
        source = "\n".join(f"    {line}" for line in head)
        return BookError(f"{label} failed:\n{source}\n{kind}: {text}\nAll of it: {failed}")
    said = text if isinstance(error, BookError) else f"{kind}: {text}"
    return BookError(f"{label} failed: {said}")


def _files(folder: Path, subject: str) -> dict[str, tuple[int, int]]:
    """Size and date of what lies in a subject's folder, or beside the subjects' folders."""
    found = filter(Path.is_file, folder.rglob("*") if subject else folder.glob("*"))
    facts = {str(path.relative_to(folder)): path.stat() for path in found}
    return {
        name: (stat.st_size, stat.st_mtime_ns)
        for name, stat in facts.items()
        if not name.startswith((".", "shards", "notebooks", "provenance.json"))
    }


def _record(
    plan: Plan, sheet: Sheet, subject: str, inputs: str, before: dict, seconds: float
) -> None:
    """Add a notebook to the `provenance.json` of its folder: what it came from and what it left."""
    folder = plan.run / subject
    known, after = read_record(folder), _files(folder, subject)
    changed = {name for name, facts in after.items() if before.get(name) != facts}
    kept = known.get(sheet.name, {}).get("outputs", {}).keys() & after.keys()
    known[sheet.name] = {
        "parameters": plan.given(sheet, subject),
        "model_revisions": model_revisions(plan),
        "inputs": inputs,
        "outputs": {
            name: output_digest(folder / name)
            for name in [*sorted(changed | kept), f"notebooks/{sheet.name}.ipynb"]
        },
        "wall_time_s": round(seconds, 1),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    found = {dist.metadata["Name"]: dist.version for dist in metadata.distributions()}
    record = {
        "notebooks": known,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "git_commit": _git_commit(plan.root),
        "packages": {name: found[name] for name in sorted(found, key=str.lower) if name},
    }
    with atomic_path(folder / "provenance.json") as temporary:
        temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")


def model_revisions(plan: Plan) -> dict[str, str]:
    """The repositories of the Hugging Face hub that a run's models come from, if any."""
    given = {k: str(plan.place(k) or plan.values.get(k) or "") for k in ("models", *PAPER)}
    models = given.pop("models")
    if not models:
        return {}
    clips = [clip_name(models, role, name) for role, name in given.items()]
    return dict(filter(None, map(hub_name, [models, *clips])))


def _git_commit(folder: Path) -> str | None:
    """The commit that is checked out, with "+changes" if files differ from it; None without git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"]
    with suppress(OSError):
        answer = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        return answer.stdout.strip() or None
    return None
