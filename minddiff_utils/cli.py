"""The command `minddiff`: what the Makefile and Snakemake call."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from minddiff_utils.book.environment import known_environment
from minddiff_utils.data_commands import check, fetch_app
from minddiff_utils.io import BuildError, InputError, NotebookError, atomic_path, lock_file

# What takes long to import is imported where it is used: every command starts at once.
if TYPE_CHECKING:
    from minddiff_utils.book.runs import Job, Plan

ROOT = Path(__file__).resolve().parent.parent
DONE = "· done in"  # in the line that ends a notebook
CANCEL_SECONDS = 60.0  # for Snakemake to cancel its jobs on a cluster
SLOT_SECONDS = 0.2  # between two looks whether a lock is free
NOTE_BYTES = 2**14  # that the note of a failure, in its temporary file, may take
WAIT_SECONDS = 20.0  # for the rest of a killed run to notice and end

app = typer.Typer(
    help="MindDiffuser, from brain activity to pictures, as a book.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(check)
app.add_typer(fetch_app, name="fetch")

ParamsArgument = Annotated[
    str, typer.Argument(help="A name from notebooks/params, or the path of a YAML file.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a value of the parameter file."),
]
DataOption = Annotated[
    Path | None, typer.Option("--data", help="Where the recording is: replaces data_path.")
]
CoresOption = Annotated[
    int, typer.Option(min=0, help="CPU cores to use; 0 for all that there are.")
]
ProfileOption = Annotated[
    str,
    typer.Option(help="Run on a cluster: a name from notebooks/profiles, or a folder of your own."),
]
ParentOption = Annotated[str, typer.Option(help="HOST:PID without which to stop.")]
LogOption = Annotated[Path | None, typer.Option(help="Where lines about progress go.")]
AtOnceOption = Annotated[
    int, typer.Option(min=0, help="Wait while so many jobs of this run are at work; 0: never.")
]


@app.command()
def book(
    params: ParamsArgument,
    cores: CoresOption = 0,
    changes: SetOption = None,
    data: DataOption = None,
    root: Annotated[Path, typer.Option(help="The project's folder.")] = ROOT,
    profile: ProfileOption = "",
    snakemake: Annotated[str, typer.Option(help="More arguments for Snakemake.")] = "",
) -> None:
    """Run every notebook for every subject and build the HTML; do only what is left to do."""
    started = time.monotonic()
    plan = _plan(root, params, changes, data)
    where = _profile(root, profile) if profile else None
    with _locked(plan.run) as lock:
        _make_phantom(plan)
        cores = cores or os.cpu_count() or 1
        _run_notebooks(plan, root, cores, where, shlex.split(snakemake), lock)
        from minddiff_utils.book import build as pages

        source = pages.assemble(plan, root / "book", root / "_config.yml")
        built = pages.build_html(source, plan.run / "html", _say)
    _say(f"The book is {'ready' if built else 'up to date'} ({_clock(started)}). Open it:")
    print(plan.run / "html" / "index.html")


@app.command()
def run(
    notebook: Annotated[str, typer.Argument(help="Such as 02_decoding.")],
    params: ParamsArgument,
    subject: Annotated[str, typer.Argument(help="Such as subj01; - for a page about all.")],
    changes: SetOption = None,
    data: DataOption = None,
    root: Annotated[Path, typer.Option(help="The project's folder.")] = ROOT,
) -> None:
    """Execute one notebook for one subject, as the book does."""
    from minddiff_utils.book.runs import make_jobs

    plan = _plan(root, params, changes, data)
    subject = "" if subject == "-" else subject
    with _locked(plan.run):
        _make_phantom(plan)
        jobs = [job for _, job in make_jobs(plan, plan.run / ".state")]
        chosen = [job for job in jobs if (job.notebook, job.subject) == (notebook, subject)]
        if not chosen:
            known = ", ".join(f"{job.notebook} {job.subject or '-'}" for job in jobs)
            raise InputError(
                f"There is no {notebook} {subject or '-'} in {params}. Known: {known}."
            )
        from minddiff_utils.book.execution import execute

        with _noted(chosen[0]):
            execute(chosen[0], _say)


@app.command(hidden=True)
def job(
    file: Path, parent: ParentOption = "", log: LogOption = None, at_once: AtOnceOption = 0
) -> None:
    """Execute one notebook from its job file; Snakemake calls this."""
    from minddiff_utils.book.execution import execute
    from minddiff_utils.book.runs import read_job

    _watch(parent)
    todo = read_job(file)
    say = _appender(log) if log else _say
    with _slot(Path(todo.run), at_once), _noted(todo):
        execute(todo, say)


@app.command(hidden=True)
def shard(
    file: Path,
    number: Annotated[int, typer.Argument(min=1)],
    count: Annotated[int, typer.Argument(min=1)],
    parent: ParentOption = "",
    log: LogOption = None,
    at_once: AtOnceOption = 0,
) -> None:
    """Compute one block of pictures of a notebook's job file; Snakemake calls this."""
    from minddiff_utils.book.execution import execute_shard
    from minddiff_utils.book.runs import read_job

    _watch(parent)
    todo = read_job(file)
    say = _appender(log) if log else _say
    with _slot(Path(todo.run), at_once), _noted(todo, f"-{number}"):
        execute_shard(todo, number, count, say)


