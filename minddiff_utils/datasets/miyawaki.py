"""Contrast patterns of 10 by 10 patches, seen by one person: Miyawaki et al. (2008).

`load_miyawaki` reads the small public file of ten figures. `load_miyawaki_full` reads the files
that `nilearn.datasets.fetch_miyawaki2008` unpacks: 20 runs of random patterns to learn from and 12
runs of figures and letters to test, each a series of volumes and a table of what was on the screen.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from minddiff_utils.datasets.reading import read_matlab, read_nifti, reading
from minddiff_utils.datasets.recording import checked, choose_regions, single_session
from minddiff_utils.datasets.subject import Split, Subject
from minddiff_utils.io import InputError

N_PATCHES = 10  # patches along each side
PATCH = 6  # px, side of a patch
BORDER = 2  # px around the patches
BACKGROUND = 128  # grey level between and around the patches that are on
ON = 235  # grey level of a patch that is on

N_REPETITIONS = 8  # of each figure in the small file
SMALL_SOURCE = "Take sample/data/V1_mean_figure.mat of the public repository KamitaniLab/VBCCA."
SOURCE = "Fetch the recording (153 MB): minddiff fetch miyawaki FOLDER."
FOLDER = "miyawaki2008"  # as nilearn names it
RUNS = {"random": 20, "figure": 12}
REST = -1  # in the tables, in all columns, while nothing was shown
# Blood answers late: 4 s at 2 s a volume, as in the paper and in nilearn's example.
DELAY = 2  # volumes between a picture and the answer to it
# Masks of each hemisphere that make a region; VP is the lower half of V3.
REGIONS: dict[str, tuple[str, ...]] = {"V1": ("V1d", "V1v"), "V2": ("V2d", "V2v")}
REGIONS |= {"V3": ("V3", "VP"), "V3A": ("V3A",), "V4": ("V4v",)}


# ------------------------------------------------------------------- pictures and captions


def pattern_picture(pattern: np.ndarray) -> np.ndarray:
    """Draw a contrast pattern, light patches on a grey background, as the phantom's world does.

    Parameters
    ----------
    pattern : array of shape (10, 10)
        True (or non-zero) where a patch is on; row 0 is the top.

    Returns
    -------
    uint8 array of shape (64, 64, 3)
    """
    patches = np.kron(np.asarray(pattern, bool), np.ones((PATCH, PATCH), bool))
    grey = np.where(np.pad(patches, BORDER), ON, BACKGROUND).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


# Three ways to call a pattern of each kind.
LOOKS = {
    "random": ("{word} random patches", "random pattern with {word} patches", "{word} patches"),
    "letter": ("{size} letter {word}", "letter {word} of patches", "{word} as a letter"),
    "figure": ("{size} {word}", "{word} of patches", "{word} as a figure"),
    "unknown": ("{size} figure of patches", "figure of patches", "figure of patches"),
}


def pattern_captions(kind: str, word: str, size: str, where: str = "middle") -> tuple[str, ...]:
    """Return five captions of a pattern, in the wording that the phantom's models have learnt.

    Parameters
    ----------
    kind : str
        One of `LOOKS`; any other is a figure.
    word : str
        The name of a letter or figure; of random patches "few", "some" or "many".
    size : {"small", "medium", "large"}
    where : {"left", "middle", "right"}
    """
    looks = LOOKS.get(kind, LOOKS["figure"])
    name, patches, short = (text.format(word=word, size=size) for text in looks)
    return (
        f"a {name} in white {'in' if where == 'middle' else 'on'} the {where} on grey",
        f"grey background with a {patches} {where} , {size}",
        f"white on grey : {where} a {size} {short}",
        f"a checked {name} at {where} , plain grey",
        f"picture of a white {patches} to the {where} on grey , {size}",
    )


def pattern_size(pattern: np.ndarray) -> str:
    """Return "small", "medium" or "large" for the extent of the patches that are on."""
    extent = max((np.ptp(where) + 1 for where in np.nonzero(pattern) if len(where)), default=0)
    return "small" if extent < 6 else "medium" if extent < 8 else "large"


# In the order in which the ten patterns first appear in the recording; the letters spell "neuro".
CAPTIONS = {
    "small_square": pattern_captions("figure", "square", "small"),
    "small_frame": pattern_captions("figure", "frame", "small"),
    "plus": pattern_captions("figure", "plus sign", "large"),
    "diagonal_cross": pattern_captions("figure", "diagonal cross", "large"),
    "large_frame": pattern_captions("figure", "frame", "large"),
} | {f"letter_{x}": pattern_captions("letter", x, "small") for x in "neuro"}


# The figures whose captions are known, in the order of `CAPTIONS`: patch by patch, row by row from
# the top, in hexadecimal.
CODES = """
    00000000781e0781e00000000 0000000078120481e00000000 000300c0307f9fe0c0300c000
    00186738fc1e0783f1ce61800 001fe7f98661986619fe7f800 000001e048120481200000000
    000001e0481e0401e00000000 0000012048120481e00000000 000001e040100401000000000
    000001e048120481e00000000
