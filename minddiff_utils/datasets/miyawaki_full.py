"""The full recording of Miyawaki et al. (2008): random patterns to learn from, figures to test.

The files are those that `nilearn.datasets.fetch_miyawaki2008` unpacks: 20 runs of random patterns
and 12 runs of figures and letters, each a series of volumes and a table of what was on the screen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError

from minddiff_utils.datasets.content import check_content
from minddiff_utils.datasets.miyawaki import CAPTIONS
from minddiff_utils.datasets.patterns import N_PATCHES, pattern_picture
from minddiff_utils.datasets.reading import existing, unreadable
from minddiff_utils.datasets.subject import Split, Subject, check_ids
from minddiff_utils.io import InputError

SUBJECT = "S1"
RANDOM_RUNS = 20
FIGURE_RUNS = 12
REST = -1  # in the tables, in all columns, while nothing was shown
# Blood answers late: 4 s at 2 s a volume, as in the paper and in nilearn's example.
DELAY = 2
SOURCE = "Fetch the recording (153 MB): minddiff fetch miyawaki FOLDER."

# Masks of each hemisphere that make a region; VP is the lower half of V3.
REGIONS = {
    "V1": ("V1d", "V1v"),
    "V2": ("V2d", "V2v"),
    "V3": ("V3", "VP"),
    "V3A": ("V3A",),
    "V4": ("V4v",),
}

# The ten figures whose captions are known, patch by patch, row by row from the top, in hexadecimal.
FIGURES = {
    "00000000781e0781e00000000": "small_square",
    "0000000078120481e00000000": "small_frame",
    "000300c0307f9fe0c0300c000": "plus",
    "00186738fc1e0783f1ce61800": "diagonal_cross",
    "001fe7f98661986619fe7f800": "large_frame",
    "000001e048120481200000000": "letter_n",
    "000001e0481e0401e00000000": "letter_e",
    "0000012048120481e00000000": "letter_u",
    "000001e040100401000000000": "letter_r",
    "000001e048120481e00000000": "letter_o",
}


@dataclass(frozen=True)
class MiyawakiTree:
    """Where each file lies.

    Parameters
    ----------
    root : Path
        The folder with `func`, `label` and `mask`, or the one that holds it as `miyawaki2008`.
    """

    root: Path

    @property
    def top(self) -> Path:
        """The folder with `func`, `label` and `mask`."""
        inner = self.root / "miyawaki2008"
        return inner if inner.is_dir() or self.root.name != "miyawaki2008" else self.root

    def runs(self, kind: str) -> list[tuple[Path, Path]]:
        """Volumes and labels of the runs "random" or "figure", in their order."""
        count = RANDOM_RUNS if kind == "random" else FIGURE_RUNS
        names = [f"data_{kind}_run{number:02d}" for number in range(1, count + 1)]
        top = self.top
        return [
            (top / "func" / f"{name}.nii.gz", top / "label" / f"{name}_label.csv") for name in names
        ]

    @property
    def mask(self) -> Path:
        """All voxels of visual cortex."""
        return self.top / "mask/mask.nii.gz"

    def region(self, name: str) -> list[Path]:
        """The masks that make a region, both hemispheres."""
        parts = [f"{side}{part}" for part in REGIONS[name] for side in ("LH", "RH")]
        return [self.top / "mask" / f"{part}.nii.gz" for part in parts]


@dataclass(frozen=True)
class PatternStimuli:
    """Contrast patterns, drawn as the phantom's world draws them; the id is the place in the list.

    Parameters
    ----------
    patterns : bool array of shape (n, 10, 10)
        Pattern, row from the top, column from the left.
    is_figure : bool array of shape (n,)
        Whether it is from a run of figures.
    """

    patterns: np.ndarray
    is_figure: np.ndarray

    @property
    def ids(self) -> np.ndarray:
        """int64 (n,), from 0."""
        return np.arange(len(self.patterns))

    def pictures(self, ids: Sequence[int]) -> np.ndarray:
        """Return uint8 (n, 64, 64, 3), in the order of `ids`."""
        return np.stack(
            [pattern_picture(self.patterns[i]) for i in check_ids(ids, len(self.patterns))]
        )

    def captions(self, ids: Sequence[int]) -> list[tuple[str, ...]]:
        """Return five captions a picture, in the order of `ids`."""
        return [
            _captions(self.patterns[i], self.is_figure[i])
            for i in check_ids(ids, len(self.patterns))
        ]


def _captions(pattern: np.ndarray, is_figure: bool) -> tuple[str, ...]:
    """Return five captions of a pattern, in words that the phantom's models have learnt."""
    known = FIGURES.get(np.packbits(pattern.ravel()).tobytes().hex()[:25])
    if known:
        return CAPTIONS[known]
    rows, columns = np.nonzero(pattern)
    extent = max(np.ptp(rows), np.ptp(columns)) + 1 if len(rows) else 0
    size = "small" if extent < 6 else "medium" if extent < 8 else "large"
    if is_figure:
        look = (f"{size} figure of patches", "figure of patches", "figure of patches")
    else:
        share = pattern.mean()
        word = "few" if share < 0.35 else "some" if share < 0.45 else "many"
        look = (f"{word} random patches", f"random pattern with {word} patches", f"{word} patches")
    return (
        f"a {look[0]} in white in the middle on grey",
        f"grey background with a {look[1]} middle , {size}",
        f"white on grey : middle a {size} {look[2]}",
        f"a checked {look[0]} at middle , plain grey",
        f"picture of a white {look[1]} to the middle on grey , {size}",
    )


