"""Ten contrast patterns seen by one person: the recording of Miyawaki et al. (2008)."""

from pathlib import Path

import numpy as np

from minddiff_utils.datasets.content import check_content
from minddiff_utils.datasets.patterns import N_PATCHES
from minddiff_utils.datasets.published import GreyStimuli, choose_regions, make_subject
from minddiff_utils.datasets.reading import read_matlab
from minddiff_utils.datasets.subject import Split, Subject
from minddiff_utils.io import InputError

N_REPETITIONS = 8
SOURCE = (
    "It is sample/data/V1_mean_figure.mat of the public repository KamitaniLab/VBCCA; give the "
    "path of that file."
)


def five_captions(size: str, name: str, patches: str, short: str) -> tuple[str, ...]:
    """Return five captions of a pattern, in the wording that the phantom's models have learnt.

    Parameters
    ----------
    size : str
        "small", "medium" or "large".
    name, patches, short : str
        What it is called, such as "small letter u", "letter u of patches", "u as a letter".
    """
    return (
        f"a {name} in white in the middle on grey",
        f"grey background with a {patches} middle , {size}",
        f"white on grey : middle a {size} {short}",
        f"a checked {name} at middle , plain grey",
        f"picture of a white {patches} to the middle on grey , {size}",
    )


def _figure(size: str, name: str, short: str = "") -> tuple[str, ...]:
    short = short or f"{name} as a figure"
    return five_captions(size, f"{size} {name}", f"{name} of patches", short)


# In the order in which the ten patterns first appear in the recording; the letters spell "neuro".
CAPTIONS = {
    "small_square": _figure("small", "square"),
    "small_frame": _figure("small", "frame"),
    "plus": _figure("large", "plus sign"),
    "diagonal_cross": _figure("large", "diagonal cross"),
    "large_frame": _figure("large", "frame"),
} | {f"letter_{x}": _figure("small", f"letter {x}", f"{x} as a letter") for x in "neuro"}


def load_miyawaki(path: str | Path, subject: str = "S1", *, rois: str = "kastner2015") -> Subject:
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
    choose_regions(rois, ["V1"])
    patterns, responses = _read(Path(path))
    distinct, stimulus = _distinct(patterns)
    counts = np.bincount(stimulus).tolist()
    if counts != [N_REPETITIONS] * len(CAPTIONS):
        raise InputError(
            f"{path}: {len(counts)} distinct pictures shown {counts} times; expected "
            f"{len(CAPTIONS)} pictures, {N_REPETITIONS} times each. {SOURCE}"
        )
    ids = np.arange(len(distinct))
    splits = [Split(f"without_{x}", ids[ids != i], ids[[i]]) for i, x in enumerate(CAPTIONS)]
    stimuli = GreyStimuli.of_patterns(distinct, list(CAPTIONS.values()))
    roi = {"V1": np.ones(responses.shape[1], bool)}
    found, _ = make_subject(subject, "miyawaki", responses, stimulus, roi, splits, stimuli)
    return check_content(Path(path), found, SOURCE)


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return patterns bool (n_trials, 10, 10), upright, and responses (n_trials, n_voxels)."""
    content = read_matlab(path, ("I2", "R2"), SOURCE)
    flat, responses = content["I2"], content["R2"]
    if flat.shape != (N_PATCHES**2, flat.shape[-1]) or responses.shape[1:] != flat.shape[1:]:
        raise InputError(
            f"{path}: I2 has shape {flat.shape} and R2 {responses.shape}; expected (100, n_trials) "
            f"and (n_voxels, n_trials). {SOURCE}"
        )
    # MATLAB flattens columns first, so rows and columns change places.
    patterns = flat.T.reshape(-1, N_PATCHES, N_PATCHES).transpose(0, 2, 1).astype(bool)
    return patterns, responses.T


def _distinct(patterns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct patterns in order of appearance, and which of them each trial shows."""
    flat = patterns.reshape(len(patterns), -1)
    _, first, inverse = np.unique(flat, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return patterns[first[order]], np.argsort(order)[inverse.ravel()]
