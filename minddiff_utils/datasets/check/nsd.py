"""Which files of NSD's tree a run needs, and whether they fit one another."""

import gzip
import re
import shlex
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError

from minddiff_utils.datasets.check.entry import (
    DAMAGED,
    WRONG_SHAPE,
    WRONG_SIZE,
    Entry,
    Fault,
    examine,
    fault_of,
    is_ready,
)
from minddiff_utils.datasets.nsd.design import read_design
from minddiff_utils.datasets.nsd.load import NsdStimuli, NsdTree
from minddiff_utils.datasets.nsd.regions import KASTNER_GROUPS, read_regions
from minddiff_utils.datasets.nsd.stimuli import read_captions
from minddiff_utils.datasets.reading import open_hdf5, unreadable
from minddiff_utils.io import InputError

# Of NSD's data manual: sessions, and axes of the volumes at 1.8 mm, of subjects 1 to 8.
N_SESSIONS = dict(
    zip((f"subj{n:02d}" for n in range(1, 9)), (40, 40, 32, 30, 40, 32, 40, 30), strict=True)
)
VOLUMES = {
    "subj01": (81, 104, 83),
    "subj02": (82, 106, 84),
    "subj03": (81, 106, 82),
    "subj04": (85, 99, 80),
    "subj05": (79, 97, 78),
    "subj06": (85, 113, 83),
    "subj07": (78, 95, 81),
    "subj08": (80, 103, 78),
}
KASTNER = "Kastner2015"
TRIALS = 750  # in a session of NSD
PLANNED = 30_000  # trials in NSD's design
PICTURES_BYTES = 73_000 * 425 * 425 * 3
CAPTIONS_ZIP_BYTES = 252_907_541
# Small files: about.
TABLE_BYTES = 15_000_000
NCSNR_BYTES = 3_000_000
SMALL_BYTES = 200_000
TRUNCATED = re.compile(r"eof = (\d+).*stored_eof = (\d+)")


@dataclass(frozen=True)
class Looked:
    """What looking at a file of one subject gave: the shape of its volumes, or what is wrong.

    `volume` is (X, Y, Z), `trials` the number of volumes of a session; both None after a fault.
    """

    path: Path
    about: int
    volume: tuple[int, ...] | None = None
    trials: int | None = None
    fault: Fault | None = None


def nsd_entries(
    path: Path, subjects: Sequence[str], rois: str = "kastner2015", sessions: int | None = None
) -> list[Entry]:
    """List what a run on NSD, or on anything in its layout, needs.

    Parameters
    ----------
    path : Path
        The folder with `nsddata`, `nsddata_betas` and `nsddata_stimuli`.
    subjects : sequence of str
        Empty for those whose betas are there, or "subj01".
    rois : str
    sessions : int, optional
        The first so many; None for all that the subject has.

    Returns
    -------
    list of Entry
        First what all subjects share.
    """
    names = _names(path, subjects)
    for name in names:
        if name not in N_SESSIONS:
            raise InputError(f"subject={name!r} is unknown; NSD has subj01 to subj08")
    shared, planned = _shared(NsdTree(path, names[0]), names)
    for name in names:
        shared += _of_subject(path, name, rois, sessions, planned.get(name))
    # Subjects may share a label table.
    return list({entry.path: entry for entry in shared}.values())


def fetch_options(
    path: Path, subjects: Sequence[str], rois: str = "kastner2015", sessions: int | None = None
) -> str:
    """Return what `minddiff fetch nsd` must be told to get what `nsd_entries` lists.

    Returns
    -------
    str
        Options that differ from the command's defaults, each with a blank before it.
    """
    names = _names(path, subjects)
    options = f" --subject {','.join(names)}" if names != ["subj01"] else ""
    options += f" --rois {shlex.quote(rois)}" if rois != KASTNER.lower() else ""
    return options + (f" --sessions {sessions}" if sessions else "")


def _names(path: Path, subjects: Sequence[str]) -> list[str]:
    return list(subjects) or _present(path) or ["subj01"]


