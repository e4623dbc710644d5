"""The command `minddiff`: what users, the Makefile and Snakemake call."""

import os
import re
import sys
import time
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import typer

from minddiff_utils.book import BookError, known_environment, say, span
from minddiff_utils.book.plan import Plan, load_plan, parse_yaml
from minddiff_utils.datasets import fetch
from minddiff_utils.datasets.check import check_recording
from minddiff_utils.datasets.parts import fetch_parts
from minddiff_utils.io import InputError, claim_run, lock_file
from minddiff_utils.settings import comma_separated, project_folder, resolve

# What takes long to import is imported where it is used: every command starts at once.

HELP = "MindDiffuser, from brain activity to pictures, as a book."
app = typer.Typer(help=HELP, no_args_is_help=True, pretty_exceptions_enable=False)
fetch_app = typer.Typer(help="Download a recording, or the rest of it.", no_args_is_help=True)
app.add_typer(fetch_app, name="fetch")

Params = Annotated[str, typer.Argument(help="A name from notebooks/params, or a YAML file.")]
Folder = Annotated[Path, typer.Argument(help="Folder to download into.")]
SET = typer.Option("--set", metavar="KEY=VALUE", help="Replace a value of the parameter file.")
Changes = Annotated[list[str] | None, SET]
Rois = Annotated[str, typer.Option(help="As the parameter `rois` of the notebooks.")]
Which = Annotated[str, typer.Option(help="The first so many, or which: 1-10,12; all without.")]
PANEL = typer.Option(help="The field's eight numbers: none, published rows, or all computed.")
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say how much there is to download.")]


@app.command()
def book(
    params: Params,
    cores: Annotated[int, typer.Option(min=0, help="CPU cores to use; 0: all there are.")] = 0,
    changes: Changes = None,
    data: Annotated[Path | None, typer.Option(help="The recording: replaces data_path.")] = None,
    profile: Annotated[str, typer.Option(help="For a cluster: a name or a path.")] = "",
) -> None:
    """Run every notebook for every subject and build the HTML; do only what is left to do."""
    started = time.monotonic()
    plan = _plan(params, changes, data)
    where = plan.root / "notebooks" / "profiles" / profile if profile else None
    if where and not (where / "config.yaml").is_file():
        raise InputError(f"--profile {profile}: there is no {where / 'config.yaml'}.")
    with _locked(plan) as lock:
        _make_phantom(plan)
        from minddiff_utils.book.run import run_notebooks

        run_notebooks(plan, cores or os.cpu_count() or 1, where, lock.fileno())
        from minddiff_utils.book.build import assemble, build_html

        state = "ready" if build_html(assemble(plan), plan.run / "html") else "up to date"
    say(f"The book is {state} ({span(time.monotonic() - started)}). Open it:")
    print(plan.run / "html" / "index.html")


@app.command(hidden=True)
def job(state: Path, subject: str, notebook: str, shard: int = 0) -> None:
    """Execute one notebook of the plan in a run's state, or a shard; Snakemake calls this."""
    from minddiff_utils.book.run import run_job

    run_job(state, subject, notebook, shard)


@app.command()
def data(params: Params = "phantom", changes: Changes = None) -> None:
    """Make the phantom that a parameter file asks for, if it is not there yet."""
    with _locked(plan := _plan(params, changes)):
        _make_phantom(plan)


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="Folder for the tree.")],
    layout: Annotated[Literal["nsd", "laion"], typer.Option(help="Of the files.")] = "nsd",
    subjects: Annotated[str, typer.Option(help="Names, with commas between; two without.")] = "",
    n_train: Annotated[int | None, typer.Option(min=1, help="Training pictures a subject.")] = None,
    n_test: Annotated[int | None, typer.Option(min=1, help="Test pictures, shared by all.")] = None,
    repetitions: Annotated[int | None, typer.Option(min=1, help="Trials a picture.")] = None,
) -> None:
    """Simulate a recording of brain activity and write it as a tree of NSD or of LAION-fMRI.

    Without sizes NSD's has 1,200 training and 64 test pictures, three trials each; LAION-fMRI's
    600 and 48, four trials each.
    """
    from minddiff_utils.phantom import laion_writer, nsd_writer

    given: dict[str, Any] = {"n_train": n_train, "n_test": n_test, "repetitions": repetitions}
    given["subjects"] = comma_separated(subjects)
    writer = laion_writer if layout == "laion" else nsd_writer
    print(writer.write_tree(out, **{name: value for name, value in given.items() if value}))


