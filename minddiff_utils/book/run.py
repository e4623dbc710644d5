"""Run the notebooks of a plan: Snakemake decides in which order, papermill executes each.

What lies in a notebook's place is whole, and a failure is told in one message.
"""

import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import redirect_stderr, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from tenacity import retry, retry_if_exception_message, stop_after_attempt

from minddiff_utils.book import KEEP_MEMORY, BookError, span
from minddiff_utils.book.build import finish_page
from minddiff_utils.book.plan import Plan, Sheet, find_sheets
from minddiff_utils.book.record import is_done, model_revisions, recorded
from minddiff_utils.io import MAKE_ROOM, InputError, atomic_path, claim_run, write_text
from minddiff_utils.settings import ADVANCED, recall

SHARDED = "04_stage2"  # the chapter whose pictures can be shared out among jobs
CANCEL_SECONDS = 60.0  # for Snakemake to cancel its jobs on a cluster
# Kernels that start at the same moment may choose the same port; one of them dies.
PORT_TAKEN = retry_if_exception_message(match="Kernel died before replying")
FULL = (errno.ENOSPC, errno.EDQUOT)  # a full disk, and a share of it that is used up
# Runs a command, and ends it and all that it has started when the input does: when we are gone.
GUARD = ("sh", "-c", 'exec 3<&0 </dev/null; (cat <&3; kill -KILL 0) & exec "$@" 3<&-', "sh")


def run_notebooks(plan: Plan, cores: int, profile: Path | None, lock: int) -> None:
    """Let Snakemake run the notebooks that are not done, and tell how far they are.

    Parameters
    ----------
    plan : Plan
    cores : int
        That all jobs share.
    profile : Path or None
        Folder of a Snakemake profile, for a cluster.
    lock : int
        Descriptor of a file that stays locked as long as Snakemake lives.

    Raises
    ------
    BookError
        With what the jobs that failed have said.
    """
    if not _mark_done(plan):
        return
    command = _snakemake(plan, cores, profile)
    with (
        open(plan.state / "snakemake.log", "w", encoding="utf-8") as log,
        subprocess.Popen(
            command if profile else [*GUARD, *command],
            stdin=subprocess.PIPE,
            stdout=sys.stderr,  # what jobs tell
            stderr=None if profile else log,
            process_group=0,
            pass_fds=(lock,),
        ) as process,
    ):
        try:
            process.wait()
        except BaseException:
            if profile:  # Snakemake has to cancel its jobs on a cluster
                process.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(CANCEL_SECONDS)
            raise
    if process.returncode:
        _explain(plan)


def _mark_done(plan: Plan) -> int:
    """Leave marks for Snakemake of what is done, each newer than those before; count the rest."""
    marks = plan.state / "done"
    shutil.rmtree(marks, ignore_errors=True)
    marks.mkdir(parents=True)
    done = [(subject, sheet) for subject, sheet in plan.jobs if is_done(plan, sheet, subject)]
    for subject, sheet in done:
        (marks / f"{subject or 'all'}-{sheet.name}").touch()
    return len(plan.jobs) - len(done)


def _snakemake(plan: Plan, cores: int, profile: Path | None) -> list[str]:
    """The command, whose configuration is also where jobs read the plan again."""
    config = plan.state / "plan.json"
    # A profile says how many cores each job takes.
    content = asdict(plan) | {"sharded": SHARDED, "cores": 0 if profile else cores}
    config.write_text(json.dumps(content, default=str), encoding="utf-8")
    command = [sys.executable, "-m", "snakemake", "--snakefile"]
    command += [str(plan.root / "notebooks" / "Snakefile"), "--directory", str(plan.state)]
    command += ["--configfile", str(config), "--nolock", "--rerun-triggers", "mtime"]
    command += ["--drop-metadata", "--rerun-incomplete", "--keep-going"]
    return command + (["--workflow-profile", str(profile)] if profile else ["--cores", str(cores)])


def _explain(plan: Plan) -> None:
    """Raise the errors that the jobs left; without any, show what Snakemake said at last."""
    notes = sorted(plan.state.glob("done/*.failure"))
    if not notes:
        log = plan.state / "snakemake.log"
        said = "\n".join(log.read_text(encoding="utf-8").splitlines()[-15:])
        raise BookError(f"Snakemake stopped. What it said is above, or here:\n{said}\nin {log}")
    kept = "The last good book stays: " if (plan.run / "html").exists() else "No book was built: "
    text = "\n\n".join(note.read_text(encoding="utf-8") for note in notes)
    raise BookError(f"{text}\n\n{kept}{plan.run / 'html'}")


class Progress(io.TextIOBase):
    """A stream that prints the bars of `tqdm` as single lines, and drops the rest.

    Parameters
    ----------
    label : str
        What every line begins with.
    """

    def __init__(self, label: str) -> None:
        self.label = label

    def write(self, text: str) -> int:
        """Take what is printed, as it comes; of a bar neither its begin nor its end is told."""
        for bar in re.findall(r"[^\r\n]* [1-9]\d?%\|[^\r\n]*", text):
            print(f"{self.label} · {bar.strip()}", flush=True)
        return len(text)


