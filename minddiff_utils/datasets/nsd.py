"""The Natural Scenes Dataset, and anything else written in its layout of folders and files."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.filebasedimages import ImageFileError

from minddiff_utils.datasets.matlab import read_matlab
from minddiff_utils.datasets.subject import Split, Subject
from minddiff_utils.files import InputError

__all__ = [
    "BETAS",
    "KASTNER_GROUPS",
    "SPACE",
    "Design",
    "NsdStimuli",
    "NsdTree",
    "load_nsd",
    "read_betas",
    "read_design",
]

SPACE = "func1pt8mm"
BETAS = "betas_fithrf_GLMdenoise_RR"
BETA_SCALE = 300.0  # betas are stored as int16, 300 to one per cent signal change
BLOCK_BYTES = 64 * 2**20  # how much of a session is held at once

# The groups of the paper, made of the atlas's labels. MT and MST are TO1 and TO2 in some label
# tables and hMT and hMST in others.
KASTNER_GROUPS = {
    "V1": ("V1v", "V1d"),
    "V2": ("V2v", "V2d"),
    "V3": ("V3v", "V3d"),
    "V3ab": ("V3A", "V3B"),
    "hV4": ("hV4",),
    "VO": ("VO1", "VO2"),
    "PHC": ("PHC1", "PHC2"),
    "MT": ("TO1", "MT", "hMT"),
    "MST": ("TO2", "MST", "hMST"),
    "LO": ("LO1", "LO2"),
    "IPS": ("IPS0", "IPS1", "IPS2", "IPS3", "IPS4", "IPS5"),
}


@dataclass(frozen=True)
class NsdTree:
    """Where each file of the tree lies, for one subject.

    Parameters
    ----------
    root : Path
        The folder with `nsddata`, `nsddata_betas` and `nsddata_stimuli`.
    subject : str
        "subj01" to "subj08".
    """

    root: Path
    subject: str

    @property
    def design(self) -> Path:
        """Order of the trials."""
        return self.root / "nsddata/experiments/nsd/nsd_expdesign.mat"

    @property
    def stimulus_table(self) -> Path:
        """One row a picture: its COCO id, crop and use."""
        return self.root / "nsddata/experiments/nsd/nsd_stim_info_merged.csv"

    @property
    def pictures(self) -> Path:
        """All pictures, uint8 (n, height, width, 3)."""
        return self.root / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"

    @property
    def captions(self) -> tuple[Path, Path]:
        """COCO's caption files, which are not part of NSD's own bucket."""
        folder = self.root / "coco/annotations"
        return folder / "captions_train2017.json", folder / "captions_val2017.json"

    @property
    def betas(self) -> Path:
        """Folder with one file a session and `ncsnr.nii.gz`."""
        return self.root / "nsddata_betas/ppdata" / self.subject / SPACE / BETAS

    @property
    def ncsnr(self) -> Path:
        """Signal-to-noise ratio of each voxel."""
        return self.betas / "ncsnr.nii.gz"

    @property
    def responses(self) -> Path:
        """What the subject pressed, one row a trial."""
        return self.root / "nsddata/ppdata" / self.subject / "behav/responses.tsv"

    def session(self, number: int) -> Path:
        """Betas of one session, from 1."""
        return self.betas / f"betas_session{number:02d}.hdf5"

    def roi(self, atlas: str) -> Path:
        """Volume of integer labels."""
        return self.root / "nsddata/ppdata" / self.subject / SPACE / "roi" / f"{atlas}.nii.gz"

    def labels(self, atlas: str) -> Path:
        """Label table of an atlas: the subject's own, else the one of fsaverage."""
        folder = self.root / "nsddata/freesurfer"
        own = folder / self.subject / "label" / f"{atlas}.mgz.ctab"
        shared = folder / "fsaverage/label" / f"{atlas}.mgz.ctab"
        return own if own.exists() or not shared.exists() else shared


@dataclass(frozen=True)
class Design:
    """Which picture was shown when; ids count from 0.

    Parameters
    ----------
    stimulus_id : int64 array of shape (n_trials,)
        All trials of the experiment as planned, session after session.
    shared : bool array of shape (n_trials,)
        Whether the picture is one that all subjects saw.
    """

    stimulus_id: np.ndarray
    shared: np.ndarray


