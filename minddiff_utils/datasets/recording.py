"""What readers have in common: grey pictures, regions by name, voxels of use, faults of content."""

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from minddiff_utils.datasets.subject import Split, Stimuli, Subject, check_ids, training_moments
from minddiff_utils.io import Ids, InputError

Sessions = int | str | Sequence[int] | None
EVERY = ("all", "kastner2015")  # the latter is the notebooks' default
# Files that may hold a recording's data.
DATA = (".h5", ".hdf5", ".mat", ".nii", ".gz", ".npz", ".csv", ".tsv", ".json")
BLOCK_BYTES = 32 * 2**20  # of pictures in memory at once
FEW_VOXELS = 6  # fewer may agree by chance in two trials


@dataclass(frozen=True)
class ListedStimuli:
    """Stimuli of a list: the id is the place in it.

    Parameters
    ----------
    ids : int64 array
        Those that were seen, sorted.
    texts : sequence of tuple of str
        Captions of each of the list.
    read : function
        Takes places in the list; returns uint8 (n, height, width), or that by 3.
    """

    ids: np.ndarray
    texts: Sequence[tuple[str, ...]]
    read: Callable[[np.ndarray], np.ndarray]

    def pictures(self, ids: Ids) -> np.ndarray:
        """Return uint8 (n, height, width, 3), grey in three channels, in the order of `ids`.

        Raises
        ------
        InputError
            If there is no such picture.
        """
        found = self.read(check_ids(ids, len(self.texts)))
        return found if found.ndim == 4 else np.repeat(found[..., None], 3, axis=3)

    def captions(self, ids: Ids) -> list[tuple[str, ...]]:
        """Return the captions of each picture, in the order of `ids`."""
        return [self.texts[i] for i in check_ids(ids, len(self.texts))]


def wrong_shapes(
    shapes: Mapping[str, tuple[int, ...]], axes: Mapping[str, tuple[str | int, ...]]
) -> Iterator[tuple[str, str]]:
    """Find the arrays that do not fit those before them.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
    axes : mapping of str to tuple of (str or int)
        Each array's axes: how long they are, or names; the first array with such a name says it.

    Yields
    ------
    name, fault : str
    """
    length: dict[str | int, int] = {}
    for name, shape in shapes.items():
        for axis, n in zip(axes[name], shape, strict=False):
            if isinstance(axis, str):
                length.setdefault(axis, n)
        expected = tuple(length.get(axis, axis) for axis in axes[name])
        if shape != expected:
            what = " × ".join(map(str, axes[name]))
            yield name, f"`{name}` has shape {shape}; expected {expected}: {what}."


def recording_files(path: Path, subject: str) -> list[Path]:
    """Return the files of a recording that belong to a subject, whatever else lies beside them."""
    if path.is_file():
        return [path]
    # What is hidden, or another subject's: subj02, or sub-03 and what begins with it.
    another = re.compile(rf"\.|(?!{subject}(?!\d))(subj\d\d\b|sub-\d\d(?!\d))")
    files = [file for file in sorted(path.rglob("*")) if file.suffix in DATA and file.is_file()]
    if named := [f for f in files if f.parent == path and f.name.startswith(f"{subject}.")]:
        return named
    return [f for f in files if not any(map(another.match, f.relative_to(path).parts))]


def choose_regions(rois: str, known: list[str]) -> list[str]:
    """Return the names of the regions that are meant.

    Parameters
    ----------
    rois : str
        "all" or "kastner2015" for all, or names with commas between.
    known : list of str

    Raises
    ------
    InputError
        If one is not among the known.
    """
    wanted = known if rois in EVERY else [name.strip() for name in rois.split(",")]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        what = f"give all or some of {','.join(known)}"
        raise InputError(f"rois={rois!r}: {unknown[0]!r} is unknown; {what}")
    return wanted


def parse_sessions(sessions: Sessions) -> list[int]:
    """Return the numbers of the sessions that are meant, sorted, each once.

    Parameters
    ----------
    sessions : int, str, or sequence of int
        The first so many; or exactly these, from 1, also as text such as "1-10,12".

    Raises
    ------
    InputError
        If it is none of these.
    """
    text = f"1-{sessions}" if isinstance(sessions, int) else str(sessions).strip("[]()")
    parts = [re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part) for part in text.split(",")]
    ends = [(int(part[1]), int(part[2] or part[1])) for part in parts if part]
    numbers = sorted({number for first, last in ends for number in range(first, last + 1)})
    if not all(parts) or not numbers or numbers[0] < 1:
        raise InputError(f"sessions={sessions!r}: expected how many, or which, such as 1-10,12")
    return numbers