def run_job(state: Path, subject: str, name: str, shard: int = 0) -> None:
    """Execute a notebook of the plan in a run's state, or compute one shard of its pictures.

    Parameters
    ----------
    state : Path
        Why it failed goes to a note there; what it is doing is printed.
    subject : str
        Any word for a notebook about all subjects.
    name : str
        Of the notebook.
    shard : int
        Its number, from 1; 0 for the notebook itself.

    Raises
    ------
    BookError
        With what is wrong, and where.
    """
    kept = json.loads((state / "plan.json").read_text(encoding="utf-8"))
    root = Path(kept["root"])
    plan = Plan(kept["name"], root, kept["values"], find_sheets(root / "notebooks"))
    (sheet,) = (sheet for sheet in plan.sheets if sheet.name == name)
    subject = "" if sheet.group else subject
    note = plan.state / "done" / f"{subject or 'all'}-{name}-{shard}.failure"
    note.unlink(missing_ok=True)
    label, begun = f"{subject or 'all subjects'} · {name}", time.monotonic()
    label += f" · shard {shard} of {plan.values['shards']}" if shard else ""
    print(f"{label} · started", flush=True)
    try:
        # Models in folders need no network; their libraries may ask it for news.
        if not model_revisions(plan):
            os.environ["HF_HUB_OFFLINE"] = "1"
        work = partial(execute_shard, number=shard) if shard else execute
        with redirect_stderr(Progress(label)):
            if not is_done(plan, sheet, subject):
                work(plan, sheet, subject)
    except (InputError, OSError, RuntimeError, PapermillExecutionError) as error:
        told = explain(plan, sheet, subject, label, error)
        write_text(note, told)
        raise BookError(told) from error
    print(f"{label} · done in {span(time.monotonic() - begun)}", flush=True)


def execute(plan: Plan, sheet: Sheet, subject: str) -> Path:
    """Execute a notebook; it appears under its name only when it ran to the end.

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
        If a cell fails or draws no figure where one is due; the notebook is kept as
        `NN_name.failed.ipynb`.
    """
    folder = plan.run / subject
    output = folder / "notebooks" / f"{sheet.name}.ipynb"
    with recorded(plan, sheet, subject), atomic_path(output) as running:
        if sheet.name == SHARDED and plan.values["shards"] > 1:
            from minddiff_utils.reconstruction.stage2 import gather

            gather(folder)
        try:
            run_notebook(sheet.path, running, plan.given(sheet, subject))
            finish_page(nbformat.read(running, as_version=4), subject)  # its figures are there
        except (PapermillExecutionError, DeadKernelError, BookError):
            os.replace(running, output.with_suffix(".failed.ipynb"))
            raise
    return output


def execute_shard(plan: Plan, sheet: Sheet, subject: str, number: int) -> None:
    """Compute the pictures of one shard of stage 2; see `stage2.compute_shard`."""
    # Only now: libraries of the models ask the network for news when they are imported.
    from minddiff_utils.reconstruction.stage2 import compute_shard

    known = {**vars(recall(plan.run / subject)), **sheet.defaults, **ADVANCED[sheet.name]}
    given = {**known, **plan.values, "run_dir": str(plan.run), "subject": subject}
    compute_shard(given, number, plan.values["shards"], plan.root)


@retry(retry=PORT_TAKEN, stop=stop_after_attempt(3), reraise=True)
def run_notebook(source: Path, output: Path, parameters: Mapping[str, Any]) -> None:
    """Execute a notebook with parameters, in the folder that it lies in.

    Raises
    ------
    PapermillExecutionError, DeadKernelError
        If a cell fails; the notebook up to there is in `output`.
    """
    # papermill fills in `{name}` in a path, where a folder may be called just so.
    paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (source, output)]
    papermill.execute_notebook(
        *paths,
        parameters=dict(parameters),
        kernel_name="python3",
        start_timeout=600,  # seconds, for a machine that is very busy
        cwd=str(source.parent),
        progress_bar={"desc": "cells"},
        stderr_file=sys.stderr,
        request_save_on_cell_execute=False,  # megabytes, for every cell; once is enough
    )


def judge_pictures(root: Path, out: Path, given: Mapping[str, Any]) -> Path:
    """Run the notebook `evaluate`: any method's pictures judged.

    Parameters
    ----------
    root : Path
        The project's folder.
    out : Path
        Where results go: a new folder, or one of an earlier call.
    given : mapping
        Parameters of the notebook.

    Returns
    -------
    Path
        Of the executed notebook.

    Raises
    ------
    InputError, BookError
        With what the notebook has said.
    """
    source, executed = root / "notebooks" / "evaluate.ipynb", claim_run(out) / "evaluate.ipynb"
    for name in KEEP_MEMORY:  # pictures of many sizes would leave gaps in what is kept
        os.environ.pop(name, None)
    try:
        with atomic_path(executed) as running:
            run_notebook(source, running, {**given, "out": str(out)})
    except PapermillExecutionError as error:
        kind = InputError if error.ename == "InputError" else BookError
        raise kind(error.evalue if kind is InputError else str(error)) from None
    return executed


def explain(plan: Plan, sheet: Sheet, subject: str, label: str, error: Exception) -> str:
    """Return what to tell of an error."""
    kind, said = type(error).__name__, f"failed: {type(error).__name__}: {error}"
    failed = plan.run / subject / "notebooks" / f"{sheet.name}.failed.ipynb"
    if isinstance(error, PapermillExecutionError):
        # Counted from 1, without the cell that papermill has put after that of the parameters.
        label += f": cell {error.cell_index}"
        source = "\n".join(f"    {line}" for line in error.source.splitlines()[:4])
        kind = error.ename
        said = f"failed:\n{source}\n{kind}: {error.evalue}\nAll of it: {failed}"
    if kind == "InputError":
        return f"{label}: {getattr(error, 'evalue', error)}"
    # HDF5 fails once more when it closes the file; what the system said stands above.
    trace = "".join(traceback.format_exception(error))
    if any(os.strerror(code) in trace for code in FULL):
        said = f"no space is left on the disk that holds {plan.run}. {MAKE_ROOM}"
    elif isinstance(error, DeadKernelError):
        said = "its Python process was ended from outside, most often because the machine ran out "
        said += f"of memory. What it had done is in {failed}."
    elif isinstance(error, BookError):
        said = str(error)
    return f"{label}: {said}"
