"""LAION-fMRI: five people, 25,052 pictures, and splits that test how far decoding generalises.

The tree is that of the public bucket `laion-fmri`. The split files, which come with the data set's
own Python package, lie in a folder `splits` beside it.
"""

import io
import json
import re
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from minddiff_utils.datasets import reading, recording
from minddiff_utils.datasets.nsd.regions import Grid, read_labels, read_on_grid
from minddiff_utils.datasets.nsd.responses import gather_responses, inspect_betas
from minddiff_utils.datasets.subject import Split, Subject, check_ids
from minddiff_utils.io import Ids, InputError

SUBJECTS = ("sub-01", "sub-03", "sub-05", "sub-06", "sub-07")
N_SESSIONS = 30  # sessions 31 to 34 are held out: nobody can download them
GENERAL = "laion-general"  # the mask to decode from
FAMILIES = {name: tuple(f"{name}_{k}" for k in range(5)) for name in ("cluster_k5", "random")}
SPLITS = ("tau", "ood", *FAMILIES["cluster_k5"], *FAMILIES["random"])
KIND = re.compile(r"shared_4rep_OOD_([^_]+)_")  # of an out-of-distribution picture, in its name
GREY = (128, 128, 128, 255)  # what transparent pixels were shown on
HINT = "minddiff fetch laion gets it."
PICTURES_HINT = (
    "The pictures need a short form: `laion-fmri request-access`, then `laion-fmri "
    "download-stimuli`, of the package at github.com/ViCCo-Group/LAION-fMRI; or "
    "laion-fmri.hebartlab.com/request. Put the file there."
)


class LaionTree:
    """Where each file of the tree lies, for one subject.

    Parameters
    ----------
    root : Path
        The folder with `derivatives`, `stimuli` and `splits`.
    subject : str
        One of `SUBJECTS`.

    Attributes
    ----------
    responses, rois : Path
        Folder with one folder a session; folder with one binary volume a region.
    ceilings : str
        How the names of the noise ceilings over all sessions begin, in `responses`.
    metadata, captions, pictures : Path
        One row a picture; one row a caption; encoded pictures in the order of `metadata`.
    """

    def __init__(self, root: Path, subject: str):
        self.root, self.subject = root, subject
        self.responses = root / "derivatives/glmsingle-tedana" / subject
        self.ceilings = f"{subject}_task-images_space-T1w_desc-Noiseceiling"
        self.rois = root / "derivatives/atlases" / subject / "rois"
        self.metadata = root / "stimuli/task-images_metadata.csv"
        self.captions = root / "stimuli/task-images_desc-captions.csv"
        self.pictures = root / "stimuli/task-images_stimuli.h5"

    @property
    def subjects(self) -> list[str]:
        """Names of the subjects who have a folder of betas, sorted."""
        return sorted(path.name for path in self.responses.parent.glob("sub-*"))

    @property
    def sessions(self) -> list[int]:
        """Numbers of the sessions whose betas are there, sorted."""
        return [number for number in range(1, N_SESSIONS + 1) if self.betas(number).exists()]

    def betas(self, number: int) -> Path:
        """One volume a trial of a session, from 1."""
        return self._session(number, "space-T1w_stat-effect_desc-SingletrialBetas_statmap.nii.gz")

    def trials(self, number: int) -> Path:
        """Which picture each volume of a session answers to."""
        return self._session(number, "desc-SingletrialBetas_trials.tsv")

    def _session(self, number: int, kind: str) -> Path:
        name = f"{self.subject}_ses-{number:02d}_task-images_{kind}"
        return self.responses / f"ses-{number:02d}" / "func" / name

    @property
    def ceiling(self) -> Path:
        """Noise ceiling of the pictures that were shown four times, per cent."""
        return self.responses / f"{self.ceilings}4rep_statmap.nii.gz"

    @property
    def masks(self) -> dict[str, Path]:
        """Volumes of the regions that are there, by name and the folders that they are in."""
        files = sorted(self.rois.rglob("*.nii.gz"))
        names = [":".join(path.relative_to(self.rois).parts) for path in files]
        return {name[:-7]: path for name, path in zip(names, files, strict=True)}

    def mask(self, name: str) -> Path:
        """Volume of a region; one of several with the same name is named `folder:name`."""
        found = {key: path for key, path in self.masks.items() if f":{key}".endswith(f":{name}")}
        if len(found) > 1:
            raise InputError(f"rois: {name!r} is several masks. Choose {' or '.join(found)}.")
        return next(iter(found.values()), self.rois / f"{name}.nii.gz")

    def split(self, name: str) -> Path:
        """Which pictures train and which test, of this subject's pool."""
        return self.root / "splits" / self.subject / f"{name}.json"


