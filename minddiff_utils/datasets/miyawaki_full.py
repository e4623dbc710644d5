"""The full recording of Miyawaki et al. (2008): random patterns to learn from, figures to test.

The files are those that `nilearn.datasets.fetch_miyawaki2008` unpacks: 20 runs of random patterns
and 12 runs of figures and letters, each a series of volumes and a table of what was on the screen.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError

from minddiff_utils.datasets.content import check_content
from minddiff_utils.datasets.miyawaki import CAPTIONS, five_captions
from minddiff_utils.datasets.patterns import N_PATCHES
from minddiff_utils.datasets.published import GreyStimuli, choose_regions, make_subject
from minddiff_utils.datasets.reading import existing, unreadable
from minddiff_utils.datasets.subject import Split, Subject
from minddiff_utils.io import InputError

RUNS = {"random": 20, "figure": 12}
REST = -1  # in the tables, in all columns, while nothing was shown
# Blood answers late: 4 s at 2 s a volume, as in the paper and in nilearn's example.
DELAY = 2
SOURCE = "Fetch the recording (153 MB): minddiff fetch miyawaki FOLDER."

# Masks of each hemisphere that make a region; VP is the lower half of V3.
REGIONS: dict[str, tuple[str, ...]] = {"V1": ("V1d", "V1v"), "V2": ("V2d", "V2v")}
REGIONS |= {"V3": ("V3", "VP"), "V3A": ("V3A",), "V4": ("V4v",)}

# The figures whose captions are known, in the order of `CAPTIONS`: patch by patch, row by row from
# the top, in hexadecimal.
CODES = """
    00000000781e0781e00000000 0000000078120481e00000000 000300c0307f9fe0c0300c000
    00186738fc1e0783f1ce61800 001fe7f98661986619fe7f800 000001e048120481200000000
    000001e0481e0401e00000000 0000012048120481e00000000 000001e040100401000000000
    000001e048120481e00000000
"""
FIGURES = dict(zip(CODES.split(), CAPTIONS, strict=True))


def miyawaki_files(root: Path) -> tuple[dict[str, list[Path]], list[tuple[Path, Path]]]:
    """Say where each file lies.

    Parameters
    ----------
    root : Path
        The folder with `func`, `label` and `mask`, or the one that holds it as `miyawaki2008`.

    Returns
    -------
    masks : dict of str to list of Path
        The volumes that make each region, both hemispheres; "mask" is all of visual cortex.
    runs : list of (Path, Path)
        Volumes and labels of each run, those of random patterns first.
    """
    top = root / "miyawaki2008"
    if root.name == "miyawaki2008" and not top.is_dir():
        top = root
    masks = {"mask": [top / "mask/mask.nii.gz"]}
    for region, parts in REGIONS.items():
        sides = [f"{side}{part}" for part in parts for side in ("LH", "RH")]
        masks[region] = [top / f"mask/{name}.nii.gz" for name in sides]
    names = [f"data_{kind}_run{n:02d}" for kind in RUNS for n in range(1, RUNS[kind] + 1)]
    return masks, [(top / f"func/{n}.nii.gz", top / f"label/{n}_label.csv") for n in names]


def _captions(pattern: np.ndarray, is_figure: bool) -> tuple[str, ...]:
    """Return five captions of a pattern, in words that the phantom's models have learnt."""
    known = FIGURES.get(np.packbits(pattern.ravel()).tobytes().hex()[:25])
    if known:
        return CAPTIONS[known]
    extent = max((np.ptp(where) + 1 for where in np.nonzero(pattern) if len(where)), default=0)
    size = "small" if extent < 6 else "medium" if extent < 8 else "large"
    if is_figure:
        return five_captions(size, f"{size} figure of patches", *["figure of patches"] * 2)
    share = pattern.mean()
    word = "few" if share < 0.35 else "some" if share < 0.45 else "many"
    with_patches = f"random pattern with {word} patches"
    return five_captions(size, f"{word} random patches", with_patches, f"{word} patches")


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
        The folder that `minddiff fetch miyawaki` filled.
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
    masks, runs = miyawaki_files(Path(path))
    image, _ = _read(masks["mask"][0])
    regions = {
        name: np.any([_read(mask, image.shape)[1] > 0 for mask in masks[name]], axis=0)
        for name in (["mask"] if rois == "mask" else choose_regions(rois, REGIONS))
    }
    ijk = np.argwhere(np.any(list(regions.values()), axis=0))
    blocks = []
    for volumes, labels in runs:
        table = read_labels(labels)
        _, series = _read(volumes, (*image.shape, len(table)))
        blocks.append(block_means(series[tuple(ijk.T)].T, table))
    patterns, responses = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    distinct, stimulus = np.unique(patterns, axis=0, return_inverse=True)
    stimulus = stimulus.ravel()
    # A figure that also came up in a random run is a test picture all the same.
    n_random = sum(len(shown) for shown, _ in blocks[: RUNS["random"]])
    test = np.unique(stimulus[n_random:])
    split = Split("figures", train=np.setdiff1d(stimulus, test), test=test)
    texts = [_captions(pattern, i in test) for i, pattern in enumerate(distinct)]
    stimuli = GreyStimuli.of_patterns(distinct, texts)
    roi = {name: region[tuple(ijk.T)] for name, region in regions.items()}
    # A voxel that is empty at rest has no signal change.
    found, keep = make_subject(subject, "miyawaki_full", responses, stimulus, roi, [split], stimuli)
    check_content(Path(path), found, SOURCE)
    return replace(found, voxel_ijk=ijk[keep], volume_shape=image.shape, affine=image.affine)


