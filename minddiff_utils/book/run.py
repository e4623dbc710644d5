"""Run the notebooks of a plan: Snakemake decides in which order, papermill executes each.

What lies in a notebook's place is whole, and a failure is told in one message.
"""

import errno
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import traceback
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import IO

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from minddiff_utils.book import say, span
from minddiff_utils.book.plan import Plan, Sheet, load_plan
from minddiff_utils.book.record import is_done, model_revisions, recorded
from minddiff_utils.io import BookError, InputError, atomic_path
from minddiff_utils.settings import ADVANCED, recall

SHARDED = "04_stage2"  # the chapter whose pictures can be shared out among jobs
CANCEL_SECONDS = 60.0  # for Snakemake to cancel its jobs on a cluster
QUIET_SECONDS = 5.0  # between two lines about the same cell
STARTS = 3  # of a kernel, before it is given up
START_SECONDS = 600  # for a kernel to answer, also on a machine that is very busy
FULL = (errno.ENOSPC, errno.EDQUOT)  # a full disk, and a share of it that is used up
# Runs a command, and ends it and all that it has started when the input does: when we are gone.
GUARD = ("sh", "-c", 'exec 3<&0 </dev/null; (cat <&3; kill -KILL 0) & exec "$@" 3<&-', "sh")


def run_notebooks(plan: Plan, cores: int, profile: Path | None, more: list[str], lock: int) -> None:
    """Let Snakemake run the notebooks that are not done, and tell how far they are.

    Parameters
    ----------
    plan : Plan
    cores : int
        That all jobs share.
    profile : Path or None
        Folder of a Snakemake profile, for a cluster.
    more : list of str
        Further arguments for Snakemake.
    lock : int
        Descriptor of a file that stays locked as long as Snakemake lives.

    Raises
    ------
    InputError, BookError
        With what the jobs that failed have said.
    """
    if not _mark_done(plan):
        return
    command = _snakemake(plan, cores, profile) + more
    log = plan.state / "progress.log"
    log.write_text("", encoding="utf-8")
    for note in plan.state.glob("*.failure"):
        note.unlink()
    with open(plan.state / "snakemake.log", "w", encoding="utf-8") as chatter:
        with subprocess.Popen(
            command if profile else [*GUARD, *command],
            stdin=subprocess.PIPE,
            stdout=chatter,
            stderr=chatter,
            process_group=0,
            pass_fds=(lock,),
        ) as process:
            try:
                _follow(log, process)
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
    config = write_plan(plan, 0 if profile else cores)
    command = [sys.executable, "-m", "snakemake", "--snakefile"]
    command += [str(plan.root / "notebooks" / "Snakefile"), "--directory", str(plan.state)]
    command += ["--configfile", str(config), "--nolock", "--rerun-triggers", "mtime"]
    command += ["--drop-metadata", "--rerun-incomplete", "--keep-going"]
    return command + (["--workflow-profile", str(profile)] if profile else ["--cores", str(cores)])


def _follow(log: Path, process: subprocess.Popen) -> None:
    """Tell what the jobs append to `log` until the process has ended."""
    with open(log, encoding="utf-8") as lines:
        running = True
        while running:
            running = process.poll() is None
            for line in lines:
                say(line.rstrip("\n"))
            time.sleep(0.2 * running)