@contextmanager
def _slot(run: Path, n: int) -> Iterator[None]:
    """Wait until fewer than `n` jobs of a run are at work on this machine.

    Snakemake 9.15 may start more than its cores allow: snakemake/snakemake#3913.
    """
    with ExitStack() as stack:
        names = [run / ".state" / f"slot-{k}" for k in range(n)]
        slots = [stack.enter_context(open(name, "a", encoding="utf-8")) for name in names]
        while slots and not any(map(lock_file, slots)):
            time.sleep(SLOT_SECONDS)
        yield


def _watch(parent: str) -> None:
    """Stop with the process that asked for this one, where it runs on the same machine."""
    from minddiff_utils.book.execution import watch_parent

    host, _, pid = parent.rpartition(":")
    if host == os.uname().nodename:
        watch_parent(int(pid))


@app.command()
def data(params: ParamsArgument, root: Path = ROOT) -> None:
    """Make the phantom that a parameter file asks for, if it is not there yet."""
    _make_phantom(_plan(root, params, None, None))


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="Folder for the NSD tree.")],
    subjects: Annotated[str, typer.Option(help="Names, with commas between.")] = "subj01,subj02",
    n_train: Annotated[int, typer.Option(min=1, help="Training pictures a subject.")] = 1200,
    n_test: Annotated[int, typer.Option(min=1, help="Test pictures, shared by all.")] = 64,
    repetitions: Annotated[int, typer.Option(min=1, help="Trials a picture, at most.")] = 3,
    betas: Annotated[str, typer.Option(help="Format of the betas: hdf5 or nii.gz.")] = "hdf5",
) -> None:
    """Simulate a recording of brain activity and write it as an NSD tree."""
    from minddiff_utils.phantom.nsd_writer import write_tree

    names = tuple(name.strip() for name in subjects.split(","))
    write_tree(
        out, subjects=names, n_train=n_train, n_test=n_test, repetitions=repetitions, betas=betas
    )
    print(out)


def _plan(root: Path, params: str, changes: list[str] | None, data: Path | None) -> "Plan":
    """The plan of a parameter file with the changes of the command line."""
    from minddiff_utils.book.runs import load_plan
    from minddiff_utils.parameters import check as check_values

    is_path = params.endswith((".yaml", ".yml"))
    path = Path(params) if is_path else root / "notebooks" / "params" / f"{params}.yaml"
    values = dict(_change(text) for text in changes or [])
    if data is not None:
        data = Path(check_values(data_path=str(data))["data_path"])
        if not data.exists():
            raise InputError(f"There is no {data}: expected the recording for `{path.stem}`.")
        values["data_path"] = str(data.resolve())
    plan = load_plan(path, root / "notebooks", values)
    if not plan.parameters.get("data_path"):
        name = path.stem.upper()
        raise InputError(
            f"Say where the recording is: make book PARAMS={path.stem} {name}=path, or "
            f"minddiff book {path.stem} --data path."
        )
    return plan


def _change(text: str) -> tuple[str, Any]:
    from minddiff_utils.book.runs import parse_yaml

    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise InputError(f"--set {text}: expected KEY=VALUE, such as seed=1.")
    try:
        return name, parse_yaml(value)
    except yaml.YAMLError:
        raise InputError(f"--set {text}: the value is not valid YAML.") from None