def _read(path: Path, shape: tuple[int, ...] | None = None) -> tuple[nib.Nifti1Image, np.ndarray]:
    """Read a NIfTI file to its end; return the image and its values."""
    existing(path, SOURCE)
    try:
        image: Any = nib.load(path)
        values = np.asarray(image.dataobj)
    except (ImageFileError, OSError, EOFError, ValueError) as error:
        raise unreadable(path, error, f"is damaged ({error}). {SOURCE}") from None
    if shape and image.shape != shape:
        raise InputError(
            f"{path} has shape {image.shape}; expected {shape}: that of the mask, and of a run one "
            f"volume for each line of its table. {SOURCE}"
        )
    return image, values


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
    path = existing(Path(path), SOURCE)
    try:
        flat = np.loadtxt(path, dtype=int, delimiter=",", ndmin=2)
        rest = (flat == REST).all(axis=1)
        if flat.shape[1] != N_PATCHES**2 or not np.isin(flat[~rest], (0, 1)).all():
            raise ValueError(f"shape {flat.shape}, values {flat.min()} to {flat.max()}")
    except ValueError as error:
        form = "100 columns of 0 and 1, or of -1 at rest"
        raise InputError(f"{path} is no table of {form} ({error}). {SOURCE}") from None
    # The tables were written by MATLAB, which flattens columns first.
    return flat.reshape(-1, N_PATCHES, N_PATCHES).transpose(0, 2, 1)


def block_means(
    series: np.ndarray, labels: np.ndarray, delay: int = DELAY
) -> tuple[np.ndarray, np.ndarray]:
    """Average the answers to each block of volumes with one pattern.

    Parameters
    ----------
    series : array of shape (n_volumes, n_voxels)
        Signal of one run.
    labels : int array of shape (n_volumes, 10, 10)
        From `read_labels`.
    delay : int
        Volumes between a picture and the answer to it.

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
    series = (series - np.outer(time, time @ series / (time @ time)))[delay:]
    labels = labels[: n - delay].reshape(n - delay, -1)
    rest = labels[:, 0] == REST
    if rest.all() or not rest.any():
        state = "only rest" if rest.all() else "no rest"
        raise InputError(f"a run of {n} volumes shows {state}; expected patterns and rest")
    base = series[rest].mean(axis=0, dtype=np.float64)
    base = np.where(base > 0, base, np.nan)
    changes = np.flatnonzero((labels[1:] != labels[:-1]).any(axis=1)) + 1
    bounds = [0, *changes.tolist(), n - delay]
    blocks = [slice(a, b) for a, b in zip(bounds[:-1], bounds[1:], strict=True) if not rest[a]]
    patterns = np.stack([labels[block.start] for block in blocks]).astype(bool)
    means = np.stack([series[block].mean(axis=0) for block in blocks])
    responses = (100 * (means - base) / base).astype(np.float32)
    return patterns.reshape(-1, N_PATCHES, N_PATCHES), responses