def load_laion(
    path: str | Path,
    subject: str,
    rois: str = GENERAL,
    sessions: recording.Sessions = None,
    protocol: int | None = None,
    split: str = "",
    cache: str | Path | None = None,
) -> Subject:
    """Read one subject from a tree in LAION-fMRI's layout.

    Parameters
    ----------
    path : str or Path
        The folder with `derivatives`, `stimuli` and `splits`.
    subject : str
        "sub-01", "sub-03", "sub-05", "sub-06" or "sub-07".
    rois : str
        As in `read_masks`.
    sessions, cache
        As of `minddiff_utils.datasets.load_subject`; without `cache` the responses are in memory.
    protocol : None
        NSD's alone.
    split : str
        As in `split_names`.

    Returns
    -------
    Subject
        Responses as GLMsingle gives them. The first split is the one of the book, the others are
        `test_sets`; of each, pictures that the sessions read did not show are left out.
        Stimulus ids are rows of the metadata, from 0.

    Raises
    ------
    InputError
        If the subject, a session, region or split is unknown, a file is missing, damaged or does
        not fit the others, or a split is left without training or test pictures.
    """
    if protocol is not None:
        raise InputError(f"protocol={protocol!r} is for NSD; LAION-fMRI has `split` instead")
    tree, names = LaionTree(Path(path), subject), split_names(split)
    numbers = choose_sessions(tree, sessions)
    shape, affine = grid = read_grid(tree.betas(numbers[0]))
    ijk, roi = read_masks(tree, rois, grid)
    files = {number: inspect_betas(tree.betas(number), shape) for number in numbers}
    metadata = read_metadata(tree)
    shown = [read_trials(tree, number, files[number].n_trials, metadata) for number in numbers]
    stimulus_id, known = np.concatenate(shown), list(metadata)
    splits = [read_split(tree, name, metadata, stimulus_id) for name in names]
    kinds = {one: KIND.match(known[one]) for one in np.unique(stimulus_id).tolist()}
    responses, keep = gather_responses(files, ijk, cache)
    return Subject(
        name=subject,
        dataset="laion",
        responses=responses,
        stimulus_id=stimulus_id,
        session=np.repeat(numbers, [len(ids) for ids in shown]),
        roi=recording.kept_regions(roi, keep, f"{tree.responses}: "),
        splits=(splits[0],),
        stimuli=LaionStimuli(tree, known, stimulus_id),
        ncsnr=read_ncsnr(tree, ijk[keep], grid),
        voxel_ijk=ijk[keep],
        volume_shape=shape,
        affine=affine,
        n_dropped=int((~keep).sum()),
        test_sets=tuple(splits[1:]),
        kind_of={one: found[1] for one, found in kinds.items() if found},
    )


# ------------------------------------------------------------------- responses and regions


def choose_sessions(tree: LaionTree, sessions: recording.Sessions) -> list[int]:
    """Return the numbers of the sessions to read, sorted; the betas of each are there.

    Parameters
    ----------
    tree : LaionTree
    sessions : int, str, sequence of int, or None
        The first so many; exactly these, from 1, also as text such as "1-10,12"; or all up to the
        last that is there.

    Raises
    ------
    InputError
        If there is no such tree or subject, a session is missing or held out.
    """
    wanted = known_sessions(max(tree.sessions, default=1) if sessions is None else sessions)
    found, what = tree.sessions, "name the sessions to read with `sessions`"
    return recording.present_sessions(wanted, found, tree.subjects, tree.betas, what)


def known_sessions(sessions: recording.Sessions) -> list[int]:
    """Return the numbers of the sessions that are meant; InputError if one is held out."""
    wanted = recording.parse_sessions(N_SESSIONS if sessions is None else sessions)
    if wanted[-1] > N_SESSIONS:
        held = f"there are 1 to {N_SESSIONS}; 31 to 34 are held out, and not to be had"
        raise InputError(f"sessions={sessions!r}: {held}.")
    return wanted


def read_grid(path: Path) -> Grid:
    """Read the shape and the affine of a session's betas from its header."""
    with reading.reading(path, "NIfTI file", HINT):
        image: Any = nib.load(path)
    return image.shape[:3], image.affine


def mask_names(rois: str) -> list[str]:
    """Return the names of the masks that are meant; see `read_masks`."""
    usual = rois.strip() in ("", "kastner2015")
    return [GENERAL] if usual else [name.strip() for name in rois.split(",")]


