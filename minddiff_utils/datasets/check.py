"""What `minddiff check` prints: each file of a recording, what is wrong, where to get it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from minddiff_utils.datasets import DATASETS, LARGE_READERS, check_own, laion, load_subject
from minddiff_utils.datasets.fetch import CAPTIONS_ZIP_BYTES, nsd_files, show_bytes
from minddiff_utils.datasets.nsd.design import PART, NsdStimuli, NsdTree, read_design, read_trials
from minddiff_utils.datasets.nsd.regions import read_regions
from minddiff_utils.datasets.nsd.responses import inspect_betas, rows_of_voxels
from minddiff_utils.datasets.nsd.synthetic import read_synthetic
from minddiff_utils.datasets.recording import Sessions
from minddiff_utils.io import InputError, UnreadableError

# Unreadable for now: in use, forbidden, out of reach; nothing to download.
PRESENT, MISSING, DAMAGED, UNREADABLE = "present", "missing", "damaged", "unreadable"
# About how many bytes there are to download for a file, by its name.
SIZES = {"nsd_stimuli*": 73_000 * 425 * 425 * 3, "betas_*": 1_050_000_000}
SIZES |= {f"nsdsynthetic_{name}": n * 714 * 1360 * 3 for name, n in (("s*", 220), ("c*", 64))}
# Estimates: a session of random numbers in a brain's voxels, and JPEGs of 1000 x 1000 pixels.
SIZES |= {"*SingletrialBetas_statmap.nii.gz": 10**9, "task-images_stimuli.h5": 4 * 10**9}
# One archive holds both.
SIZES |= {"captions_train2017.json": CAPTIONS_ZIP_BYTES, "captions_val2017.json": 0, "*": 10_000}
# Where files come from: a short name for the table, and what to do.
ORIGINS = {
    "NSD": "public bucket s3://natural-scenes-dataset, after signing the agreement: minddiff fetch "
    "nsd {path}, with --subject, --rois and --sessions as here, says where",
    "LAION": "public: minddiff fetch laion {path}, with --subject and --sessions as here",
    "form": laion.PICTURES_HINT,
    "COCO": "annotations_trainval2017.zip of cocodataset.org; minddiff fetch nsd gets it too",
}
ELSEWHERE = {"captions_*.json": "COCO", "task-images_stimuli.h5": "form"}


@dataclass
class Entry:
    """One file.

    Parameters
    ----------
    path : Path
    state : str
        "present", "missing", "damaged" or "unreadable".
    note : str
        What is wrong, as the reader says it.
    """

    path: Path
    state: str
    note: str = ""


def check_recording(
    dataset: str, path: Path, subjects: Sequence[str], rois: str, sessions: Sessions
) -> tuple[str, bool]:
    """Say of every file that a run on a recording needs whether it is there and whole.

    Parameters
    ----------
    dataset : str
        "nsd", "laion", "miyawaki", "kay" or "own".
    path, subjects, rois, sessions
        As of `check_nsd` and `check_laion`; the last three are for these.

    Returns
    -------
    said : str
        One line a file, or a fault.
    ready : bool
        Whether all is there and fits together.

    Raises
    ------
    InputError
        If the dataset is unknown.
    """
    if dataset not in DATASETS:
        raise InputError(f"dataset={dataset!r} is unknown; choose one of {', '.join(DATASETS)}")
    if dataset in LARGE_READERS:
        check = check_nsd if dataset == "nsd" else check_laion
        entries = check(path, subjects, rois, sessions)
        return report(entries, path, dataset.upper()), is_ready(entries)
    faults = []
    if dataset == "own":
        faults = check_own(path)
    else:
        dataset += "_full" if dataset == "miyawaki" and path.suffix != ".mat" else ""
        try:
            load_subject(dataset, path, "S1", rois=rois)
        except InputError as error:
            faults = [str(error)]
    return "\n".join(faults) or f"{path}: everything is there, and fits together.", not faults


def check_nsd(
    path: Path, subjects: Sequence[str] = (), rois: str = "kastner2015", sessions: Sessions = None
) -> list[Entry]:
    """List every file that a run on NSD needs, and let the reader read what is there.

    Parameters
    ----------
    path : Path
        The folder that is, or will be, the parameter `data_path`; a phantom's too.
    subjects : sequence of str
        Whose files; none for those that are there, or the first.
    rois : str
        As the parameter `rois` of the notebooks.
    sessions : int, str, sequence of int, or None
        The first so many, exactly these, or all.

    Returns
    -------
    list of Entry
    """
    first = NsdTree(path, "subj01")
    trees = [NsdTree(path, name) for name in subjects or first.subjects or [first.subject]]
    files: list[Path] = []
    for tree in trees:
        # Of a phantom, which has fewer sessions than NSD, those that are there.
        small = not sessions and (path / "phantom.json").is_file()
        asked = max(tree.sessions, default=1) if small else sessions
        further = any(file.is_file() for file in tree.synthetic)  # then all of its files count
        files += map(tree.held, nsd_files(tree, rois, asked, further))
    entries = _entries([*files, *first.captions])
    for tree in trees:
        _read_nsd(tree, rois, entries)
    return entries


def check_laion(
    path: Path, subjects: Sequence[str] = (), rois: str = laion.GENERAL, sessions: Sessions = None
) -> list[Entry]:
    """List every file that a run on LAION-fMRI needs, and let the reader read what is there.

    Parameters
    ----------
    path, subjects, rois, sessions
        As for `check_nsd`.

    Returns
    -------
    list of Entry
    """
    first = laion.LaionTree(path, laion.SUBJECTS[0])
    trees = [laion.LaionTree(path, name) for name in subjects or first.subjects or [first.subject]]
    entries = _entries([first.metadata, first.captions, first.pictures])
    for tree in trees:
        numbers = laion.known_sessions(sessions or max(tree.sessions, default=None))
        files = [*map(tree.trials, numbers), *map(tree.betas, numbers), tree.split("tau")]
        files += sorted(tree.split("tau").parent.glob("*.json"))
        files += [*map(tree.mask, laion.mask_names(rois)), *[tree.ceiling] * tree.ceiling.exists()]
        entries += _entries(files)
        _read_laion(tree, rois, entries)
    return entries


def _read_laion(tree: laion.LaionTree, rois: str, entries: Sequence[Entry]) -> None:
    """Read as the reader does, of betas only their form; note what it refuses."""
    numbers, shown = _sessions(tree.sessions, tree.betas, entries), list[int]()
    with _noting(entries, tree.metadata):
        shape, _ = grid = laion.read_grid(tree.betas(min(numbers, default=1)))
        ijk, _ = laion.read_masks(tree, rois, grid)
        metadata = laion.read_metadata(tree)
        for number in numbers:
            with _noting(entries, tree.betas(number)):
                n_trials = inspect_betas(tree.betas(number), shape).n_trials
                shown += laion.read_trials(tree, number, n_trials, metadata).tolist()
        stimuli = laion.LaionStimuli(tree, list(metadata), shown)
        for path in tree.split("tau").parent.glob("*.json"):
            with _noting(entries, path):
                laion.read_split(tree, path.stem, metadata, stimuli.ids)
        with _noting(entries, tree.captions):
            stimuli.captions(stimuli.ids)
        with _noting(entries, tree.pictures):
            stimuli.pictures(stimuli.ids[:: max(1, len(stimuli.ids) // 50)])
        laion.read_ncsnr(tree, ijk, grid)


def _sessions(
    found: Sequence[int], betas: Callable[[int], Path], entries: Sequence[Entry]
) -> list[int]:
    """Return the numbers of the sessions whose betas are there and among the entries."""
    listed = [entry.path for entry in entries]
    return [number for number in found if betas(number) in listed]


def _entries(files: Iterable[Path]) -> list[Entry]:
    """Say of each file, once, whether it is there."""
    return [Entry(file, PRESENT if file.is_file() else MISSING) for file in dict.fromkeys(files)]


@contextmanager
def _noting(entries: Sequence[Entry], path: Path) -> Iterator[None]:
    """Note a reader's error at the file that it names first.

    One that names none is noted at `path`, unless a file is missing, which then explains it.
    """
    try:
        yield
    except InputError as error:
        text = str(error)
        named = [entry for entry in entries if str(entry.path) in text]
        if not named and is_ready(entries):
            named = [entry for entry in entries if entry.path == path]
        first = min(named, key=lambda entry: text.find(str(entry.path)), default=None)
        if first and first.state == PRESENT:
            first.state = UNREADABLE if isinstance(error, UnreadableError) else DAMAGED
            first.note = text.removeprefix(str(first.path)).lstrip(": ")


def _read_nsd(tree: NsdTree, rois: str, entries: Sequence[Entry]) -> None:
    """Read as the reader does, but of betas only their form; note what it refuses."""
    n_trials = {}
    with _noting(entries, tree.ncsnr):
        regions = read_regions(tree, rois)
        shape = regions.shape
        for number in _sessions(tree.sessions, tree.session, entries):
            with _noting(entries, path := tree.session(number)):
                n_trials[number] = inspect_betas(path, shape).n_trials
                if path.name.endswith(PART):
                    rows_of_voxels(path, regions.ijk)
        if n_trials:
            read_trials(tree, n_trials)
        if tree.synthetic.betas in [entry.path for entry in entries]:
            read_synthetic(tree, inspect_betas(tree.synthetic.betas, shape).n_trials)
    with _noting(entries, tree.stimulus_table):
        stimuli = NsdStimuli(tree, read_design(tree)[0])
        with _noting(entries, tree.pictures):
            stimuli.pictures(stimuli.ids[-1:])
        stimuli.captions(stimuli.ids)


def is_ready(entries: Iterable[Entry]) -> bool:
    """Whether every file is there and as it should be."""
    return all(entry.state == PRESENT for entry in entries)


def report(entries: Sequence[Entry], path: Path, source: str = "NSD") -> str:
    """Return the table: one line a file, what is wrong below it, where it comes from, the sum.

    Parameters
    ----------
    entries : sequence of Entry
    path : Path
        The folder of the tree.
    source : str
        Where most files come from, one of `ORIGINS`.
    """
    lines, wanted, about = [f"{'state':<10}  {'size':>6}  {'from':<7}  file"], {}, 0
    for entry in entries:
        origins = [origin for name, origin in ELSEWHERE.items() if entry.path.match(name)]
        origin = [*origins, source][0]
        if entry.state in (MISSING, DAMAGED):
            wanted[origin] = ORIGINS[origin].format(path=path)
            size = next(size for name, size in SIZES.items() if entry.path.match(name))
            about += size
        else:
            size = entry.path.stat().st_size
        name = entry.path.relative_to(path)
        lines.append(f"{entry.state:<10}  {show_bytes(size):>6}  {origin:<7}  {name}")
        lines += [f"{'':<29}{entry.note}"] * bool(entry.note)
    n_present = sum(entry.state == PRESENT for entry in entries)
    total = f"{n_present} of {len(entries)} files of {path} are there"
    left = f"Not ready: {total}; about {show_bytes(about)} to download."
    total = f"Ready: {total}." if is_ready(entries) else left
    return "\n".join([*lines, "", *map(": ".join, wanted.items()), total])
