"""NSD's files and experiment: where each lies, what was shown when, pictures and captions."""

import json
import re
from collections import namedtuple
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np

from minddiff_utils.datasets import reading, recording
from minddiff_utils.datasets.subject import check_ids
from minddiff_utils.io import Ids, InputError

SPACE = "func1pt8mm"
BETAS = "betas_fithrf_GLMdenoise_RR"
HDF5 = ".hdf5"
PART = ".part.h5"  # of a subject, a part of an HDF5 file: see `minddiff_utils.datasets.parts`
# Test pictures of the two protocols in use, and the sessions that show them: 37 were public at
# first, all 40 are now.
PROTOCOLS = {982: 37, 1000: 40}

HINT = "It is part of NSD's nsddata/experiments/nsd."
ANNOTATIONS = "Get annotations_trainval2017.zip from cocodataset.org and put its files there."


# Where the files of NSD-synthetic lie, for one subject: the order of the trials; one row a picture,
# with its class; pictures that all subjects saw; those in the subject's own colours; one session.
Synthetic = namedtuple("Synthetic", "design kinds pictures own_pictures betas")


class NsdTree:
    """Where each file of the tree lies, for one subject.

    Parameters
    ----------
    root : Path
        The folder with `nsddata`, `nsddata_betas` and `nsddata_stimuli`.
    subject : str
        "subj01" to "subj08".

    Attributes
    ----------
    design, stimulus_table, pictures, responses, ncsnr : Path
        Order of the trials; one row a picture: its COCO id, crop and use; all pictures, uint8
        (n, height, width, 3); what the subject pressed, one row a trial; signal-to-noise ratio of
        each voxel.
    captions : tuple of two Path
        COCO's caption files, which are not part of NSD's own bucket.
    betas, rois : Path
        Folder with one file a session and `ncsnr.nii.gz`; folder with one volume an atlas.
    synthetic : Synthetic
        Files of NSD-synthetic, likewise.
    """

    def __init__(self, root: Path, subject: str):
        self.root, self.subject = root, subject
        # Of betas; the first that is there is read.
        self.suffixes = (HDF5, ".nii.gz", ".nii", f".{subject}{PART}")
        self.design = root / "nsddata/experiments/nsd/nsd_expdesign.mat"
        self.stimulus_table = root / "nsddata/experiments/nsd/nsd_stim_info_merged.csv"
        self.pictures = root / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
        coco = root / "coco/annotations"
        self.captions = (coco / "captions_train2017.json", coco / "captions_val2017.json")
        self.betas = root / "nsddata_betas/ppdata" / subject / SPACE / BETAS
        self.ncsnr = self.betas / "ncsnr.nii.gz"
        self.responses = root / "nsddata/ppdata" / subject / "behav/responses.tsv"
        self.rois = root / "nsddata/ppdata" / subject / SPACE / "roi"
        self.synthetic = Synthetic(
            root / "nsddata/experiments/nsdsynthetic/nsdsynthetic_expdesign.mat",
            root / "nsddata/experiments/nsdsynthetic/nsdsyntheticimageinformation.csv",
            root / "nsddata_stimuli/stimuli/nsdsynthetic/nsdsynthetic_stimuli.hdf5",
            root / f"nsddata_stimuli/stimuli/nsdsynthetic/nsdsynthetic_colorstimuli_{subject}.hdf5",
            self.held(self.betas.with_name(f"nsdsynthetic{BETAS}") / "betas_nsdsynthetic.hdf5"),
        )

    @property
    def atlases(self) -> list[str]:
        """Names of the atlases whose volume is there, sorted."""
        return sorted(path.name.removesuffix(".nii.gz") for path in self.rois.glob("*.nii.gz"))

    @property
    def subjects(self) -> list[str]:
        """Names of the subjects who have a folder of betas, sorted."""
        return sorted(path.name for path in self.betas.parents[2].glob("subj[0-9][0-9]"))

    @property
    def sessions(self) -> list[int]:
        """Numbers of the sessions whose betas are there, sorted."""
        names = [path.name for path in self.betas.glob("betas_session[0-9][0-9].*")]
        return sorted({int(name[13:15]) for name in names if name[15:] in self.suffixes})

    def session(self, number: int) -> Path:
        """Betas of one session, from 1: the HDF5 file, or a NIfTI file if only that is there."""
        return self.held(self.betas / f"betas_session{number:02d}.hdf5")

    def part(self, path: Path) -> Path:
        """What lies beside an HDF5 file, or in its place, when only a part of it was fetched."""
        return path.with_name(path.name.removesuffix(HDF5) + self.suffixes[-1])

    def held(self, path: Path) -> Path:
        """Return a file, or what lies in its place: of HDF5 a NIfTI file, or a part of it."""
        paths = [path.with_name(path.name.removesuffix(HDF5) + end) for end in self.suffixes]
        return next((one for one in paths if one.exists()), path)

    def whole(self, path: Path) -> Path:
        """The file that another is a part of, or the file itself."""
        return path.with_name(path.name.replace(self.suffixes[-1], HDF5))

    def roi(self, atlas: str) -> Path:
        """Volume of integer labels."""
        return self.rois / f"{atlas}.nii.gz"

    def labels(self, atlas: str) -> Path:
        """Label table of an atlas: the subject's own, else the one of fsaverage."""
        # Both hemispheres share a table.
        name, folder = re.sub(r"^[lr]h\.", "", atlas), self.root / "nsddata/freesurfer"
        own = folder / self.subject / "label" / f"{name}.mgz.ctab"
        return own if own.exists() else folder / "fsaverage/label" / own.name