def present_sessions(
    asked: list[int], found: list[int], subjects: list[str], betas: Callable[[int], Path], what: str
) -> list[int]:
    """Return the numbers of the sessions that are asked for, if the betas of each are there.

    Parameters
    ----------
    asked, found : list of int
        Numbers of the sessions that are asked for, and of those whose betas are there.
    subjects : list of str
        Who is there, for the message.
    betas : function
        Takes the number of a session; returns its file.
    what : str
        What else to do than to fetch the file that is missing.

    Raises
    ------
    InputError
        If one is missing.
    """
    missing = [number for number in asked if number not in found]
    if missing:
        numbers, names = (", ".join(map(str, one)) or "none" for one in (found, subjects))
        there = f"its subject has sessions {numbers}, and there are subjects {names}"
        raise InputError(f"{betas(missing[0])} is missing; {there}. Fetch it, or {what}.")
    return asked


def listed(unit: str, places: Ids) -> str:
    """Write "voxel 3" or "voxels 3, 4, 5 and 7 more"."""
    more = f" and {len(places) - 3} more" if len(places) > 3 else ""
    return f"{unit}{'s' * (len(places) > 1)} {', '.join(str(int(p)) for p in places[:3])}{more}"


# ------------------------------------------------------------------- from values to a subject


def single_session(
    name: str,
    dataset: str,
    responses: np.ndarray,
    stimulus_id: np.ndarray,
    roi: dict[str, np.ndarray],
    splits: Sequence[Split],
    grey: np.ndarray,
    texts: Sequence[tuple[str, ...]],
) -> Subject:
    """Put together a published recording of one person, S1, in one session, with grey pictures.

    Raises
    ------
    InputError
        If another person is asked for.
    """
    if name != "S1":
        raise InputError(f"subject={name!r} is unknown; this recording has S1 only")
    session, stimulus_id = np.ones(len(stimulus_id), np.int64), stimulus_id.astype(np.int64)
    stimuli = ListedStimuli(np.arange(len(grey)), texts, partial(np.take, grey, axis=0))
    return Subject(name, dataset, responses, stimulus_id, session, roi, tuple(splits), stimuli)


def checked(path: str | Path, subject: Subject, hint: str = "") -> Subject:
    """Return a recording with its `useful_voxels` and `noted_copies`.

    Raises
    ------
    InputError
        With the faults that either finds; `hint` says what to do.
    """
    try:
        return noted_copies(useful_voxels(subject))
    except InputError as error:
        raise InputError(f"{path}: {error} {hint}".rstrip()) from None


def useful_voxels(subject: Subject) -> Subject:
    """Leave out voxels of no region, and those that are not finite or do not change.

    What counts is whether a voxel changes in the training trials of every session and split: that
    is what standardises it.

    Parameters
    ----------
    subject : Subject
        With its responses in memory.

    Returns
    -------
    Subject
        With float32 responses; `n_dropped` counts the voxels of the regions that were left out.

    Raises
    ------
    InputError
        If a session has too few training trials, no voxel of a region is left, or the noise
        ceiling of one that is left is no number.
    """
    x, inside = subject.responses[:], np.any(list(subject.roi.values()), axis=0)
    changes: np.ndarray = np.isfinite(x).all(axis=0)
    for split, number in itertools.product(subject.splits, np.unique(subject.session)):
        some = x[np.isin(subject.stimulus_id, split.train) & (subject.session == number)]
        if len(some) < 2:
            n = f"{len(some)} trials with a training picture of split {split.name}"
            raise InputError(f"session {number} has {n}; expected 2. Give it a neighbour's number.")
        changes[changes] = training_moments(some[:, changes])[2]
    keep = inside & changes
    ratio = np.zeros(len(keep)) if subject.ncsnr is None else subject.ncsnr
    bad = np.flatnonzero(keep & ~(np.isfinite(ratio) & (ratio >= 0)))
    if bad.size:
        wrong = f"`ncsnr` of {listed('voxel', bad)} is not finite or below zero"
        raise InputError(f"{wrong}; expected 0 or more.")
    return replace(
        subject,
        responses=np.ascontiguousarray(x[:, keep], np.float32),
        roi=kept_regions(subject.roi, keep),
        ncsnr=None if subject.ncsnr is None else subject.ncsnr[keep],
        voxel_ijk=None if subject.voxel_ijk is None else subject.voxel_ijk[keep],
        n_dropped=int((inside & ~changes).sum()),
    )