def read_masks(tree: LaionTree, rois: str, grid: Grid) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Read the regions asked for; each voxel belongs to the smallest that holds it.

    Parameters
    ----------
    tree : LaionTree
    rois : str
        "laion-general" ("" and the notebooks' default "kastner2015" mean it, too), or names of
        masks with commas between. Their union is read. Sets overlap, so "laion-general,V1v,FFA-1"
        gives V1v and FFA-1, and as laion-general what of it is in neither; a region of which
        nothing is left then is left out.
    grid : Grid

    Returns
    -------
    ijk : int array of shape (n_voxels, 3)
        Places in the volume, each voxel once.
    roi : dict of str to bool array of shape (n_voxels,)
        In the order of `rois`; no voxel is in two.

    Raises
    ------
    InputError
        If a name is unknown or that of several masks, or a mask is missing, damaged, empty or on
        another grid than the betas.
    """
    masks = {}
    for name in mask_names(rois):
        path, there = tree.mask(name), f"The masks there are {', '.join(tree.masks)}."
        masks[name] = read_labels(path, grid, "the betas", there) > 0
        if not masks[name].any():
            raise InputError(f"{path} has no voxel; expected some above 0. Leave {name} out.")
    ijk = np.argwhere(np.logical_or.reduce(list(masks.values())))
    owner = np.empty(len(ijk), object)
    for name in sorted(masks, key=lambda name: -masks[name].sum()):
        owner[masks[name][tuple(ijk.T)]] = name
    return ijk, {name: owner == name for name in masks if (owner == name).any()}


def read_ncsnr(tree: LaionTree, ijk: np.ndarray, grid: Grid) -> np.ndarray | None:
    r"""Read each voxel's noise-ceiling signal-to-noise ratio of a single trial.

    The data set gives noise ceilings, :math:`100 \, s^2 / (s^2 + 1/n)`; from that of the pictures
    that were shown four times, n = 4, follows `s`.

    Returns
    -------
    float32 array of shape (n_voxels,), or None
        0 where the ceiling is no number; None without the file.

    Raises
    ------
    InputError
        If the file is damaged, on another grid than the betas, or holds what is no percentage.
    """
    path = tree.ceiling
    if not path.exists():
        return None
    volume = read_on_grid(path, grid, "the betas", HINT)
    share = np.nan_to_num(volume[tuple(ijk.T)], posinf=200) / 100
    bad = (share < 0) | (share >= 1)
    if bad.any():
        found = f"{100 * share[bad][0]:g} in a voxel of the regions"
        raise InputError(f"{path} holds {found}; expected 0 to 100 per cent. Fetch it again.")
    return np.sqrt(share / (1 - share) / 4).astype(np.float32)


# ------------------------------------------------------------------- pictures, trials and splits


def read_metadata(tree: LaionTree) -> dict[str, str]:
    """Read the names of all pictures, in the order of their ids, and who alone saw each, or ""."""
    columns = ("image_name", "participant", "unique_or_shared")
    rows = reading.read_table(tree.metadata, columns, HINT)
    return {name: who if use == "unique" else "" for name, who, use in rows}


def read_trials(
    tree: LaionTree, number: int, n_trials: int, metadata: Mapping[str, str]
) -> np.ndarray:
    """Read what was shown in each trial of a session.

    Parameters
    ----------
    tree : LaionTree
    number : int
        Of the session, from 1.
    n_trials : int
        Volumes of its betas.
    metadata : dict of str to str
        As `read_metadata` returns it.

    Returns
    -------
    int64 array of shape (n_trials,)
        Stimulus ids.

    Raises
    ------
    InputError
        If the table is missing or damaged, does not have a row a volume, or names an unknown
        picture.
    """
    path = tree.trials(number)
    rows = reading.read_table(path, ("beta_index", "label"), HINT, "\t")
    wanted, label = [str(place) for place in range(n_trials)], dict(rows)
    if len(rows) != n_trials or set(label) != set(wanted):
        expected = f"beta_index 0 to {n_trials - 1}, one a volume of {tree.betas(number).name}"
        found = f"{len(rows)} trials with {len(label)} different beta_index"
        raise InputError(f"{path} has {found}; expected {expected}. Fetch both again.")
    return _ids_of([label[place] for place in wanted], path, metadata)


def _ids_of(names: Collection[str], path: Path, metadata: Mapping[str, str]) -> np.ndarray:
    """Return the ids of the pictures that a file names; InputError if there is none with a name."""
    ids = {name: place for place, name in enumerate(metadata)}
    unknown = [name for name in names if name not in ids]
    if unknown:
        expected = "an image_name of task-images_metadata.csv"
        raise InputError(f"{path} names {unknown[0]!r}; expected {expected}. Fetch both again.")
    return np.array([ids[name] for name in names], np.int64)


def split_names(split: str) -> list[str]:
    """Return the names of the splits that are meant, each once.

    Parameters
    ----------
    split : str
        Names with commas between: "tau" (also meant by ""), "ood", "cluster_k5_0" to "_4",
        "random_0" to "_4"; "cluster_k5" and "random" stand for all five.

    Raises
    ------
    InputError
        If there is no such split.
    """
    asked = [name.strip() for name in (split or "tau").split(",")]
    names = [one for name in asked for one in FAMILIES.get(name, (name,))]
    unknown = [name for name in names if name not in SPLITS]
    if unknown:
        known = f"{', '.join(SPLITS)}; {' and '.join(FAMILIES)} stand for all five"
        raise InputError(f"split={split!r}: {unknown[0]!r} is unknown; LAION-fMRI has {known}.")
    return list(dict.fromkeys(names))


def read_split(tree: LaionTree, name: str, metadata: Mapping[str, str], seen: np.ndarray) -> Split:
    """Read a split, and keep of it the stimuli that were seen.

    Parameters
    ----------
    tree : LaionTree
    name : str
    metadata : dict of str to str
        As `read_metadata` returns it.
    seen : int64 array
        Stimulus ids.

    Raises
    ------
    InputError
        If the file is missing, damaged or another person's, tests with training pictures, names
        an unknown picture, or nothing is left to train or to test.
    """
    path = tree.split(name)
    with reading.reading(path, "split file", HINT):
        parts = json.loads(path.read_text(encoding="utf-8"))["variants"][0]
        train, test = (set(parts[key]) for key in ("train_ids", "test_ids"))
    if both := train & test:
        found = f"{len(both)} test pictures that train, too, such as {min(both)}"
        raise InputError(f"{path} has {found}; expected none. Fetch it again.")
    ids = [_ids_of(part, path, metadata) for part in (train, test)]
    # The files' own word for whose they are is an inner number, another than the subject's.
    own = set(np.array(list(metadata.values()))[seen])
    others = [one for one in train | test if metadata[one] not in {"", *own}]
    if others and own - {""}:
        found = f"{len(others)} pictures that {tree.subject} never sees, such as {min(others)}"
        raise InputError(f"{path} has {found}; expected the split of this subject. {HINT}")
    return Split(name, np.intersect1d(ids[0], seen), np.intersect1d(ids[1], seen))


def decode_picture(stored: Any) -> np.ndarray:
    """Decode JPEG or PNG bytes; uint8 (height, width, 3), on grey where it is transparent.

    Raises
    ------
    ValueError, OSError
        If it is no picture, or larger than `reading.MAX_SIDE`.
    """
    with Image.open(io.BytesIO(bytes(stored))) as image:
        if max(image.size) > reading.MAX_SIDE:
            raise ValueError(f"{image.size[0]} x {image.size[1]} pixels")
        picture = image.convert("RGBA")
    ground = Image.new("RGBA", picture.size, GREY)
    return np.asarray(Image.alpha_composite(ground, picture).convert("RGB"))


class LaionStimuli:
    """Pictures and captions written by people, read when asked for.

    Parameters
    ----------
    tree : LaionTree
    names : sequence of str
        Of all pictures, in the order of their ids.
    ids : int64 array
        Of the stimuli that were seen.
    """

    def __init__(self, tree: LaionTree, names: list[str], ids: Ids):
        self.tree, self.names = tree, names
        self.ids = np.unique(ids)

    def pictures(self, ids: Ids) -> np.ndarray:
        """Return uint8 (n, height, width, 3), in the order of `ids`.

        Raises
        ------
        InputError
            If the file is missing, damaged, or does not fit the metadata.
        """
        path, ids = self.tree.pictures, check_ids(ids, len(self.names))
        with reading.open_hdf5(path, "images", PICTURES_HINT) as images:
            if images.shape != (len(self.names),):
                expected = f"{(len(self.names),)}, one for each row of {self.tree.metadata}"
                raise InputError(f"{path}: images is {images.shape}; expected {expected}.")
            stored = reading.read_rows(images, ids)
        with reading.reading(path, "file of JPEG and PNG bytes, all of one size", PICTURES_HINT):
            return np.stack([decode_picture(one) for one in stored])

    def captions(self, ids: Ids) -> list[tuple[str, ...]]:
        """Return the captions of each picture, the best first, in the order of `ids`.

        Raises
        ------
        InputError
            If the file is missing or damaged, or a picture has none.
        """
        names = [self.names[one] for one in check_ids(ids, len(self.names))]
        bare = [name for name in names if name not in self._texts]
        if bare:
            found = f"no human caption of {bare[0]}; expected one at least"
            raise InputError(f"{self.tree.captions} has {found}. Fetch it again.")
        return [self._texts[name] for name in names]

    @cached_property
    def _texts(self) -> Mapping[str, tuple[str, ...]]:
        columns = ("image_name", "source", "caption_idx", "caption")
        found: dict[str, tuple[str, ...]] = {}
        for name, source, _, text in sorted(reading.read_table(self.tree.captions, columns, HINT)):
            if source == "human" and text:
                found[name] = (*found.get(name, ()), text)
        return found
