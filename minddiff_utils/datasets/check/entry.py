"""One line of the table that `minddiff check` prints, and the table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minddiff_utils.datasets.fetch.downloads import show_bytes
from minddiff_utils.datasets.reading import UnreadableError
from minddiff_utils.io import InputError

PRESENT = "present"
MISSING = "missing"
WRONG_SIZE = "wrong size"
WRONG_SHAPE = "wrong shape"
DAMAGED = "damaged"
UNREADABLE = "unreadable"  # for now: in use, forbidden, out of reach; nothing to download
STATES = (PRESENT, MISSING, WRONG_SIZE, WRONG_SHAPE, DAMAGED, UNREADABLE)


@dataclass(frozen=True)
class Origin:
    """Where files come from: a short name for the table, and what to do.

    In `how`, {path} stands for the folder, {options} for those of the command.
    """

    name: str
    how: str


ORIGINS = {
    "nsd": Origin(
        "NSD",
        "public bucket s3://natural-scenes-dataset, after signing the data-access agreement at "
        "naturalscenesdataset.org: minddiff fetch nsd {path}{options}",
    ),
    "coco": Origin(
        "COCO", "annotations_trainval2017.zip of cocodataset.org; minddiff fetch nsd gets it too"
    ),
    "vbcca": Origin(
        "VBCCA", "sample/data/V1_mean_figure.mat of the public repository KamitaniLab/VBCCA"
    ),
    "nilearn": Origin(
        "nilearn", "nilearn.datasets.fetch_miyawaki2008: minddiff fetch miyawaki {path}"
    ),
    "kay": Origin("OSF", "osf.io/ymnjv, nothing to sign: minddiff fetch kay {path}"),
}


class Fault(Exception):
    """What is wrong with a file: a state of the table and a sentence."""

    def __init__(self, state: str, note: str):
        super().__init__(note)
        self.state = state
        self.note = note


def fault_of(path: Path, error: InputError, state: str = DAMAGED) -> Fault:
    """Make a fault of a reader's error, without the file's name, which the table gives already.

    `state` is for an error of the content; a file that the system refuses is "unreadable".
    """
    note = str(error).removeprefix(f"{path}: ").removeprefix(f"{path} ")
    return Fault(UNREADABLE if isinstance(error, UnreadableError) else state, note)


@dataclass(frozen=True)
class Entry:
    """One file.

    Parameters
    ----------
    path : Path
    origin : str
        A key of `ORIGINS`.
    state : str
        "present", "missing", "wrong size", "wrong shape", "damaged" or "unreadable".
    size : int
        Bytes on this disk; 0 if missing.
    download : int
        About how many bytes there are to download; 0 for a file that is present.
    note : str
        What is wrong and what was expected.
    """

    path: Path
    origin: str
    state: str
    size: int = 0
    download: int = 0
    note: str = ""


def examine(path: Path, origin: str, about: int, fault: Fault | None = None) -> Entry:
    """Make the entry of a file.

    Parameters
    ----------
    path : Path
    origin : str
    about : int
        Bytes to download if it has to be.
    fault : Fault, optional
        What was found wrong with it.
    """
    if not path.is_file():
        return Entry(path, origin, MISSING, download=about)
    size = path.stat().st_size
    if fault is None:
        return Entry(path, origin, PRESENT, size)
    return Entry(path, origin, fault.state, size, about * (fault.state != UNREADABLE), fault.note)


def is_ready(entries: Sequence[Entry]) -> bool:
    """Whether every file is there and as it should be."""
    return all(entry.state == PRESENT for entry in entries)


def download_size(entries: Sequence[Entry]) -> int:
    """Return about how many bytes there are to download."""
    return sum(entry.download for entry in entries)


def report(entries: Sequence[Entry], path: Path, options: str = "") -> str:
    """Return the table: one line a file, what is wrong below it, where it comes from, the sum.

    Parameters
    ----------
    entries : sequence of Entry
    path : Path
        The recording; names of files are given from there.
    options : str
        What the command that downloads must be told, from `fetch_options`.
    """
    base = path if path.suffix == "" else path.parent
    lines = [f"{'state':<11}  {'size':>8}  {'from':<7}  file"]
    for entry in entries:
        about = f"~{show_bytes(entry.download)}" if entry.download else ""
        size = show_bytes(entry.size) if entry.state == PRESENT else about
        origin = ORIGINS[entry.origin].name
        lines.append(f"{entry.state:<11}  {size:>8}  {origin:<7}  {_relative(entry.path, base)}")
        if entry.note:
            lines.append(f"{'':<11}  {'':>8}  {'':<7}    {entry.note}")
    lines.append("")
    wanting = {entry.origin for entry in entries if entry.state not in (PRESENT, UNREADABLE)}
    for key in dict.fromkeys(entry.origin for entry in entries):
        if key in wanting:
            origin = ORIGINS[key]
            lines.append(f"{origin.name}: {origin.how.format(path=base, options=options)}")
    return "\n".join([*lines, _sum(entries, path)])


def _sum(entries: Sequence[Entry], path: Path) -> str:
    count = {state: 0 for state in STATES}
    for entry in entries:
        count[entry.state] += 1
    present = count.pop(PRESENT)
    if is_ready(entries):
        total = show_bytes(sum(entry.size for entry in entries))
        what = f"all {present} files of {path} are" if present > 1 else f"the one file of {path} is"
        return f"Ready: {what} there ({total})."
    wrong = ", ".join(f"{n} {state}" for state, n in count.items() if n)
    files = f"{present} of {len(entries)} files are" if len(entries) > 1 else "the one file is not"
    return (
        f"Not ready: {files} there, {wrong}; about "
        f"{show_bytes(download_size(entries))} to download."
    )


def _relative(path: Path, base: Path) -> str:
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else str(path)