def choose_sessions(tree: NsdTree, sessions: recording.Sessions, protocol: int | None) -> list[int]:
    """Return the numbers of the sessions to read, sorted; the betas of each are there.

    Parameters
    ----------
    tree : NsdTree
    sessions : int, str, sequence of int, or None
        The first so many; exactly these, from 1, also as text such as "1-10,12"; or all.
    protocol : {982, 1000, None}
        Test pictures of a protocol: 982 takes the first 37 sessions, 1000 the first 40.

    Raises
    ------
    InputError
        If there is no such tree or subject, a session is missing, or the parameters make no sense.
    """
    if protocol is not None and (protocol not in PROTOCOLS or sessions is not None):
        given = f"protocol={protocol!r} with sessions={sessions!r}"
        raise InputError(f"{given}: give protocol 982 or 1000 without sessions, or sessions alone")
    chosen = max(tree.sessions, default=1) if sessions is None else sessions
    wanted = recording.parse_sessions(PROTOCOLS[protocol] if protocol else chosen)
    what = "leave out `protocol`" if protocol else "name the sessions to read with `sessions`"
    return recording.present_sessions(wanted, tree.sessions, tree.subjects, tree.session, what)


def read_design(tree: NsdTree) -> tuple[np.ndarray, np.ndarray]:
    """Read which picture was to be shown when, all trials of the experiment in order.

    Returns
    -------
    stimulus_id : int64 array of shape (n_trials,)
        From 0.
    shared : bool array of shape (n_trials,)
        Whether the picture is one that all subjects saw.

    Raises
    ------
    InputError
        If the file is missing or damaged, lacks a variable, or has no such subject.
    """
    names = ("masterordering", "subjectim", "sharedix")
    content = reading.read_matlab(tree.design, names, HINT)
    order, pictures = (content[name].astype(np.int64) for name in names[:2])
    row = int(tree.subject[4:]) - 1
    if row >= len(pictures) or order.min() < 1 or order.max() > pictures.shape[1]:
        expected = f"a row for {tree.subject}, columns {order.min()} to {order.max()}"
        raise InputError(f"{tree.design}: subjectim is {pictures.shape}; expected {expected}")
    # MATLAB counts from 1, NSD's own ids from 0. The shared pictures come first.
    order = order.ravel()
    return pictures[row, order - 1] - 1, order <= content["sharedix"].size


