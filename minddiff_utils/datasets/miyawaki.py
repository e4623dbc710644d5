"""Ten contrast patterns seen by one person: the recording of Miyawaki et al. (2008)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minddiff_utils.datasets.content import check_content
from minddiff_utils.datasets.patterns import N_PATCHES, pattern_picture
from minddiff_utils.datasets.reading import read_matlab
from minddiff_utils.datasets.subject import Split, Subject, check_ids
from minddiff_utils.io import InputError

SUBJECT = "S1"
N_REPETITIONS = 8
SOURCE = (
    "It is sample/data/V1_mean_figure.mat of the public repository KamitaniLab/VBCCA; give the "
    "path of that file."
)


def _five(name: str, look: str, size: str) -> tuple[str, ...]:
    """Return five captions of a pattern, in the wording that the phantom's models have learnt."""
    return (
        f"a {size} {name} in white in the middle on grey",
        f"grey background with a {look} of patches middle , {size}",
        f"white on grey : middle a {size} {_short(name, look)}",
        f"a checked {size} {name} at middle , plain grey",
        f"picture of a white {look} of patches to the middle on grey , {size}",
    )


def _short(name: str, look: str) -> str:
    """Return "u as a letter" for a letter and "frame as a figure" for a figure."""
    return f"{look.split()[1]} as a letter" if look.startswith("letter") else f"{name} as a figure"


# In the order in which the ten patterns first appear in the recording; the letters spell "neuro".
CAPTIONS = {
    "small_square": _five("square", "square", "small"),
    "small_frame": _five("frame", "frame", "small"),
    "plus": _five("plus sign", "plus sign", "large"),
    "diagonal_cross": _five("diagonal cross", "diagonal cross", "large"),
    "large_frame": _five("frame", "frame", "large"),
} | {
    f"letter_{letter}": _five(f"letter {letter}", f"letter {letter}", "small") for letter in "neuro"
}


@dataclass(frozen=True)
class MiyawakiStimuli:
    """The ten patterns, ids 0 to 9, drawn as the phantom's world draws patterns.

    Parameters
    ----------
    patterns : bool array of shape (10, 10, 10)
        Pattern, row from the top, column from the left.
    """

    patterns: np.ndarray

    @property
    def ids(self) -> np.ndarray:
        """int64 (10,), 0 to 9."""
        return np.arange(len(self.patterns))

    def pictures(self, ids: Sequence[int]) -> np.ndarray:
        """Return uint8 (n, 64, 64, 3), in the order of `ids`."""
        return np.stack(
            [pattern_picture(self.patterns[i]) for i in check_ids(ids, len(self.patterns))]
        )

    def captions(self, ids: Sequence[int]) -> list[tuple[str, ...]]:
        """Return five captions a picture, in the order of `ids`."""
        texts = list(CAPTIONS.values())
        return [texts[i] for i in check_ids(ids, len(self.patterns))]


def load_miyawaki(
    path: str | Path, subject: str = SUBJECT, *, rois: str = "kastner2015"
) -> Subject:
    """Read `V1_mean_figure.mat`: 80 trials, ten patterns, 797 voxels of V1.

    Parameters
    ----------
    path : str or Path
        The file.
    subject : str
        "S1"; the file holds one subject.
    rois : str
        The only region is V1; "kastner2015" and "V1" both mean it.

    Returns
    -------
    Subject
        With ten splits, each leaving one picture out. All trials count as one session, places of
        the voxels in the brain are not in the file.

    Raises
    ------
    InputError
        If the subject or region is unknown, or the file is missing, damaged or not the expected.
    """
    if subject != SUBJECT:
        raise InputError(f"subject={subject!r} is unknown; this recording has {SUBJECT} only")
    if rois not in ("kastner2015", "V1"):
        raise InputError(f"rois={rois!r}: this recording has V1 only")
    patterns, responses = _read(Path(path))
    distinct, first, stimulus = _distinct(patterns)
    counts = np.bincount(stimulus)
    if len(distinct) != len(CAPTIONS) or (counts != N_REPETITIONS).any():
        raise InputError(
            f"{path}: {len(distinct)} distinct pictures shown {counts.tolist()} times; expected "
            f"{len(CAPTIONS)} pictures, {N_REPETITIONS} times each. {SOURCE}"
        )
    changing = np.isfinite(responses).all(axis=0) & (np.ptp(responses, axis=0) > 0)
    if not changing.any():
        raise InputError(f"{path}: every voxel is constant or not finite. {SOURCE}")
    subject = Subject(
        name=SUBJECT,
        dataset="miyawaki",
        responses=np.ascontiguousarray(responses[:, changing], dtype=np.float32),
        stimulus_id=stimulus.astype(np.int64),
        session=np.ones(len(stimulus), np.int64),
        roi={"V1": np.ones(int(changing.sum()), bool)},
        splits=_leave_one_out(np.arange(len(distinct))),
        stimuli=MiyawakiStimuli(distinct),
        n_dropped=int((~changing).sum()),
    )
    return check_content(Path(path), subject, SOURCE)


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return patterns bool (n_trials, 10, 10), upright, and responses (n_trials, n_voxels)."""
    content = read_matlab(path, ("I2", "R2"), SOURCE)
    flat, responses = content["I2"], content["R2"]
    if (
        flat.ndim != 2
        or responses.ndim != 2
        or flat.shape[0] != N_PATCHES**2
        or flat.shape[1] != responses.shape[1]
    ):
        raise InputError(
            f"{path}: I2 has shape {flat.shape} and R2 {responses.shape}; expected (100, n_trials) "
            f"and (n_voxels, n_trials). {SOURCE}"
        )
    # MATLAB flattens columns first, so rows and columns change places.
    patterns = flat.T.reshape(-1, N_PATCHES, N_PATCHES).transpose(0, 2, 1).astype(bool)
    return patterns, responses.T


def _distinct(patterns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the distinct patterns in order of appearance, their first trials, and trial ids."""
    flat = patterns.reshape(len(patterns), -1)
    _, first, inverse = np.unique(flat, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return patterns[first[order]], first[order], rank[inverse.ravel()]


def _leave_one_out(ids: np.ndarray) -> tuple[Split, ...]:
    """Return one split a picture: that picture's trials test, all the others train."""
    names = list(CAPTIONS)
    return tuple(Split(f"without_{names[i]}", train=ids[ids != i], test=ids[ids == i]) for i in ids)
