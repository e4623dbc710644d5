"""The commands about recordings: `minddiff check` and `minddiff fetch`."""

from pathlib import Path
from typing import Annotated

import typer

from minddiff_utils.io import InputError

# What takes long to import is imported where it is used: every command starts at once.
fetch_app = typer.Typer(
    help="Download a recording: only what is missing, on from where it stopped.",
    no_args_is_help=True,
)

Folder = Annotated[Path, typer.Argument(help="Folder to download into.")]
Rois = Annotated[str, typer.Option(help="As the parameter `rois` of the notebooks.")]
Sessions = Annotated[int | None, typer.Option(min=1, help="Only the first so many; all without.")]


def check(
    dataset: Annotated[str, typer.Argument(help="nsd, miyawaki, kay or own.")],
    path: Annotated[Path, typer.Argument(help="The recording: its folder or file.")],
    subject: Annotated[
        str, typer.Option(help="Whose files, with commas between; those there without it.")
    ] = "",
    rois: Rois = "kastner2015",
    sessions: Sessions = None,
) -> None:
    """Say for every file that a run needs whether it is there, whole, and where to get it.

    Exit code 0 if all is ready, 1 if not.
    """
    from minddiff_utils.datasets import DATASETS, check_own, load_subject

    path = meant(path)
    if dataset not in DATASETS:
        raise InputError(f"dataset={dataset!r} is unknown; choose one of {', '.join(DATASETS)}")
    if dataset == "nsd":
        from minddiff_utils.datasets.check import check_nsd, is_ready, report

        entries = check_nsd(path, _names(subject), rois, sessions)
        print(report(entries, path))
        raise typer.Exit(0 if is_ready(entries) else 1)
    if dataset == "own":
        faults = check_own(path)
    else:
        dataset += "_full" if dataset == "miyawaki" and path.suffix != ".mat" else ""
        faults = []
        try:
            load_subject(dataset, path, "S1", rois=rois)
        except InputError as error:
            faults = [str(error)]
    print("\n".join(faults) or f"{path}: everything is there, and fits together.")
    raise typer.Exit(1 if faults else 0)


@fetch_app.command()
def nsd(
    path: Folder,
    subject: Annotated[str, typer.Option(help="subj01 to subj08, with commas between.")] = "subj01",
    sessions: Sessions = None,
    rois: Rois = "kastner2015",
    i_have_signed: Annotated[
        bool, typer.Option("--i-have-signed", help="You have signed NSD's data-access agreement.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say how much there is to download.")
    ] = False,
) -> None:
    """The Natural Scenes Dataset: betas, regions, design and pictures; captions from COCO."""
    from minddiff_utils.datasets.fetch.recordings import AGREEMENT, fetch_nsd

    if not i_have_signed:
        raise InputError(
            f"Please sign the data-access agreement of NSD first: {AGREEMENT}. Then say that you "
            "have, with --i-have-signed. Nothing was downloaded."
        )
    fetch_nsd(meant(path), _names(subject), rois=rois, sessions=sessions, dry_run=dry_run)


@fetch_app.command()
def miyawaki(path: Folder) -> None:
    """The full recording of Miyawaki et al. (2008): 153 MB, through nilearn."""
    from minddiff_utils.datasets.fetch.recordings import fetch_miyawaki

    fetch_miyawaki(meant(path))


@fetch_app.command()
def kay(path: Folder) -> None:
    """Natural photographs in grey, Kay et al. (2008): 249 MB, nothing to sign."""
    from minddiff_utils.datasets.fetch.recordings import fetch_kay

    fetch_kay(meant(path))


def meant(path: Path) -> Path:
    """Return a path of the command line; where no shell has seen it, `~` is still in it."""
    from minddiff_utils.settings import resolve

    return resolve(str(path), Path.cwd())


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