def load_miyawaki_full(
    path: str | Path, subject: str = SUBJECT, *, rois: str = "kastner2015", delay: int = DELAY
) -> Subject:
    """Read all 32 runs: each block of volumes with one pattern becomes one trial.

    A run's volumes are freed of their linear trend and divided by their mean at rest, so that
    responses are in per cent signal change and runs can be put together. Volumes count as
    answers to what was shown `delay` volumes before; those of one block are averaged.

    Parameters
    ----------
    path : str or Path
        The folder that `minddiff fetch miyawaki` filled.
    subject : str
        "S1"; one subject is public.
    rois : str
        "kastner2015" for V1, V2, V3, V3A and V4; names among these with commas between; or "mask"
        for all voxels of visual cortex as one region.
    delay : int
        Volumes between a picture and the answer to it.

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
    if subject != SUBJECT:
        raise InputError(f"subject={subject!r} is unknown; this recording has {SUBJECT} only")
    tree = MiyawakiTree(Path(path))
    image, ijk, roi = _regions(tree, rois)
    patterns, responses, from_figures = [], [], []
    for kind in ("random", "figure"):
        for volumes, labels in tree.runs(kind):
            shown, answers = _run(volumes, labels, ijk, image.shape, delay)
            patterns.append(shown)
            responses.append(answers)
            from_figures.append(np.full(len(shown), kind == "figure"))
    found = _subject(
        np.concatenate(patterns), np.concatenate(responses), np.concatenate(from_figures),
        ijk, roi, image,
    )  # fmt: skip
    return check_content(tree.top, found, SOURCE)


def _subject(
    patterns: np.ndarray,
    responses: np.ndarray,
    from_figures: np.ndarray,
    ijk: np.ndarray,
    roi: dict[str, np.ndarray],
    image: nib.Nifti1Image,
) -> Subject:
    """Name the distinct patterns, split them, drop voxels that never change."""
    distinct, stimulus = np.unique(patterns.reshape(len(patterns), -1), axis=0, return_inverse=True)
    stimulus = stimulus.ravel().astype(np.int64)
    test = np.unique(stimulus[from_figures])
    # A figure that also came up in a random run is a test picture all the same.
    train = np.setdiff1d(stimulus, test)
    # A voxel that is empty at rest has no signal change.
    keep = np.isfinite(responses).all(axis=0) & (np.ptp(responses, axis=0) > 0)
    if not keep.any():
        raise InputError(f"every voxel of {', '.join(roi)} is empty or constant. {SOURCE}")
    is_figure = np.isin(np.arange(len(distinct)), test)
    return Subject(
        name=SUBJECT,
        dataset="miyawaki_full",
        responses=np.ascontiguousarray(responses[:, keep], np.float32),
        stimulus_id=stimulus,
        session=np.ones(len(stimulus), np.int64),
        roi={name: mask[keep] for name, mask in roi.items()},
        splits=(Split("figures", train=train, test=test),),
        stimuli=PatternStimuli(distinct.reshape(-1, N_PATCHES, N_PATCHES), is_figure),
        voxel_ijk=ijk[keep],
        volume_shape=tuple(image.shape),
        affine=np.asarray(image.affine),
        n_dropped=int((~keep).sum()),
    )


def _regions(
    tree: MiyawakiTree, rois: str
) -> tuple[nib.Nifti1Image, np.ndarray, dict[str, np.ndarray]]:
    """Return the mask's image, the voxels (n, 3) and the masks (n,) of the regions asked for."""
    image = _image(tree.mask)
    if rois == "mask":
        volumes = {"mask": _mask([tree.mask], image.shape)}
    else:
        names = list(REGIONS) if rois == "kastner2015" else [n.strip() for n in rois.split(",")]
        unknown = [name for name in names if name not in REGIONS]
        if unknown:
            raise InputError(
                f"rois={rois!r}: {unknown[0]!r} is unknown; give kastner2015, mask or some of "
                f"{','.join(REGIONS)}"
            )
        volumes = {name: _mask(tree.region(name), image.shape) for name in names}
    for name, volume in volumes.items():
        if not volume.any():
            raise InputError(f"ROI {name} is empty in {tree.mask.parent}. Leave it out of rois.")
    ijk = np.argwhere(np.any(list(volumes.values()), axis=0))
    return image, ijk, {name: volume[tuple(ijk.T)] for name, volume in volumes.items()}