def _make_phantom(plan: "Plan") -> None:
    """Write the phantom's tree if the plan asks for one, and what the page about it shows."""
    from minddiff_utils.phantom.nsd_writer import write_tree
    from minddiff_utils.phantom.pages import write_pieces

    if plan.phantom is None:
        if "phantom" in plan.pages:
            write_pieces(plan.run, None, plan.subjects)
        return
    write_tree(plan.path("data_path"), subjects=plan.subjects, **plan.phantom)
    write_pieces(plan.run, plan.path("data_path"), plan.subjects)


def _profile(root: Path, name: str) -> Path:
    """The folder of a Snakemake profile."""
    known = root / "notebooks" / "profiles"
    for folder in (known / name, Path(name)):
        if (folder / "config.yaml").is_file():
            return folder.resolve()
    names = ", ".join(sorted(path.parent.name for path in known.glob("*/config.yaml"))) or "none"
    raise InputError(
        f"--profile {name}: expected a folder with a config.yaml, or one of {known}: {names}."
    )


def _run_notebooks(
    plan: "Plan", root: Path, cores: int, profile: Path | None, more: list[str], lock: int
) -> None:
    """Let Snakemake execute what is not up to date; show the progress; explain a failure."""
    state = plan.run / ".state"
    jobs = _begin(plan, state)
    log = state / "progress.log"
    log.write_text("", encoding="utf-8")
    n_jobs = [len(plan.subjects) * n for n in (1, plan.shards)]
    threads, shard_threads = (_threads(n, cores, profile) for n in n_jobs)
    at_once = 0 if profile else max(1, cores // shard_threads)
    options = ["--parent", f"{os.uname().nodename}:{os.getpid()}", "--log", str(log)]
    options += ["--at-once", str(at_once)]
    order = _write_order(plan, state, threads=threads, shard_threads=shard_threads, options=options)
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(root / "notebooks/Snakefile")]
    command += ["--configfile", str(order), "--directory", str(state)]
    command += ["--workflow-profile", str(profile)] if profile else ["--cores", str(cores)]
    command += ["--nolock", "--rerun-incomplete", "--rerun-triggers", "mtime", "--keep-going"]
    with open(state / "snakemake.log", "w", encoding="utf-8") as chatter:
        process = subprocess.Popen(
            command + more,
            stdout=chatter,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            process_group=0,
            pass_fds=(lock,),  # the folder stays locked as long as Snakemake lives
        )
        try:
            _follow(log, process, [Path(job.output) for job in jobs])
        except KeyboardInterrupt:
            _stop(process, cancel=profile is not None)
            _say("Stopped. The same command goes on from here.")
            sys.exit(130)
    if process.returncode:
        _explain_failure(plan, state)


def _begin(plan: "Plan", state: Path) -> "list[Job]":
    """Write the jobs, and clear away what failures and earlier computations have left."""
    from minddiff_utils.book.execution import SHARDED, begin
    from minddiff_utils.book.runs import make_jobs

    jobs = [job for _, job in make_jobs(plan, state)]
    for job in jobs:
        if plan.shards > 1 and job.notebook == SHARDED:
            begin(job)  # before its shards do, side by side
    for note in state.glob("*.failure"):
        note.unlink()
    return jobs


