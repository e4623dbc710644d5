"""NSD's files and experiment: where each lies, which sessions there are, what was shown when."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minddiff_utils.datasets.reading import read_matlab
from minddiff_utils.io import InputError

SPACE = "func1pt8mm"
BETAS = "betas_fithrf_GLMdenoise_RR"
BETA_SUFFIXES = (".hdf5", ".nii.gz", ".nii")  # the first that is there is read
# Test pictures of the two protocols in use, and the sessions that show them: 37 were public at
# first, all 40 are now.
PROTOCOLS = {982: 37, 1000: 40}

Sessions = int | str | Sequence[int] | None


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
    """

    def __init__(self, root: Path, subject: str):
        self.root, self.subject = root, subject
        self.design = root / "nsddata/experiments/nsd/nsd_expdesign.mat"
        self.stimulus_table = root / "nsddata/experiments/nsd/nsd_stim_info_merged.csv"
        self.pictures = root / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
        coco = root / "coco/annotations"
        self.captions = (coco / "captions_train2017.json", coco / "captions_val2017.json")
        self.betas = root / "nsddata_betas/ppdata" / subject / SPACE / BETAS
        self.ncsnr = self.betas / "ncsnr.nii.gz"
        self.responses = root / "nsddata/ppdata" / subject / "behav/responses.tsv"
        self.rois = root / "nsddata/ppdata" / subject / SPACE / "roi"

    @property
    def atlases(self) -> list[str]:
        """Names of the atlases whose volume is there, sorted."""
        return sorted(path.name.removesuffix(".nii.gz") for path in self.rois.glob("*.nii.gz"))

    @property
    def sessions(self) -> list[int]:
        """Numbers of the sessions whose betas are there, sorted."""
        patterns = [f"betas_session[0-9][0-9]{suffix}" for suffix in BETA_SUFFIXES]
        found = [path.name for pattern in patterns for path in self.betas.glob(pattern)]
        return sorted({int(name[13:15]) for name in found})

    def session(self, number: int) -> Path:
        """Betas of one session, from 1: the HDF5 file, or a NIfTI file if only that is there."""
        paths = [self.betas / f"betas_session{number:02d}{suffix}" for suffix in BETA_SUFFIXES]
        return next((path for path in paths if path.exists()), paths[0])

    def roi(self, atlas: str) -> Path:
        """Volume of integer labels."""
        return self.rois / f"{atlas}.nii.gz"

    def labels(self, atlas: str) -> Path:
        """Label table of an atlas: the subject's own, else the one of fsaverage."""
        # Both hemispheres share a table.
        name = re.sub(r"^[lr]h\.", "", atlas)
        folder = self.root / "nsddata/freesurfer"
        own = folder / self.subject / "label" / f"{name}.mgz.ctab"
        shared = folder / "fsaverage/label" / f"{name}.mgz.ctab"
        return own if own.exists() or not shared.exists() else shared

    def check(self) -> None:
        """Raise InputError unless the folder is an NSD tree and has the subject."""
        folder = self.root / "nsddata_betas/ppdata"
        found = sorted(path.name for path in folder.glob("subj[0-9][0-9]"))
        if self.subject not in found:
            raise InputError(
                f"{self.subject!r} is not in {folder}, which has {', '.join(found) or 'none'}: "
                "choose one that is there, or the folder that holds nsddata and nsddata_betas"
            )


class Design(NamedTuple):
    """Which picture was to be shown when, all trials of the experiment, session after session.

    Parameters
    ----------
    stimulus_id : int64 array of shape (n_trials,)
        From 0.
    shared : bool array of shape (n_trials,)
        Whether the picture is one that all subjects saw.
    """

    stimulus_id: np.ndarray
    shared: np.ndarray


def choose_sessions(
    tree: NsdTree, sessions: Sessions = None, protocol: int | None = None
) -> list[int]:
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
        If a session is missing, or the parameters make no sense.
    """
    found = tree.sessions
    if not found:
        raise InputError(f"{tree.betas} has no betas_session01.hdf5, …: fetch the subject's betas")
    if protocol is not None and (protocol not in PROTOCOLS or sessions is not None):
        given = f"protocol={protocol!r} with sessions={sessions!r}"
        raise InputError(f"{given}: give protocol 982 or 1000 without sessions, or sessions alone")
    chosen = found[-1] if sessions is None else sessions
    wanted = _parse_sessions(PROTOCOLS[protocol] if protocol else chosen)
    missing = [number for number in wanted if number not in found]
    if missing:
        there = f"{tree.subject} has sessions {', '.join(map(str, found))}"
        what = "leave out `protocol`" if protocol else "name the sessions to read with `sessions`"
        raise InputError(f"{tree.session(missing[0])} is missing; {there}. Fetch it, or {what}.")
    return wanted


def _parse_sessions(sessions: int | str | Sequence[int]) -> list[int]:
    """Return the numbers that were meant, sorted, each once."""
    text = f"1-{sessions}" if isinstance(sessions, int) else str(sessions).strip("[]()")
    parts = [re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part) for part in text.split(",")]
    ends = [(int(part[1]), int(part[2] or part[1])) for part in parts if part]
    numbers = sorted({number for first, last in ends for number in range(first, last + 1)})
    if not all(parts) or not numbers or numbers[0] < 1:
        raise InputError(
            f"sessions={sessions!r}: expected how many (from the first), or which, such as 1-10,12"
        )
    return numbers


def read_design(tree: NsdTree) -> Design:
    """Read which picture was to be shown in which trial.

    Returns
    -------
    Design

    Raises
    ------
    InputError
        If the file is missing or damaged, lacks a variable, or has no such subject.
    """
    names = ("masterordering", "subjectim", "sharedix")
    content = read_matlab(tree.design, names, "It is part of NSD's nsddata/experiments/nsd.")
    order, pictures = (content[name].astype(np.int64) for name in names[:2])
    row = int(tree.subject[4:]) - 1
    if row >= len(pictures) or order.min() < 1 or order.max() > pictures.shape[1]:
        raise InputError(
            f"{tree.design}: subjectim has shape {pictures.shape}; expected a row for "
            f"{tree.subject}, a column for all of masterordering, {order.min()} to {order.max()}"
        )
    # MATLAB counts from 1, NSD's own ids from 0. The shared pictures come first.
    order = order.ravel()
    return Design(pictures[row, order - 1] - 1, order <= content["sharedix"].size)


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
    design, n = read_design(tree), max(n_trials.values())
    for number, count in n_trials.items():
        if count != n or number * n > len(design.shared):
            raise InputError(
                f"{tree.session(number)} has {count} trials; expected {n} in each session and "
                f"{len(design.shared)} in all, as in {tree.design}. Fetch it again."
            )
    places = np.concatenate([np.arange(n * (number - 1), n * number) for number in n_trials])
    return design.stimulus_id[places], places // n + 1, design.shared[places]