"""
FIGURES = dict(zip(CODES.split(), CAPTIONS, strict=True))


def _captions(pattern: np.ndarray, is_figure: bool) -> tuple[str, ...]:
    """Return five captions of a pattern, in words that the phantom's models have learnt."""
    known = FIGURES.get(np.packbits(pattern.ravel()).tobytes().hex()[:25])
    if known:
        return CAPTIONS[known]
    word = "few" if pattern.mean() < 0.35 else "some" if pattern.mean() < 0.45 else "many"
    return pattern_captions("unknown" if is_figure else "random", word, pattern_size(pattern))


def grey_patterns(patterns: np.ndarray) -> np.ndarray:
    """Draw contrast patterns (n, 10, 10), each as `pattern_picture` does, in one channel."""
    return np.stack([pattern_picture(pattern)[..., 0] for pattern in patterns])


def _upright(flat: np.ndarray) -> np.ndarray:
    """Return patterns (n, 10, 10) of rows (n, 100) that MATLAB flattened, columns first."""
    return flat.reshape(-1, N_PATCHES, N_PATCHES).transpose(0, 2, 1)


# ------------------------------------------------------------------- the small file


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
    flat, responses = read_matlab(path, ("I2", "R2"), SMALL_SOURCE).values()
    if flat.shape != (N_PATCHES**2, flat.shape[-1]) or responses.shape[1:] != flat.shape[1:]:
        found = f"I2 has shape {flat.shape} and R2 {responses.shape}"
        raise InputError(f"{path}: {found}; expected (100, n), (n_voxels, n). {SMALL_SOURCE}")
    # In the order of appearance, which is that of the captions.
    number = {shown: place for place, shown in enumerate(dict.fromkeys(map(tuple, flat.T)))}
    stimulus = np.array([number[shown] for shown in map(tuple, flat.T)])
    counts = np.bincount(stimulus).tolist()
    if counts != [N_REPETITIONS] * len(CAPTIONS):
        found = f"{len(counts)} distinct pictures shown {counts} times"
        raise InputError(f"{path}: {found}; expected 10, {N_REPETITIONS} times. {SMALL_SOURCE}")
    ids = np.arange(len(number))
    splits = [Split(f"without_{x}", ids[ids != i], ids[[i]]) for i, x in enumerate(CAPTIONS)]
    roi, texts = {"V1": np.ones(len(responses), bool)}, list(CAPTIONS.values())
    grey, x = grey_patterns(_upright(np.array(list(number)))), responses.T
    found = single_session(subject, "miyawaki", x, stimulus, roi, splits, grey, texts)
    return checked(path, found, SMALL_SOURCE)


# ------------------------------------------------------------------- the full recording