def kept_regions(
    roi: Mapping[str, np.ndarray], keep: np.ndarray, where: str = ""
) -> dict[str, np.ndarray]:
    """Return the masks of the voxels that are kept.

    Raises
    ------
    InputError
        If a region has no such voxel.
    """
    lost = [name for name, mask in roi.items() if not (mask & keep).any()]
    if lost:
        why = f"every voxel of region {lost[0]} is NaN or constant in the training of a session"
        raise InputError(f"{where}{why}: mend its responses, or leave it out of `rois`.")
    return {name: mask[keep] for name, mask in roi.items()}


def noted_copies(subject: Subject) -> Subject:
    """Read all pictures and responses once, and note which pictures are the same.

    Parameters
    ----------
    subject : Subject
        With its responses in memory.

    Returns
    -------
    Subject
        With `copy_of`, the least of the ids that have the same pixels, for each stimulus.

    Raises
    ------
    InputError
        If pictures have one colour, or values 0 and 1; a test picture is a training picture by
        its pixels; trials are zeros, or equal to one another.
    """
    ids = subject.stimulus_ids
    highest, flat, keys = 0, list[int](), list[bytes]()
    for some, pictures in stream_pictures(subject.stimuli, ids):
        highest = max(highest, int(pictures.max()))
        flat += some[flat_pictures(pictures)].tolist()
        keys += digests(pictures)
    key_of = dict(zip(ids.tolist(), keys, strict=True))
    faults = ["", _shared_pictures(subject.splits, key_of), trial_fault(subject.responses[:])]
    if highest <= 1:
        faults[:2] = [
            f"`pictures` hold values from 0 to {highest}; expected 0 to 255. Were they cast from "
            "numbers between 0 and 1? Write np.uint8(np.round(255 * pictures)) of those."
        ]
    elif flat:
        faults[0] = f"one colour throughout in {listed('picture', flat)}, never written? Leave out."
    if any(faults):
        raise InputError(" ".join(filter(None, faults)))
    least = {key_of[one]: one for one in reversed(key_of)}
    return replace(subject, copy_of={one: least[key] for one, key in key_of.items()})


def _shared_pictures(splits: Iterable[Split], keys: Mapping[int, bytes]) -> str:
    """Say which test pictures are training pictures too, in the first split that has some."""
    for split in splits:
        trained = {keys[i]: i for i in split.train[::-1].tolist()}
        copies = [i for i in split.test.tolist() if keys[i] in trained]
        if copies:
            first = f"(the first is training picture {trained[keys[copies[0]]]})"
            found = f"tested and trained with the same pixels: {listed('test picture', copies)}"
            return f"{found} {first}. Let all copies of a picture train, or all test."
    return ""


def stream_pictures(stimuli: Stimuli, ids: Ids) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield ids and pictures, as many at a time as 32 MiB hold."""
    ids = np.asarray(ids, np.int64)
    step = max(1, BLOCK_BYTES // stimuli.pictures(ids[:1]).nbytes) if len(ids) else 1
    for first in range(0, len(ids), step):
        yield ids[first : first + step], stimuli.pictures(ids[first : first + step])


def flat_pictures(pictures: np.ndarray) -> np.ndarray:
    """Return which pictures (n, height, width, 3) have one colour throughout; bool (n,)."""
    return (pictures == pictures[:, :1, :1]).all(axis=(1, 2, 3))


def digests(rows: Iterable[np.ndarray]) -> list[bytes]:
    """Return the SHA-256 of each array: equal for equal pictures, or trials."""
    return [hashlib.sha256(np.ascontiguousarray(row).data).digest() for row in rows]


def partly_missing(x: np.ndarray) -> str:
    """Say how many voxels of `x` (n_trials, n_voxels) are no numbers in some trials only."""
    bad = ~np.isfinite(x)
    partly = bad.any(axis=0) & ~bad.all(axis=0)
    if not partly.any():
        return ""
    first = f"first in trial {bad[:, partly].any(axis=1).argmax()} counted from 0"
    found = f"{partly.sum()} of {x.shape[1]} voxels"
    return f"`responses` are NaN or infinite in some trials for {found}, {first}."


def trial_fault(x: np.ndarray) -> str:
    """Say which trials of `x` (n_trials, n_voxels) were not written, or written twice.

    Few voxels may agree by chance, above all in counts: below `FEW_VOXELS` nothing is said.
    """
    if x.shape[1] < FEW_VOXELS:
        return ""
    zero = np.flatnonzero(~x.any(axis=1))
    if zero.size:
        return f"`responses` are zero in all voxels for {listed('trial', zero)}: leave them out."
    _, first, origin = np.unique(digests(x), return_index=True, return_inverse=True)
    again = np.flatnonzero(first[origin] != np.arange(len(x)))
    if again.size:
        found = f"{listed('trial', again)} (the first equals trial {first[origin][again[0]]})"
        return f"`responses` repeat, value by value, in {found}. Give each trial its own."
    return ""