class NsdStimuli:
    """Pictures from `nsd_stimuli.hdf5` and captions from COCO's files, read when asked for.

    Parameters
    ----------
    tree : NsdTree
    ids : int64 array
        NSD ids (from 0) of the stimuli that were seen.
    """

    def __init__(self, tree: NsdTree, ids: np.ndarray):
        self.tree = tree
        self.ids = np.unique(ids).astype(np.int64)

    def pictures(self, ids: Sequence[int]) -> np.ndarray:
        """Return uint8 (n, height, width, 3), in the order of `ids`.

        Raises
        ------
        InputError
            If the file is missing, damaged, or has no such picture.
        """
        wanted, place = np.unique(np.asarray(ids, dtype=np.int64), return_inverse=True)
        with _hdf5(self.tree.pictures, "imgBrick") as brick:
            if brick.ndim != 4 or brick.shape[-1] != 3 or brick.dtype != np.uint8:
                raise InputError(
                    f"{self.tree.pictures}: imgBrick is {brick.dtype} {brick.shape}; expected "
                    "uint8 (n, height, width, 3)"
                )
            if wanted.size and (wanted[0] < 0 or wanted[-1] >= len(brick)):
                raise InputError(
                    f"{self.tree.pictures} has pictures 0 to {len(brick) - 1}; asked for "
                    f"{wanted[0] if wanted[0] < 0 else wanted[-1]}"
                )
            return brick[wanted][place.ravel()]

    def captions(self, ids: Sequence[int]) -> list[tuple[str, ...]]:
        """Return five captions a picture, in the order of `ids`.

        Raises
        ------
        InputError
            If a file is missing or damaged, or a picture has no five captions.
        """
        return [self._captions_of(int(i)) for i in ids]

    def _captions_of(self, stimulus: int) -> tuple[str, ...]:
        coco = self._coco_ids.get(stimulus)
        texts = self._texts.get(coco, [])
        if len(texts) < 5:
            raise InputError(
                f"stimulus {stimulus} (COCO id {coco}) has {len(texts)} captions in "
                f"{self.tree.captions[0].parent}; expected 5"
            )
        # A few COCO pictures have six or seven; the method averages five.
        return tuple(texts[:5])

    @cached_property
    def _coco_ids(self) -> dict[int, int]:
        path = self.tree.stimulus_table
        table = _table(path, ",", ("nsdId", "cocoId"))
        return dict(zip(table["nsdId"].astype(int), table["cocoId"].astype(int), strict=True))

    @cached_property
    def _texts(self) -> dict[int, list[str]]:
        wanted = {self._coco_ids.get(int(i)) for i in self.ids}
        texts: dict[int, list[str]] = {}
        for path in self.tree.captions:
            hint = "Get annotations_trainval2017.zip from cocodataset.org and put its files there."
            try:
                annotations = json.loads(_existing(path, hint).read_text())["annotations"]
            except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
                raise InputError(f"{path} is not a COCO caption file. {hint}") from error
            for item in sorted(annotations, key=lambda item: item["id"]):
                if item["image_id"] in wanted:
                    texts.setdefault(item["image_id"], []).append(item["caption"].strip())
        return texts


def load_nsd(
    path: str | Path,
    subject: str,
    *,
    rois: str = "kastner2015",
    sessions: int | Sequence[int] | None = None,
) -> Subject:
    """Read one subject from a tree in NSD's layout.

    Parameters
    ----------
    path : str or Path
        The folder with `nsddata`, `nsddata_betas` and `nsddata_stimuli`.
    subject, rois, sessions
        As in `minddiff_utils.datasets.load_subject`.

    Returns
    -------
    Subject
        Responses in per cent signal change. One split, "shared": the pictures shown to all
        subjects test, all the others train.

    Raises
    ------
    InputError
        If the subject is unknown, or a file or session is missing, damaged or of a wrong shape,
        or a region is empty.
    """
    tree = NsdTree(Path(path), subject)
    _check_subject(tree)
    affine, shape, ijk, roi = _regions(tree, rois)
    numbers = _sessions(tree, sessions)
    design = read_design(tree)
    responses, trials, session = _gather(tree, numbers, ijk, shape, len(design.stimulus_id))
    keep = _changing(responses, session)
    roi = {name: mask[keep] for name, mask in roi.items()}
    for name, mask in roi.items():
        if not mask.any():
            raise InputError(
                f"{subject}: every voxel of ROI {name} is constant in {tree.betas}. Leave it out "
                f"of rois, or fetch the betas again."
            )
    ids = design.stimulus_id[trials]
    shared = design.shared[trials]
    split = Split("shared", train=np.unique(ids[~shared]), test=np.unique(ids[shared]))
    return Subject(
        name=subject,
        dataset="nsd",
        responses=responses if keep.all() else responses[:, keep],
        stimulus_id=ids,
        session=session,
        roi=roi,
        splits=(split,),
        stimuli=NsdStimuli(tree, ids),
        ncsnr=_volume(tree.ncsnr, shape)[tuple(ijk[keep].T)].astype(np.float32),
        voxel_ijk=ijk[keep],
        volume_shape=shape,
        affine=affine,
        n_dropped=int((~keep).sum()),
    )