def write_plan(plan: Plan, cores: int) -> Path:
    """Write what the Snakefile reads, and jobs to know the same plan again.

    Parameters
    ----------
    plan : Plan
    cores : int
        That jobs share; 0 on a cluster, whose profile says what each takes.
    """
    content = {
        "name": plan.name,
        "root": str(plan.root),
        "values": plan.values,
        "chapters": [sheet.name for sheet in plan.chapters],
        "group": [sheet.name for sheet in plan.group],
        "sharded": SHARDED,
        "cores": cores,
        "command": shlex.join([sys.executable, "-m", "minddiff_utils.cli", "job", "."]),
    }
    path = plan.state / "plan.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def read_plan(path: Path) -> Plan:
    """Read what `write_plan` has kept."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    root = Path(kept["root"])
    return load_plan(root / "notebooks" / "params" / f"{kept['name']}.yaml", root, kept["values"])


def _explain(plan: Plan) -> None:
    """Raise the errors that the jobs left; without any, show what Snakemake said."""
    notes = sorted(plan.state.glob("*.failure"))
    failures = [json.loads(note.read_text(encoding="utf-8")) for note in notes]
    if not failures:
        log = plan.state / "snakemake.log"
        said = log.read_text(encoding="utf-8").strip().splitlines()
        # What became of a cluster's jobs, and where each one's own log is.
        told = [line.strip() for line in said if re.search(r"SLURM-job|sbatch|\slog: ", line)]
        shown = "\n".join(dict.fromkeys(told) or said[-15:])
        raise BookError(f"Snakemake stopped:\n{shown}\nAll of it: {log}")
    kept = "The last good book stays: " if (plan.run / "html").exists() else "No book was built: "
    text = "\n\n".join(failure["message"] for failure in failures)
    kind = InputError if all(failure["user"] for failure in failures) else BookError
    raise kind(f"{text}\n\n{kept}{plan.run / 'html'}")


class Progress(io.TextIOBase):
    """A stream that turns the bars of `tqdm` into single lines of a log, and drops the rest.

    Parameters
    ----------
    label : str
        What every line begins with.
    log : file object
    """

    def __init__(self, label: str, log: IO[str]) -> None:
        self.label, self.log, self.spoken = label, log, time.monotonic()

    def write(self, text: str) -> int:
        """Take what is printed, as it comes."""
        bars = re.findall(r"[^\r\n]*%\|[^\r\n]*", text)
        if bars and time.monotonic() - self.spoken >= QUIET_SECONDS:
            self.spoken = time.monotonic()
            print(f"{self.label} · {bars[-1].strip()}", file=self.log)
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
        With what is wrong, and where.
    """
    plan = read_plan(state / "plan.json")
    (sheet,) = (sheet for sheet in plan.sheets if sheet.name == name)
    subject = "" if sheet.group else subject
    note = plan.state / f"{subject or 'all'}-{name}-{shard}.failure"
    note.unlink(missing_ok=True)
    label, begun = f"{subject or 'all subjects'} · {name}", time.monotonic()
    label += f" · shard {shard} of {plan.values['shards']}" if shard else ""
    with open(plan.state / "progress.log", "a", buffering=1, encoding="utf-8") as log:
        print(f"{label} · started", file=log)
        try:
            # Models in folders need no network; their libraries may ask it for news.
            if not model_revisions(plan):
                os.environ["HF_HUB_OFFLINE"] = "1"
            with redirect_stderr(Progress(label, log)):
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
    running = output.with_name(f".{sheet.name}.running.ipynb")
    with recorded(plan, sheet, subject):
        if sheet.name == SHARDED and plan.values["shards"] > 1:
            from minddiff_utils.reconstruction.stage2 import gather

            gather(folder)
        try:
            _papermill(plan, sheet, subject, running)
            _need_figures(running)
        except (PapermillExecutionError, DeadKernelError, BookError):
            os.replace(running, output.with_suffix(".failed.ipynb"))
            raise
        os.replace(running, output)
    return output


def execute_shard(plan: Plan, sheet: Sheet, subject: str, number: int) -> None:
    """Compute the pictures of one shard of stage 2; see `stage2.compute_shard`."""
    if is_done(plan, sheet, subject):
        return
    # Only now: libraries of the models ask the network for news when they are imported.
    from minddiff_utils.reconstruction.stage2 import compute_shard

    known = {**vars(recall(plan.run / subject)), **sheet.defaults, **ADVANCED[sheet.name]}
    given = {**known, **plan.values, "run_dir": str(plan.run), "subject": subject}
    compute_shard(given, number, plan.values["shards"], plan.root)


def _papermill(plan: Plan, sheet: Sheet, subject: str, running: Path) -> None:
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
    kind, said = type(error).__name__, f"failed: {type(error).__name__}: {error}"
    failed = plan.run / subject / "notebooks" / f"{sheet.name}.failed.ipynb"
    if isinstance(error, PapermillExecutionError):
        above = nbformat.read(sheet.path, as_version=4).cells[: error.cell_index]
        tags = [tag for cell in above for tag in cell.metadata.get("tags", [])]
        # papermill has put a cell after the one of the parameters.
        label += f": cell {error.cell_index + ('parameters' not in tags)}"
        source = textwrap.indent("\n".join(error.source.splitlines()[:4]), "    ")
        kind = error.ename
        said = f"failed:\n{source}\n{kind}: {error.evalue}\nAll of it: {failed}"
    if kind == "InputError":
        return InputError(f"{label}: {getattr(error, 'evalue', error)}")
    # HDF5 fails once more when it closes the file; what the system said stands above.
    trace = "".join(traceback.format_exception(error))
    if any(os.strerror(code) in trace for code in FULL):
        said = f"no space is left on the disk that holds {plan.run}. Make room there, or choose "
        said += "another `run_dir`; the same command then goes on from here."
    elif isinstance(error, DeadKernelError):
        said = "its Python process was ended from outside, most often because the machine ran out "
        said += f"of memory. What it had done is in {failed}."
    elif isinstance(error, BookError):
        said = str(error)
    return BookError(f"{label}: {said}")