def _present(path: Path) -> list[str]:
    folder = NsdTree(path, "subj01").betas.parent.parent.parent
    return sorted(p.name for p in folder.glob("subj*") if p.name in N_SESSIONS)


def atlases_of(rois: str) -> list[str]:
    """Return the atlases of the folder `roi` that hold the regions asked for, each once.

    Parameters
    ----------
    rois : str
        As the reader takes it: "kastner2015", "nsdgeneral", groups such as "V1,V2", an atlas such
        as "streams" or "streams:ventral"; several with "+" between.
    """
    found = []
    for part in rois.split("+"):
        atlas, colon, _ = part.strip().partition(":")
        grouped = {name.strip() for name in atlas.split(",")} <= {*KASTNER_GROUPS, "kastner2015"}
        found.append(KASTNER if grouped and not colon else atlas)
    return list(dict.fromkeys(found))


def label_table(root: Path, atlas: str) -> Path | None:
    """Return where the names of an atlas's labels are; None for nsdgeneral, which has one label."""
    if atlas == "nsdgeneral":
        return None
    # Both hemispheres share a table.
    name = re.sub(r"^[lr]h\.", "", atlas)
    return root / f"nsddata/freesurfer/fsaverage/label/{name}.mgz.ctab"


def session_count(
    subject: str, sessions: int | None, planned: int = PLANNED, trials: int = TRIALS
) -> int:
    """Return how many sessions of a subject a run reads.

    Parameters
    ----------
    subject : str
    sessions : int or None
        The first so many, None for all.
    planned : int
        Trials in the design.
    trials : int
        Trials in a session.
    """
    there = max(1, planned // trials)
    if planned == PLANNED:
        there = min(there, N_SESSIONS[subject])
    return there if sessions is None else min(sessions, there)


# ---------------------------------------------------------------------------- what subjects share


def _shared(tree: NsdTree, subjects: Sequence[str]) -> tuple[list[Entry], dict[str, int]]:
    """Look at design, picture table, pictures and captions; return how many trials are planned."""
    fault, planned, ids = None, {}, np.empty(0, np.int64)
    for name in subjects:
        try:
            if tree.design.is_file():
                shown = read_design(NsdTree(tree.root, name)).stimulus_id
                planned[name] = len(shown)
                ids = np.union1d(ids, shown)
        except InputError as error:
            fault = fault_of(tree.design, error)
    n_pictures = int(ids[-1]) + 1 if len(ids) else 0
    train, val = tree.captions
    # One archive holds both.
    val_about = 0 if not train.is_file() else CAPTIONS_ZIP_BYTES
    entries = [
        examine(tree.design, "nsd", SMALL_BYTES, fault),
        examine(
            tree.stimulus_table, "nsd", TABLE_BYTES, _table_fault(tree.stimulus_table, n_pictures)
        ),
        examine(tree.pictures, "nsd", PICTURES_BYTES, _pictures_fault(tree.pictures, n_pictures)),
        examine(train, "coco", CAPTIONS_ZIP_BYTES, _captions_fault(train)),
        examine(val, "coco", val_about, _captions_fault(val)),
    ]
    return _as_read(entries, lambda: NsdStimuli(tree, ids).captions(ids)), planned


def _as_read(entries: list[Entry], read: Callable[[], object]) -> list[Entry]:
    """Let the reader read files of which each seems right, and mark the one that it refuses."""
    if is_ready(entries):
        try:
            read()
        except InputError as error:
            refused = next((one for one in entries if str(one.path) in str(error)), entries[-1])
            fault = fault_of(refused.path, error)
            marked = examine(refused.path, refused.origin, refused.size, fault)
            return [marked if one is refused else one for one in entries]
    return entries


def _table_fault(path: Path, n_pictures: int) -> Fault | None:
    if not path.is_file():
        return None
    import pandas as pd

    try:
        table = pd.read_csv(path, usecols=["nsdId", "cocoId"])
    except (ValueError, UnicodeDecodeError) as error:
        return Fault(DAMAGED, f"cannot be read as a table with nsdId and cocoId ({error})")
    if len(table) < n_pictures:
        return Fault(WRONG_SHAPE, f"{len(table)} rows; expected {n_pictures}, one a picture")
    return None


def _pictures_fault(path: Path, n_pictures: int) -> Fault | None:
    if not path.is_file():
        return None
    try:
        shape, dtype = _hdf5_shape(path, "imgBrick")
    except Fault as fault:
        return fault
    if len(shape) != 4 or shape[-1] != 3 or dtype != np.uint8 or shape[0] < n_pictures:
        return Fault(
            WRONG_SHAPE,
            f"imgBrick is {dtype} {shape}; expected uint8 ({n_pictures or 73_000} or more, height, "
            "width, 3)",
        )
    return None


def _captions_fault(path: Path) -> Fault | None:
    if not path.is_file():
        return None
    try:
        read_captions(path)
    except InputError as error:
        return fault_of(path, error)
    return None


# ------------------------------------------------------------------------------------ one subject


def _of_subject(
    path: Path, subject: str, rois: str, sessions: int | None, planned: int | None
) -> list[Entry]:
    """Look at regions, noise ceiling and sessions of a subject, and compare their shapes."""
    tree = NsdTree(path, subject)
    atlases = atlases_of(rois)
    volumes = [_volume(tree.roi(atlas), SMALL_BYTES) for atlas in atlases]
    volumes.append(_volume(tree.ncsnr, NCSNR_BYTES))
    recorded, fault = _recorded(tree.responses)
    numbers = _numbers(tree, sessions, planned, recorded)
    looked = {number: _session(tree, number) for number in numbers}
    usual = _usual(item.volume for item in [*volumes, *looked.values()])
    trials = _usual(item.trials for item in looked.values())
    for number, item in looked.items():
        # A table that says otherwise than a session as long as the others is itself wrong.
        if recorded and item.trials == trials != recorded.get(number):
            there = recorded.pop(number, 0)
            fault = Fault(
                WRONG_SHAPE, f"{there} trials of session {number}; expected {item.trials}"
            )
    entries = [_entry(item, usual, None) for item in volumes]
    entries += [_label_entry(tree, atlas) for atlas in atlases if label_table(path, atlas)]
    entries = _as_read(entries, lambda: read_regions(tree, rois))
    if tree.responses.is_file():
        entries.append(examine(tree.responses, "nsd", TABLE_BYTES, fault))
    return entries + [_entry(item, usual, recorded.get(n, trials)) for n, item in looked.items()]


def _recorded(path: Path) -> tuple[dict[int, int], Fault | None]:
    """Return how many trials each session had, as the subject's answers say; empty without them."""
    if not path.is_file():
        return {}, None
    import pandas as pd

    try:
        number = pd.read_csv(path, sep="\t", usecols=["SESSION"])["SESSION"]
        return {int(n): int(count) for n, count in number.value_counts().items()}, None
    except (ValueError, UnicodeDecodeError) as error:
        return {}, Fault(DAMAGED, f"cannot be read as a table with SESSION ({error})")


def _numbers(
    tree: NsdTree, sessions: int | None, planned: int | None, recorded: dict[int, int]
) -> Iterable[int]:
    """Return the sessions that a run reads, from 1."""
    found = _found(tree)
    trials = _usual(_session(tree, number).trials for number in found) or TRIALS
    if planned is not None:
        count = session_count(tree.subject, sessions, planned, trials)
    elif trials == TRIALS:
        count = session_count(tree.subject, sessions)
    else:
        # A tree in smaller numbers, whose design is missing: at least what is there.
        count = max(found, default=1)
    # Where sessions differ in length, what was recorded knows better.
    count = max(count, max(recorded, default=0))
    return range(1, (count if sessions is None else min(count, sessions)) + 1)


def _found(tree: NsdTree) -> list[int]:
    names = [p.name for p in tree.betas.glob("betas_session*.*")]
    found = (re.fullmatch(r"betas_session(\d\d+)\.(hdf5|nii|nii\.gz)", name) for name in names)
    return sorted({int(match[1]) for match in found if match})


def _session(tree: NsdTree, number: int) -> Looked:
    """Look at the betas of one session, in HDF5 or else in NIfTI."""
    stem = f"betas_session{number:02d}"
    path = tree.betas / f"{stem}.hdf5"
    about = TRIALS * int(np.prod(VOLUMES[tree.subject])) * 2
    if not path.is_file():
        niftis = [tree.betas / f"{stem}{suffix}" for suffix in (".nii.gz", ".nii")]
        there = [nifti for nifti in niftis if nifti.is_file()]
        # Only the header: to unpack a gigabyte takes minutes.
        return _volume(there[0], about, read=False) if there else Looked(path, about)
    try:
        shape, _ = _hdf5_shape(path, "betas")
    except Fault as fault:
        return Looked(path, about, fault=fault)
    if len(shape) != 4:
        return Looked(path, about, fault=Fault(WRONG_SHAPE, f"betas have shape {shape}; 4 axes"))
    return Looked(path, about, tuple(shape[:0:-1]), shape[0])


def _volume(path: Path, about: int, read: bool = True) -> Looked:
    """Look at a NIfTI file, to its end if `read`."""
    if not path.is_file():
        return Looked(path, about)
    try:
        image = nib.load(path)
        if read:
            np.asarray(image.dataobj)
    except (EOFError, gzip.BadGzipFile, zlib.error, OSError, ValueError, ImageFileError) as error:
        state = DAMAGED if isinstance(error, gzip.BadGzipFile | zlib.error) else WRONG_SIZE
        found = unreadable(path, error, f"{path.stat().st_size} bytes, cut short ({error})")
        return Looked(path, about, fault=fault_of(path, found, state))
    trials = image.shape[3] if len(image.shape) == 4 else None
    return Looked(path, about, tuple(image.shape[:3]), trials)


def _usual(values: Iterable) -> object:
    """Return the commonest value that is not None, the first of equals; None if there is none."""
    counted = Counter(value for value in values if value is not None)
    return counted.most_common(1)[0][0] if counted else None


def _entry(item: Looked, volume: tuple[int, ...] | None, trials: int | None) -> Entry:
    """Make a file's entry; whatever differs from most others has the wrong shape."""
    fault = item.fault
    if fault is None and item.volume is not None and item.volume != volume:
        fault = Fault(WRONG_SHAPE, f"volumes of {item.volume} voxels; expected {volume}")
    if fault is None and item.trials is not None and item.trials != trials:
        fault = Fault(WRONG_SHAPE, f"{item.trials} trials; expected {trials}")
    return examine(item.path, "nsd", item.about, fault)


def _label_entry(tree: NsdTree, atlas: str) -> Entry:
    path = tree.labels(atlas)
    if not path.is_file():
        path = label_table(tree.root, atlas)
        return examine(path, "nsd", SMALL_BYTES)
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    fault = None
    if not rows or not all(len(row) > 1 and row[0].isdigit() for row in rows):
        fault = Fault(DAMAGED, "expected a number and a name in each line")
    elif atlas == KASTNER:
        names = {row[1].lower() for row in rows}
        groups = KASTNER_GROUPS.items()
        lost = [group for group, parts in groups if not names & {part.lower() for part in parts}]
        if lost:
            fault = Fault(DAMAGED, f"cut short: it names no label of {', '.join(lost)}")
    return examine(path, "nsd", SMALL_BYTES, fault)


def _hdf5_shape(path: Path, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Return shape and type of a dataset.

    Raises
    ------
    Fault
        If the file is cut short, is no HDF5, lacks the dataset or its values, or cannot be read.
    """
    try:
        with open_hdf5(path, name) as data:
            return data.shape, data.dtype
    except InputError as error:
        size, cut = path.stat().st_size, TRUNCATED.search(str(error))
        if cut:
            raise Fault(WRONG_SIZE, f"{size} bytes; expected {cut[2]}: it is cut short") from None
        if not size:
            raise Fault(WRONG_SIZE, "0 bytes: it is empty") from None
        raise fault_of(path, error) from None