@app.command()
def evaluate(
    truth: Annotated[str, typer.Option(help="The pictures that were seen.")],
    reconstructions: Annotated[
        list[str], typer.Option(metavar="NAME=PATH", help="A method's; several may follow.")
    ],
    more: Annotated[list[str] | None, typer.Argument(metavar="[NAME=PATH]...")] = None,
    training: Annotated[str, typer.Option(help="The pictures that were trained on.")] = "",
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("evaluation"),
    protocol: Annotated[int | None, typer.Option(help="If truth is NSD: 982 or 1000.")] = None,
    subject: Annotated[str, typer.Option(help="Whose pictures, of an NSD tree.")] = "subj01",
    judge: Annotated[str, typer.Option(help="CLIP that scores; OpenAI's ViT-L/14 without.")] = "",
    guide: Annotated[str, typer.Option(help="CLIP that was fitted to, a column of its own.")] = "",
    panel: Annotated[Literal["none", "published", "full"], PANEL] = "published",
    seed: Annotated[int, typer.Option(help="Of intervals, tests and draws.")] = 0,
) -> None:
    """Score any method's reconstructions, beside controls: a page, tables and a gallery."""
    from minddiff_utils.book.build import write_page
    from minddiff_utils.book.run import judge_pictures

    def place(path: str) -> str:
        return str(resolve(path, Path.cwd())) if path else ""

    methods = {}
    for text in [*reconstructions, *(more or [])]:
        name, _, path = text.partition("=")
        if not path or not re.fullmatch(r"[\w .+&()-]+", name):
            raise InputError(f"{text}: expected NAME=PATH, such as mine=reconstructions/.")
        methods[name] = place(path)
    given: dict[str, Any] = {"protocol": protocol, "subject": subject, "panel": panel, "seed": seed}
    given |= {"reconstructions": methods, "truth": place(truth), "training": place(training)}
    for role, clip in {"judge": judge, "guide": guide}.items():
        given[role] = place(clip) if Path(place(clip)).exists() else clip
    root, out = project_folder(), out.resolve()
    print(write_page(judge_pictures(root, out, given), root / "book", out))


@app.command()
def check(
    dataset: Annotated[str, typer.Argument(help="nsd, laion, miyawaki, kay or own.")],
    path: Annotated[Path, typer.Argument(help="The recording: its folder or file.")],
    subject: Annotated[str, typer.Option(help="Names, with commas between; all without.")] = "",
    rois: Rois = "kastner2015",
    sessions: Which = "",
) -> None:
    """Say for every file that a run needs whether it is there, whole, and where to get it.

    Exit code 0 if all is ready, 1 if not.
    """
    given = (comma_separated(subject), rois, _chosen(sessions))
    said, ready = check_recording(dataset, path, *given)
    print(said)
    raise typer.Exit(not ready)