def _threads(n_jobs: int, cores: int, profile: Path | None) -> int:
    """Threads of each of so many jobs that run side by side: together they use the cores once.

    What a job of a cluster may use is for its profile to say.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit():
        return max(1, int(wanted))
    return 1 if profile else max(1, cores // n_jobs)


def _stop(process: subprocess.Popen, cancel: bool) -> None:
    """End Snakemake and its jobs; those of a cluster it has to cancel itself."""
    if cancel:
        _say("Cancelling the jobs on the cluster.")
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            process.wait(CANCEL_SECONDS)
    # All of it bears being killed, and Snakemake would wait for notebooks that run here.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _write_order(
    plan: "Plan", state: Path, *, threads: int, shard_threads: int, options: list[str]
) -> Path:
    """What the Snakefile reads."""
    from minddiff_utils.book.execution import SHARDED

    order = {
        # Relative to where Snakemake works, which takes `{name}` in a path for a wildcard.
        "run": os.path.relpath(plan.run, state),
        "subjects": list(plan.subjects),
        "chapters": [sheet.name for sheet in plan.chapters],
        "group": [sheet.name for sheet in plan.group],
        "sharded": SHARDED,
        "shards": plan.shards,
        "threads": threads,
        "shard_threads": shard_threads,
        "python": sys.executable,
        "options": shlex.join(options),
    }
    path = state / "order.json"
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(order, indent=1), encoding="utf-8")
    return path


def _follow(log: Path, process: subprocess.Popen, outputs: list[Path]) -> None:
    """Print what the jobs append to `log` until the process has ended, and how much is done."""
    with open(log, encoding="utf-8") as lines:
        while True:
            ended = process.poll() is not None
            for line in lines:
                n_done = sum(output.exists() for output in outputs)
                far = f" ({n_done} of {len(outputs)} notebooks)" if DONE in line else ""
                _say(line.rstrip("\n") + far)
            if ended:
                return
            time.sleep(0.2)


def _explain_failure(plan: "Plan", state: Path) -> None:
    """Raise the errors that the jobs left; without any, show what Snakemake said."""
    from minddiff_utils.book.execution import no_space

    failures = [json.loads(path.read_text("utf-8")) for path in sorted(state.glob("*.failure"))]
    if not failures and shutil.disk_usage(state).free < NOTE_BYTES:  # not even for a note
        raise NotebookError(no_space(plan.run))
    if not failures:
        said = (state / "snakemake.log").read_text(encoding="utf-8").strip().splitlines()
        # What became of a cluster's jobs, and where each one's own log is.
        told = [line.strip() for line in said if re.search(r"SLURM-job|sbatch|\slog: ", line)]
        shown = list(dict.fromkeys(told)) or said[-15:]
        raise NotebookError(
            "Snakemake stopped:\n" + "\n".join(shown) + f"\nAll of it: {state}/snakemake.log"
        )
    kept = "The last good book stays: " if (plan.run / "html").exists() else "No book was built: "
    text = "\n\n".join(failure["message"] for failure in failures)
    raise NotebookError(
        f"{text}\n\n{kept}{plan.run / 'html'}", all(failure["user"] for failure in failures)
    )


@contextmanager
def _noted(todo: "Job", part: str = "") -> Iterator[None]:
    """Leave a note of a failure beside the other state, none after success."""
    name = f"{todo.subject or 'group'}-{todo.notebook}{part}.failure"
    note = Path(todo.run) / ".state" / name
    note.unlink(missing_ok=True)
    try:
        try:
            yield
        except InputError as error:
            raise NotebookError(f"{todo.label}: {error}", user=True) from None
        except OSError as error:
            raise NotebookError(f"{todo.label}: {_trouble(error)}") from error
    except NotebookError as error:
        with atomic_path(note) as temporary:
            temporary.write_text(
                json.dumps({"message": str(error), "user": error.user}), encoding="utf-8"
            )
        raise


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Hold a run's folder: no two processes write into it; the lock ends with its holder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".state").mkdir(exist_ok=True)
    with open(folder / ".state" / "lock", "a", encoding="utf-8") as file:
        patience = time.monotonic() + WAIT_SECONDS
        while not lock_file(file):
            if time.monotonic() > patience:
                raise InputError(
                    f"Another process is at work in {folder}. Wait for it, or stop it."
                )
            time.sleep(SLOT_SECONDS)
        yield file.fileno()


def _trouble(error: OSError) -> str:
    """What the operating system refused, and for which file."""
    from minddiff_utils.book.execution import is_full, no_space

    if is_full(error):
        return no_space(Path(error.filename).parent if error.filename else "what is written")
    return f"{error.strerror or error}: {error.filename or 'writing a file'}"


def _appender(log: Path) -> Callable[[str], None]:
    def say(line: str) -> None:
        with open(log, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    return say


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _clock(started: float) -> str:
    from minddiff_utils.book.execution import clock

    return clock(time.monotonic() - started)


def main(command: typer.Typer = app) -> None:
    """Run a command line; what a user can mend is one line and exit code 2."""
    try:
        with known_environment():
            command()
    except InputError as error:
        _say(f"Error: {error}")
        sys.exit(2)
    except NotebookError as error:
        _say(f"\nError: {error}")
        sys.exit(2 if error.user else 1)
    except BuildError as error:
        _say(f"\nError: {error}")
        sys.exit(1)
    except OSError as error:
        _say(f"Error: {_trouble(error)}")
        sys.exit(1)


if __name__ == "__main__":
    main()
