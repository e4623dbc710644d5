"""The command `minddiff`: what the Makefile and Snakemake call."""

import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from minddiff_utils.book.environment import known_environment
from minddiff_utils.data_commands import check, fetch_app, meant
from minddiff_utils.io import BuildError, InputError, NotebookError, claim_run, lock_file

# What takes long to import is imported where it is used: every command starts at once.
if TYPE_CHECKING:
    from minddiff_utils.book.plan import Plan

ROOT = Path(__file__).resolve().parent.parent
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
    with _locked(plan) as lock:
        _make_phantom(plan)
        from minddiff_utils.book.run import run_notebooks, write_plan

        write_plan(plan)
        cores = cores or os.cpu_count() or 1
        run_notebooks(plan, cores, where, shlex.split(snakemake), lock, _say)
        from minddiff_utils.book.build import assemble, build_html

        source = assemble(plan, root / "book", root / "_config.yml")
        built = build_html(source, plan.run / "html", _say)
    _say(f"The book is {'ready' if built else 'up to date'} ({_clock(started)}). Open it:")
    print(plan.run / "html" / "index.html")


@app.command(hidden=True)
def chapter(state: Path, subject: str, notebook: str, parent: ParentOption = "") -> None:
    """Execute one notebook of the plan in a run's state; Snakemake calls this."""
    from minddiff_utils.book import execution
    from minddiff_utils.book.run import read_plan

    execution.watch_parent(parent)
    plan = read_plan(state / "plan.json")
    subject = "" if subject == "-" else subject
    (sheet,) = (sheet for sheet in plan.sheets if sheet.name == notebook)
    label = execution.label_of(sheet, subject)
    with execution.noted(plan, f"{subject or 'all'}-{notebook}", label):
        execution.execute(plan, sheet, subject, _appender(state))


@app.command(hidden=True)
def shard(state: Path, subject: str, number: int, parent: ParentOption = "") -> None:
    """Compute one block of pictures of stage 2; Snakemake calls this."""
    from minddiff_utils.book import execution
    from minddiff_utils.book.run import read_plan

    execution.watch_parent(parent)
    plan = read_plan(state / "plan.json")
    with execution.noted(plan, f"{subject}-shard-{number}", f"{subject} · shard {number}"):
        execution.execute_shard(plan, subject, number, _appender(state))


def _appender(state: Path):
    path = (state / "progress.log").absolute()  # a notebook runs in a folder of its own

    def say(line: str) -> None:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    return say


@app.command()
def data(params: ParamsArgument, root: Path = ROOT) -> None:
    """Make the phantom that a parameter file asks for, if it is not there yet."""
    plan = _plan(root, params, None, None)
    claim_run(plan.run)
    _make_phantom(plan)


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
    out = meant(out)
    write_tree(out, names, n_train, n_test, repetitions, betas=betas)
    print(out)


def _plan(root: Path, params: str, changes: list[str] | None, data: Path | None) -> "Plan":
    """The plan of a parameter file with the changes of the command line."""
    from minddiff_utils.book.plan import load_plan

    is_path = params.endswith((".yaml", ".yml"))
    path = Path(params) if is_path else root / "notebooks" / "params" / f"{params}.yaml"
    values = dict(_change(text) for text in changes or [])
    if data is not None:
        values["data_path"] = str(meant(data))
        if not Path(values["data_path"]).exists():
            raise InputError(
                f"There is no {values['data_path']}: expected the recording for `{path.stem}`."
            )
    plan = load_plan(path, root, values)
    if not plan.values.get("data_path"):
        raise InputError(
            f"Say where the recording is: make book PARAMS={path.stem} {path.stem.upper()}=path, "
            f"or minddiff book {path.stem} --data path."
        )
    return plan


def _change(text: str) -> tuple[str, Any]:
    from minddiff_utils.book.plan import parse_yaml

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
    from minddiff_utils.settings import resolve

    asked = plan.values.get("phantom")
    tree = resolve(plan.values["data_path"], plan.root) if asked is not None else None
    if tree:
        write_tree(tree, subjects=tuple(plan.subjects), **asked or {})
    if tree or "phantom" in plan.pages:
        write_pieces(plan.run, tree, plan.subjects)


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


@contextmanager
def _locked(plan: "Plan") -> Iterator[int]:
    """Hold a run's folder: no two processes write into it; the lock ends with its holder."""
    state = claim_run(plan.run) / ".state"
    state.mkdir(exist_ok=True)
    with open(state / "lock", "a", encoding="utf-8") as file:
        patience = time.monotonic() + WAIT_SECONDS
        while not lock_file(file):
            if time.monotonic() > patience:
                raise InputError(
                    f"Another process is at work in {plan.run}. Wait for it, or stop it."
                )
            time.sleep(0.2)
        yield file.fileno()


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
    except (BuildError, OSError) as error:
        _say(f"\nError: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        _say("Stopped. The same command goes on from here.")
        sys.exit(130)


if __name__ == "__main__":
    main()