def read_design(tree: NsdTree) -> Design:
    """Read which picture was shown in which trial.

    Returns
    -------
    Design

    Raises
    ------
    InputError
        If the file is missing or damaged, lacks a variable, or has no such subject.
    """
    path = tree.design
    names = ("masterordering", "subjectim", "sharedix")
    content = read_matlab(path, names, "It is part of NSD's nsddata/experiments/nsd.")
    order = content["masterordering"].ravel().astype(np.int64)
    pictures = content["subjectim"].astype(np.int64)
    row = int(tree.subject[4:]) - 1
    if row >= len(pictures) or order.min() < 1 or order.max() > pictures.shape[1]:
        raise InputError(
            f"{path}: subjectim has shape {pictures.shape} and masterordering values {order.min()} "
            f"to {order.max()}; expected a row for {tree.subject} and a column for every value"
        )
    # MATLAB counts from 1, NSD's own ids from 0.
    return Design(pictures[row, order - 1] - 1, order <= content["sharedix"].size)


def read_betas(path: str | Path, ijk: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Read some voxels of one session, without holding the whole volume.

    Parameters
    ----------
    path : str or Path
        `betas_sessionNN.hdf5`; dataset `betas` (n_trials, Z, Y, X), the volume's axes reversed.
    ijk : int array of shape (n_voxels, 3)
        Places in the NIfTI volume (X, Y, Z).
    shape : tuple of three int
        Shape of that volume.

    Returns
    -------
    float32 array of shape (n_trials, n_voxels)
        Per cent signal change: integers are divided by 300, floats are taken as they are.

    Raises
    ------
    InputError
        If the file is missing or damaged, or of another shape.
    """
    path = Path(path)
    with _hdf5(path, "betas") as betas:
        if betas.ndim != 4 or betas.shape[1:] != tuple(shape)[::-1]:
            raise InputError(
                f"{path}: betas have shape {betas.shape}; expected (n_trials, "
                f"{', '.join(str(n) for n in tuple(shape)[::-1])}): the ROI volume's axes reversed"
            )
        out = np.empty((len(betas), len(ijk)), np.float32)
        x, y, z = ijk.T
        columns, rows = slice(x.min(), x.max() + 1), slice(y.min(), y.max() + 1)
        for trials, planes in _blocks(betas, int(z.min()), int(z.max()) + 1):
            inside = (z >= planes.start) & (z < planes.stop)
            if inside.any():
                block = betas[trials, planes, rows, columns]
                i, j, k = x[inside] - columns.start, y[inside] - rows.start, z[inside]
                out[trials, inside] = block[:, k - planes.start, j, i]
        if np.issubdtype(betas.dtype, np.integer):
            out /= BETA_SCALE
    return out


def _blocks(betas: h5py.Dataset, first: int, stop: int) -> Iterator[tuple[slice, slice]]:
    """Yield blocks of trials and planes on chunk borders, so that no chunk is unpacked twice."""
    chunks = betas.chunks or (1, *betas.shape[1:])
    plane_step = chunks[1]
    plane_bytes = betas.dtype.itemsize * betas.shape[2] * betas.shape[3] * plane_step
    trial_step = max(1, BLOCK_BYTES // (plane_bytes * chunks[0])) * chunks[0]
    for trial in range(0, len(betas), trial_step):
        for plane in range(first - first % plane_step, stop, plane_step):
            yield (
                slice(trial, min(trial + trial_step, len(betas))),
                slice(plane, min(plane + plane_step, betas.shape[1])),
            )


def _check_subject(tree: NsdTree) -> None:
    """Raise InputError unless the tree is one and has the subject."""
    folder = tree.betas.parent.parent.parent
    if not folder.is_dir():
        raise InputError(
            f"{folder} is missing: {tree.root} is no NSD tree. Give the folder that holds nsddata, "
            "nsddata_betas and nsddata_stimuli."
        )
    present = sorted(p.name for p in folder.iterdir() if re.fullmatch(r"subj\d\d", p.name))
    if tree.subject not in present:
        raise InputError(
            f"subject={tree.subject!r} is not in {folder}, which has {', '.join(present) or 'none'}"
        )


def _sessions(tree: NsdTree, sessions: int | Sequence[int] | None) -> list[int]:
    """Return the numbers of the sessions to read; each has its file."""
    pattern = re.compile(r"betas_session(\d\d+)\.hdf5")
    names = [p.name for p in tree.betas.iterdir()] if tree.betas.is_dir() else []
    found = sorted(int(m[1]) for name in names if (m := pattern.fullmatch(name)))
    if not found:
        raise InputError(f"{tree.betas} has no betas_session01.hdf5, …: fetch the subject's betas")
    if sessions is None:
        wanted = range(1, found[-1] + 1)
    elif isinstance(sessions, int):
        wanted = range(1, sessions + 1)
    else:
        wanted = sorted(set(sessions))
    missing = [number for number in wanted if number not in found]
    if missing or not wanted:
        name = tree.session(missing[0]) if missing else f"sessions={sessions!r}"
        raise InputError(
            f"{name} is missing; {tree.subject} has sessions {', '.join(map(str, found))}. Fetch "
            "it, or name the sessions to read with `sessions`."
        )
    return list(wanted)


def _gather(
    tree: NsdTree,
    numbers: Sequence[int],
    ijk: np.ndarray,
    shape: tuple[int, int, int],
    n_planned: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return responses, the trials' places in the design, and their sessions."""
    first = read_betas(tree.session(numbers[0]), ijk, shape)
    n_trials = len(first)
    responses = np.empty((len(numbers) * n_trials, len(ijk)), np.float32)
    for row, number in enumerate(numbers):
        part = first if row == 0 else read_betas(tree.session(number), ijk, shape)
        if len(part) != n_trials or number * n_trials > n_planned:
            raise InputError(
                f"{tree.session(number)} has {len(part)} trials; expected {n_trials}, and "
                f"{n_planned} trials in all sessions as in {tree.design}"
            )
        _check_finite(tree.session(number), part)
        responses[row * n_trials : (row + 1) * n_trials] = part
    trials = np.concatenate([(n - 1) * n_trials + np.arange(n_trials) for n in numbers])
    return responses, trials, np.repeat(np.array(numbers, np.int64), n_trials)


def _check_finite(path: Path, responses: np.ndarray) -> None:
    """Raise InputError if a voxel is NaN in some trials; one without any data is dropped later."""
    bad = ~np.isfinite(responses)
    partly = bad.any(axis=0) & ~bad.all(axis=0)
    if partly.any():
        trial = int(np.flatnonzero(bad[:, partly].any(axis=1))[0])
        raise InputError(
            f"{path}: betas of {int(partly.sum())} voxels are NaN or infinite in some trials "
            f"(first in trial {trial}). The file is damaged: fetch it again."
        )


def _changing(responses: np.ndarray, session: np.ndarray) -> np.ndarray:
    """Return which voxels are finite and change within every session; bool (n_voxels,)."""
    keep = np.ones(responses.shape[1], bool)
    for number in np.unique(session):
        x = responses[session == number]
        # A voxel outside the field of view is NaN or one constant throughout the session.
        keep &= np.isfinite(x[0]) & (x.max(axis=0) > x.min(axis=0))
    return keep


def _regions(
    tree: NsdTree, rois: str
) -> tuple[np.ndarray, tuple[int, int, int], np.ndarray, dict[str, np.ndarray]]:
    """Return affine, volume shape, voxels (n, 3) and masks (n,) of the regions asked for."""
    if rois == "nsdgeneral":
        atlas, groups = "nsdgeneral", {"nsdgeneral": [1]}
    else:
        atlas, groups = "Kastner2015", _groups(tree, rois)
    image = _image(tree.roi(atlas))
    if len(image.shape) != 3:
        raise InputError(f"{tree.roi(atlas)} has shape {image.shape}; expected three axes")
    volume = _volume(tree.roi(atlas), image.shape)
    wanted = sorted({label for labels in groups.values() for label in labels})
    ijk = np.argwhere(np.isin(volume, wanted))
    label = volume[tuple(ijk.T)]
    roi = {name: np.isin(label, labels) for name, labels in groups.items()}
    for name, mask in roi.items():
        if not mask.any():
            raise InputError(
                f"ROI {name} is empty: {tree.roi(atlas)} has no voxel with label "
                f"{' or '.join(map(str, groups[name]))}. Leave it out of rois."
            )
    return np.asarray(image.affine), tuple(image.shape), ijk, roi


def _groups(tree: NsdTree, rois: str) -> dict[str, list[int]]:
    """Return the atlas's integer labels of each group asked for."""
    every = rois == "kastner2015"
    names = list(KASTNER_GROUPS) if every else [name.strip() for name in rois.split(",")]
    unknown = [name for name in names if name not in KASTNER_GROUPS]
    if unknown:
        raise InputError(
            f"rois={rois!r}: {unknown[0]!r} is unknown; give kastner2015, nsdgeneral or some of "
            f"{','.join(KASTNER_GROUPS)}"
        )
    table = _label_table(tree.labels("Kastner2015"))
    groups = {}
    for name in names:
        parts = {part.lower() for part in KASTNER_GROUPS[name]}
        groups[name] = [number for number, label in table.items() if label.lower() in parts]
        if not groups[name]:
            raise InputError(
                f"{tree.labels('Kastner2015')} has none of {', '.join(KASTNER_GROUPS[name])}, of "
                f"which ROI {name} is made"
            )
    return groups


def _label_table(path: Path) -> dict[int, str]:
    """Read a FreeSurfer colour table: number, name, and maybe colours."""
    lines = _existing(path, "It is part of NSD's nsddata/freesurfer.").read_text().splitlines()
    table = {}
    for line in lines:
        parts = line.split()
        if not parts or parts[0].startswith("#"):
            continue
        if len(parts) < 2 or not parts[0].isdigit():
            raise InputError(f"{path}: cannot read {line!r}; expected a number and a name")
        table[int(parts[0])] = parts[1]
    return table


def _existing(path: Path, hint: str) -> Path:
    """Return `path`, or raise InputError with `hint` if no file is there."""
    if not path.is_file():
        raise InputError(f"{path} is missing. {hint}")
    return path


def _table(path: Path, separator: str, columns: tuple[str, ...]) -> pd.DataFrame:
    """Read a table that must have `columns`."""
    _existing(path, "It is part of NSD's nsddata.")
    try:
        table = pd.read_csv(path, sep=separator)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a readable table ({error})") from error
    missing = [name for name in columns if name not in table]
    if missing:
        raise InputError(f"{path} lacks column {', '.join(missing)}")
    return table


def _image(path: Path) -> nib.Nifti1Image:
    """Open a NIfTI file, or raise InputError."""
    _existing(path, "It is part of NSD's nsddata (regions) or nsddata_betas (ncsnr).")
    try:
        return nib.load(path)
    except (ImageFileError, OSError, EOFError) as error:
        raise InputError(f"{path} is not a readable NIfTI file ({error})") from error


def _volume(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read a NIfTI volume that must have `shape`."""
    image = _image(path)
    if image.shape != tuple(shape):
        raise InputError(f"{path} has shape {image.shape}; expected {tuple(shape)}")
    try:
        return np.asarray(image.dataobj)
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}): fetch it again") from error


@contextmanager
def _hdf5(path: Path, name: str) -> Iterator[h5py.Dataset]:
    """Open one dataset of an HDF5 file; a damaged file becomes an InputError."""
    _existing(path, "Fetch it, or run the command that writes it.")
    try:
        with h5py.File(path, "r") as file:
            if name not in file:
                raise InputError(f"{path} has no dataset {name!r}; it has {', '.join(file)}")
            yield file[name]
    except OSError as error:
        raise InputError(
            f"{path} is truncated or not an HDF5 file ({error}). Delete it and fetch or write it "
            "again."
        ) from error