@fetch_app.command()
def nsd(
    path: Folder,
    subject: Annotated[str, typer.Option(help="subj01 to subj08, with commas between.")] = "subj01",
    sessions: Which = "",
    rois: Rois = "kastner2015",
    i_have_signed: Annotated[
        bool, typer.Option("--i-have-signed", help="You have signed NSD's data-access agreement.")
    ] = False,
    synthetic: Annotated[bool, typer.Option("--synthetic", help="NSD-synthetic, too.")] = False,
    only_rois: Annotated[str, typer.Option(help="Regions; of betas fetch no other voxels.")] = "",
    only_seen: Annotated[bool, typer.Option("--only-seen", help="No pictures of others.")] = False,
    dry_run: DryRun = False,
) -> None:
    """The Natural Scenes Dataset: betas, regions, design and pictures; captions from COCO."""
    partly = ("betas_",) * bool(only_rois) + ("nsd_stimuli",) * only_seen
    given = (path, comma_separated(subject), only_rois or rois, _chosen(sessions))
    fetch.fetch_nsd(
        *given, signed=i_have_signed, synthetic=synthetic, partly=partly, dry_run=dry_run
    )
    fetch_parts(*given, partly, synthetic, dry_run)


@fetch_app.command()
def laion(
    path: Folder,
    subject: Annotated[str, typer.Option(help="sub-01, …, with commas between.")] = "sub-01",
    sessions: Which = "",
    dry_run: DryRun = False,
) -> None:
    """LAION-fMRI, nothing to sign: all but the pictures, of which it says how to get them."""
    fetch.fetch_laion(path, comma_separated(subject), _chosen(sessions), dry_run=dry_run)


@fetch_app.command()
def miyawaki(path: Folder) -> None:
    """The full recording of Miyawaki et al. (2008): 153 MB, through nilearn."""
    fetch.fetch_miyawaki(path)


@fetch_app.command()
def kay(path: Folder) -> None:
    """Natural photographs in grey, Kay et al. (2008): 249 MB, nothing to sign."""
    fetch.fetch_kay(path)


def _chosen(sessions: str) -> str | None:
    """The first so many sessions, which, or all, as the readers take it."""
    return f"1-{sessions}" if sessions.isdecimal() else sessions or None


def _plan(params: str, changes: list[str] | None = None, data: Path | None = None) -> Plan:
    """The plan of a parameter file with the changes of the command line."""
    root = project_folder()
    is_path = params.endswith((".yaml", ".yml"))
    path = Path(params) if is_path else root / "notebooks" / "params" / f"{params}.yaml"
    values: dict[str, Any] = {}
    for text in changes or []:
        values |= parse_yaml(text.replace("=", ": ", 1), f"--set {text}")
    if data is not None:
        values["data_path"] = str(resolve(str(data), Path.cwd()))
    plan = load_plan(path, root, values)
    if plan.values.get("phantom") is None and not plan.place("data_path"):
        told = f"There is no recording at {plan.values.get('data_path', '')!r}. Say where it is"
        make = f"make book PARAMS={path.stem} {path.stem.upper()}=path"
        raise InputError(f"{told}: {make}, or minddiff book {path.stem} --data path.")
    return plan


def _make_phantom(plan: Plan) -> None:
    """Write the phantom's tree if the plan asks for one, and what the page about it shows."""
    asked = plan.values.get("phantom")
    if asked is None and "phantom" not in plan.values["pages"]:
        return
    from minddiff_utils.phantom.nsd_writer import write_pieces, write_tree

    if asked is not None:
        write_tree(resolve(plan.values["data_path"], plan.root), plan.subjects, **asked)
    write_pieces(plan.run)


def _locked(plan: Plan) -> IO:
    """Hold a run's folder as long as this file is open, here or in a process that was given it.

    No two processes write into it.
    """
    claim_run(plan.run)
    plan.state.mkdir(exist_ok=True)
    file = open(plan.state / "lock", "a", encoding="utf-8")
    if not lock_file(file):
        raise InputError(f"Another process is at work in {plan.run}. Wait for it, or stop it.")
    return file


def main(command: typer.Typer = app) -> None:
    """Run a command line; what a user can mend is told in a few words, with exit code 2."""
    try:
        with known_environment():
            command()
    except (InputError, BookError, OSError) as error:
        say(f"Error: {error}")
        sys.exit(2 if isinstance(error, InputError) else 1)
    except KeyboardInterrupt:
        say("Stopped. The same command goes on from here.")
        sys.exit(130)


if __name__ == "__main__":
    main()