def read_trials(
    tree: NsdTree, n_trials: Mapping[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find what was shown in each trial of some sessions, all equally long, as was planned.

    Parameters
    ----------
    tree : NsdTree
    n_trials : dict of int to int
        How many trials the betas of each session have; the keys are the sessions' numbers.

    Returns
    -------
    stimulus_id, session : int64 arrays of shape (n_trials,)
        What was shown, ids from 0, and in which session, from 1.
    shared : bool array of shape (n_trials,)
        Whether the picture is one that all subjects saw.

    Raises
    ------
    InputError
        If a session has another number of trials than the others or than was planned.
    """
    (stimulus_id, shared), n = read_design(tree), max(n_trials.values())
    for number, count in n_trials.items():
        if count != n or number * n > len(shared):
            expected = f"{n} in each session and {len(shared)} in all, as in {tree.design}"
            raise InputError(f"{tree.session(number)} has {count} trials; expected {expected}.")
    places = np.concatenate([np.arange(n * (number - 1), n * number) for number in n_trials])
    return stimulus_id[places], places // n + 1, shared[places]


def read_captions(path: Path) -> dict[int, list[str]]:
    """Read a file of captions in COCO's form.

    Parameters
    ----------
    path : Path
        JSON with `annotations`, each with the whole number `image_id` and the text `caption`.

    Returns
    -------
    dict of int to list of str
        Captions by `image_id`, in the order of their `id`; in that of the file without one. What
        is empty or null is no caption.

    Raises
    ------
    InputError
        If the file is missing or no such file, or an annotation is no caption.
    """
    found: dict[int, list[tuple[int, str]]] = {}
    with reading.reading(path, "COCO caption file", ANNOTATIONS):
        for place, item in enumerate(json.loads(path.read_bytes())["annotations"]):
            # Through text: 7 and "7" are numbers of a picture, 7.5 and null are not.
            picture, order = int(str(item["image_id"])), int(str(item.get("id", place)))
            text = (item["caption"] or "").strip()
            found.setdefault(picture, []).extend([(order, text)] * bool(text))
    return {picture: [text for _, text in sorted(rows)] for picture, rows in found.items()}


@contextmanager
def open_pictures(path: Path) -> Iterator[h5py.Dataset]:
    """Open the pictures of a file, uint8 (n, height, width, 3).

    Raises
    ------
    InputError
        If the file is missing or damaged, or holds something else.
    """
    with reading.open_hdf5(path, "imgBrick") as brick:
        if brick.ndim != 4 or brick.dtype != np.uint8 or max(brick.shape[1:3]) > reading.MAX_SIDE:
            expected = f"uint8 (n, height, width, 3), sides to {reading.MAX_SIDE}. Fetch it again"
            found = f"{brick.dtype} {brick.shape}"
            raise InputError(f"{path}: imgBrick is {found}; expected {expected}.")
        yield brick


def held_rows(path: Path, name: str, wanted: Ids) -> np.ndarray:
    """Find in which rows a part of a file has what is wanted.

    Parameters
    ----------
    path : Path
    name : str
        The dataset that says what its rows are: sorted numbers.
    wanted : int64 array

    Returns
    -------
    int64 array of the shape of `wanted`

    Raises
    ------
    InputError
        If it lacks some.
    """
    with reading.open_hdf5(path, name) as stored:
        held = stored[()]
    rows = np.minimum(np.searchsorted(held, wanted), len(held) - 1)
    if lacking := int((held[rows] != wanted).sum()):
        lacks = f"has the rows of {len(held):,} {name}s and lacks {lacking:,} that are asked for"
        what = "fetch them (minddiff fetch nsd, --only-rois or --only-seen), or the whole file"
        raise InputError(f"{path} {lacks}: {what}.")
    return rows


class NsdStimuli:
    """Pictures from `nsd_stimuli.hdf5` and captions from COCO's files, read when asked for.

    Parameters
    ----------
    tree : NsdTree
    ids : int64 array
        NSD ids (from 0) of the stimuli that were seen.

    Notes
    -----
    Every NSD picture is a square cut from a COCO photograph; `nsd_stim_info_merged.csv` gives the
    photograph as `cocoId` and what was cut off as `cropBox`. COCO's captions describe the whole
    photograph, so a caption may name something that the crop has lost.
    """

    def __init__(self, tree: NsdTree, ids: np.ndarray):
        self.tree = tree
        self.ids = np.unique(ids).astype(np.int64)

    def pictures(self, ids: Ids) -> np.ndarray:
        """Return uint8 (n, height, width, 3), in the order of `ids`.

        Raises
        ------
        InputError
            If the file is missing, damaged, or has no such picture, or one of a single colour.
        """
        path = self.tree.held(self.tree.pictures)
        with open_pictures(path) as brick:
            partly = path != self.tree.pictures
            rows = held_rows(path, "stimulus_id", ids) if partly else check_ids(ids, len(brick))
            found = reading.read_rows(brick, rows)
        flat = np.flatnonzero(recording.flat_pictures(found))
        if flat.size:
            raise InputError(f"{path}: picture {ids[flat[0]]} has one colour: fetch it again")
        return found

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width of every picture."""
        with open_pictures(self.tree.held(self.tree.pictures)) as brick:
            return brick.shape[1:3]

    def captions(self, ids: Ids) -> list[tuple[str, ...]]:
        """Return five captions a picture, in the order of `ids`.

        Raises
        ------
        InputError
            If a file is missing or damaged, or a picture has no five captions.
        """
        coco = [self._coco_ids.get(int(one)) for one in ids]
        found = [self._texts.get(one, []) for one in coco]
        for stimulus, one, texts in zip(ids, coco, found, strict=True):
            if len(texts) < 5:
                file = self.tree.captions[0] if one else self.tree.stimulus_table
                n = f"{len(texts)} captions by {file}; expected 5"
                raise InputError(f"stimulus {stimulus} (COCO id {one}) has {n}. {ANNOTATIONS}")
        # A few COCO pictures have six or seven; the method averages five.
        return [tuple(texts[:5]) for texts in found]

    @cached_property
    def _coco_ids(self) -> dict[int, int]:
        path, columns = self.tree.stimulus_table, ("nsdId", "cocoId")
        return dict(reading.read_table(path, columns, HINT, kind=int))

    @cached_property
    def _texts(self) -> Mapping[int | None, list[str]]:
        wanted = {self._coco_ids.get(int(i)) for i in self.ids}
        files = map(read_captions, self.tree.captions)
        return {coco: texts for file in files for coco, texts in file.items() if coco in wanted}