def _mask(paths: Sequence[Path], shape: tuple[int, ...]) -> np.ndarray:
    """Return where any of some masks is set; bool of shape `shape`."""
    total = np.zeros(shape, bool)
    for path in paths:
        image = _image(path)
        if image.shape != tuple(shape):
            raise InputError(f"{path} has shape {image.shape}; expected {tuple(shape)}. {SOURCE}")
        total |= _data(path, image) > 0
    return total


def _run(
    volumes: Path, labels: Path, ijk: np.ndarray, shape: tuple[int, ...], delay: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the patterns bool (n_blocks, 10, 10) and responses (n_blocks, n_voxels) of a run."""
    image = _image(volumes)
    table = read_labels(labels)
    expected = (*shape, len(table))
    if image.shape != expected:
        raise InputError(
            f"{volumes} has shape {image.shape}; expected {expected}: the mask's shape and one "
            f"volume for each line of {labels.name}. {SOURCE}"
        )
    series = _data(volumes, image)[tuple(ijk.T)].T
    return block_means(series, table, delay)


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
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a table of whole numbers ({error}). {SOURCE}") from None
    wrong = flat.shape[1:] != (N_PATCHES**2,) or not np.isin(flat, (REST, 0, 1)).all()
    if wrong or ((flat == REST).any(axis=1) != (flat == REST).all(axis=1)).any():
        raise InputError(
            f"{path} has shape {flat.shape}; expected 100 columns of 0 and 1, or -1 in all columns "
            f"at rest. {SOURCE}"
        )
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
    if not 0 <= delay < n:
        raise InputError(f"delay={delay}: expected 0 to {n - 1} volumes")
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


def _image(path: Path) -> nib.Nifti1Image:
    existing(path, SOURCE)
    try:
        return nib.load(path)
    except (ImageFileError, OSError, EOFError) as error:
        damage = f"is not a readable NIfTI file ({error}). {SOURCE}"
        raise unreadable(path, error, damage) from None


def _data(path: Path, image: nib.Nifti1Image) -> np.ndarray:
    try:
        return np.asarray(image.dataobj)
    except (OSError, EOFError, ValueError) as error:
        damage = f"is damaged ({error}): fetch it again. {SOURCE}"
        raise unreadable(path, error, damage) from None