def load_miyawaki_full(
    path: str | Path, subject: str = "S1", *, rois: str = "kastner2015"
) -> Subject:
    """Read all 32 runs: each block of volumes with one pattern becomes one trial.

    A run's volumes are freed of their linear trend and divided by their mean at rest, so that
    responses are in per cent signal change and runs can be put together. Volumes count as
    answers to what was shown two volumes (4 s) before; those of one block are averaged.

    Parameters
    ----------
    path : str or Path
        The folder that `minddiff fetch miyawaki` filled, or `miyawaki2008` in it.
    subject : str
        "S1"; one subject is public.
    rois : str
        "kastner2015" for V1, V2, V3, V3A and V4; names among these with commas between; or "mask"
        for all voxels of visual cortex as one region.

    Returns
    -------
    Subject
        One split, "figures": random patterns train, figures test. All runs count as one session,
        as no run of figures has training trials to standardise it with.

    Raises
    ------
    InputError
        If the subject or a region is unknown, or a file is missing, damaged or does not fit.
    """
    top = Path(path)
    if top.name != FOLDER or (top / FOLDER).is_dir():
        top /= FOLDER
    whole, affine = read_nifti(top / "mask/mask.nii.gz", SOURCE)
    regions = {"mask": whole > 0}
    if rois != "mask":
        chosen = choose_regions(rois, list(REGIONS))
        regions = {name: _read_region(top / "mask", name, whole.shape) for name in chosen}
    ijk = np.argwhere(np.any(list(regions.values()), axis=0))
    blocks = []
    for run in [f"{kind}_run{n:02d}" for kind in RUNS for n in range(1, RUNS[kind] + 1)]:
        table = read_labels(top / f"label/data_{run}_label.csv")
        series, _ = read_nifti(top / f"func/data_{run}.nii.gz", SOURCE, (*whole.shape, len(table)))
        blocks.append(block_means(series[tuple(ijk.T)].T, table))
    patterns, responses = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    distinct, stimulus = np.unique(patterns, axis=0, return_inverse=True)
    stimulus = stimulus.ravel()
    # A figure that also came up in a random run is a test picture all the same.
    n_random = sum(len(shown) for shown, _ in blocks[: RUNS["random"]])
    test = np.unique(stimulus[n_random:])
    split = Split("figures", train=np.setdiff1d(stimulus, test), test=test)
    texts = [_captions(pattern, i in test) for i, pattern in enumerate(distinct)]
    roi = {name: region[tuple(ijk.T)] for name, region in regions.items()}
    grey, name = grey_patterns(distinct), "miyawaki_full"
    found = single_session(subject, name, responses, stimulus, roi, [split], grey, texts)
    found = replace(found, voxel_ijk=ijk, volume_shape=whole.shape, affine=affine)
    return checked(path, found, SOURCE)  # a voxel that is empty at rest has no signal change


def _read_region(folder: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Read the masks of both hemispheres and all parts of a region; bool array of `shape`."""
    files = [folder / f"{side}{part}.nii.gz" for part in REGIONS[name] for side in ("LH", "RH")]
    return np.max([read_nifti(file, SOURCE, shape)[0] for file in files], axis=0) > 0


def read_labels(path: str | Path) -> np.ndarray:
    """Read what was on the screen during each volume of a run.

    Parameters
    ----------
    path : str or Path
        Text: a line a volume, 100 whole numbers with commas between (1 for a patch that is on, 0
        for one that is off, column after column), all -1 at rest.

    Returns
    -------
    int array of shape (n_volumes, 10, 10)
        Row from the top, column from the left.

    Raises
    ------
    InputError
        If the file is missing or holds anything else.
    """
    with reading(Path(path), "table of 100 columns of 0 and 1, or of -1 at rest", SOURCE):
        flat = np.loadtxt(path, dtype=int, delimiter=",", ndmin=2)
        rest = (flat == REST).all(axis=1)
        if flat.shape[1] != N_PATCHES**2 or not np.isin(flat[~rest], (0, 1)).all():
            raise ValueError(f"shape {flat.shape}, values {flat.min()} to {flat.max()}")
    return _upright(flat)


def block_means(series: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average the answers to each block of volumes with one pattern.

    Parameters
    ----------
    series : array of shape (n_volumes, n_voxels)
        Signal of one run.
    labels : int array of shape (n_volumes, 10, 10)
        From `read_labels`.

    Returns
    -------
    patterns : bool array of shape (n_blocks, 10, 10)
    responses : float32 array of shape (n_blocks, n_voxels)
        Per cent of the mean at rest, the linear trend of the run removed; NaN for a voxel whose
        mean at rest is not above zero.

    Raises
    ------
    InputError
        If no volume is left at rest, or none shows a pattern.
    """
    n = len(labels)
    time = np.arange(n) - (n - 1) / 2
    series = np.asarray(series, np.float64)
    # By hand, as a solver for all voxels at once would not bear one that is NaN.
    series = (series - np.outer(time, time @ series / (time @ time)))[DELAY:]
    labels = labels[: n - DELAY].reshape(n - DELAY, -1)
    rest = labels[:, 0] == REST
    if rest.all() or not rest.any():
        state = "only rest" if rest.all() else "no rest"
        raise InputError(f"a run of {n} volumes shows {state}; expected patterns and rest")
    base = series[rest].mean(axis=0, dtype=np.float64)
    base = np.where(base > 0, base, np.nan)
    starts = np.flatnonzero(np.r_[True, (labels[1:] != labels[:-1]).any(axis=1)])
    means = np.add.reduceat(series, starts) / np.diff(np.r_[starts, n - DELAY])[:, None]
    shown = ~rest[starts]
    responses = (100 * (means[shown] - base) / base).astype(np.float32)
    return labels[starts[shown]].astype(bool).reshape(-1, N_PATCHES, N_PATCHES), responses
