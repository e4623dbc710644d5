"""The commands about recordings: `minddiff check` and `minddiff fetch`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from minddiff_utils.io import InputError

fetch_app = typer.Typer(
    help="Download a recording: only what is missing, on from where it stopped.",
    no_args_is_help=True,
)

RoisOption = Annotated[str, typer.Option(help="As the parameter `rois` of the notebooks.")]
SessionsOption = Annotated[
    int | None, typer.Option(min=1, help="Only the first so many sessions; all without it.")
]


def check(
    dataset: Annotated[str, typer.Argument(help="nsd, miyawaki, kay or own.")],
    path: Annotated[Path, typer.Argument(help="The recording: its folder or file.")],
    subject: Annotated[
        str, typer.Option(help="Whose files, with commas between; those there without it.")
    ] = "",
    rois: RoisOption = "kastner2015",
    sessions: SessionsOption = None,
) -> None:
    """Say for every file that a run needs whether it is there, whole, and where to get it.

    Exit code 0 if all is ready, 1 if not.
    """
    from minddiff_utils.datasets import check_own
    from minddiff_utils.datasets.check import (
        INVENTORIES,
        fetch_options,
        is_ready,
        report,
        take_stock,
    )

    known = (*INVENTORIES, "own")
    if dataset not in known:
        raise InputError(f"dataset={dataset!r} is unknown; choose one of {', '.join(known)}")
    if dataset == "own":
        faults = check_own(path)
        print("\n".join(faults) or f"{path}: everything is there, and fits together.")
        raise typer.Exit(1 if faults else 0)
    choice = (_names(subject), rois, sessions)
    entries = take_stock(dataset, path, *choice)
    print(report(entries, path, fetch_options(path, *choice) if dataset == "nsd" else ""))
    if not is_ready(entries):
        raise typer.Exit(1)


@fetch_app.command()
def nsd(
    path: Annotated[Path, typer.Argument(help="Folder for the tree.")],
    subject: Annotated[str, typer.Option(help="subj01 to subj08, with commas between.")] = "subj01",
    sessions: SessionsOption = None,
    rois: RoisOption = "kastner2015",
    i_have_signed: Annotated[
        bool, typer.Option("--i-have-signed", help="You have signed NSD's data-access agreement.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say how much there is to download.")
    ] = False,
    captions_url: Annotated[
        str, typer.Option(help="Another address of annotations_trainval2017.zip.")
    ] = "",
    endpoint: Annotated[str, typer.Option(help="Another server than Amazon's.")] = "",
) -> None:
    """The Natural Scenes Dataset: betas, regions, design and pictures; captions from COCO."""
    from minddiff_utils.datasets.fetch import recordings as fetch
    from minddiff_utils.datasets.fetch.bucket import connect

    _agree(i_have_signed, fetch.AGREEMENT)
    fetch.fetch_nsd(
        path,
        _names(subject),
        connect(endpoint or None),
        rois=rois,
        sessions=sessions,
        captions_url=captions_url or fetch.CAPTIONS_URL,
        say=_say,
        dry_run=dry_run,
    )


@fetch_app.command()
def miyawaki(path: Annotated[Path, typer.Argument(help="Folder to download into.")]) -> None:
    """The full recording of Miyawaki et al. (2008): 153 MB, through nilearn."""
    from minddiff_utils.datasets.fetch.recordings import fetch_miyawaki

    fetch_miyawaki(path, say=_say)


@fetch_app.command()
def kay(
    path: Annotated[Path, typer.Argument(help="Folder to download into.")],
    url: Annotated[str, typer.Option(help="Another address of kay_images.npz.")] = "",
) -> None:
    """Natural photographs in grey, Kay et al. (2008): 249 MB, nothing to sign."""
    from minddiff_utils.datasets.fetch.recordings import KAY_URL, fetch_kay

    fetch_kay(path, url=url or KAY_URL, say=_say)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _agree(signed: bool, address: str) -> None:
    """Go on only if the user says to have signed the data-access agreement."""
    if signed:
        return
    ask = f"Have you signed the data-access agreement of NSD ({address})?"
    if not sys.stdin.isatty():
        raise InputError(f"{ask} If so, say it with --i-have-signed; if not, please sign it first.")
    if not typer.confirm(ask, default=False, err=True):
        raise InputError(f"Please sign the agreement first: {address}. Nothing was downloaded.")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
