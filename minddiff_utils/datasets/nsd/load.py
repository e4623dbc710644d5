"""The Natural Scenes Dataset, and anything else written in its layout of folders and files."""

from pathlib import Path

import numpy as np

from minddiff_utils.datasets.nsd.design import NsdTree, Sessions, choose_sessions, read_trials
from minddiff_utils.datasets.nsd.regions import read_regions
from minddiff_utils.datasets.nsd.responses import gather_responses, inspect_betas
from minddiff_utils.datasets.nsd.stimuli import NsdStimuli
from minddiff_utils.datasets.subject import Split, Subject
from minddiff_utils.io import InputError


def load_nsd(
    path: str | Path,
    subject: str,
    rois: str = "kastner2015",
    sessions: Sessions = None,
    protocol: int | None = None,
    cache: str | Path | None = None,
) -> Subject:
    """Read one subject from a tree in NSD's layout.

    Parameters
    ----------
    path : str or Path
        The folder with `nsddata`, `nsddata_betas` and `nsddata_stimuli`.
    subject : str
        "subj01" to "subj08".
    rois : str
        As in `minddiff_utils.datasets.nsd.regions.read_regions`.
    sessions, protocol
        As in `minddiff_utils.datasets.nsd.design.choose_sessions`.
    cache : str or Path, optional
        Folder for the file that the responses are gathered into and then read from; without it
        they are held in memory.

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
    tree.check()
    regions = read_regions(tree, rois)
    numbers = choose_sessions(tree, sessions, protocol)
    grid = regions.shape, regions.affine
    files = {number: inspect_betas(tree.session(number), *grid) for number in numbers}
    n_trials = {number: file.n_trials for number, file in files.items()}
    stimulus_id, session, shared = read_trials(tree, n_trials)
    responses, keep = gather_responses(files, regions.ijk, cache)
    roi = {name: mask[keep] for name, mask in regions.roi.items()}
    lost = [name for name, mask in roi.items() if not mask.any()]
    if lost:
        why = f"every voxel of ROI {lost[0]} is constant or not a number in {tree.betas}"
        raise InputError(f"{subject}: {why}. Leave it out of rois, or fetch the betas again.")
    train, test = np.unique(stimulus_id[~shared]), np.unique(stimulus_id[shared])
    return Subject(
        name=subject,
        dataset="nsd",
        responses=responses,
        stimulus_id=stimulus_id,
        session=session,
        roi=roi,
        splits=(Split("shared", train, test),),
        stimuli=NsdStimuli(tree, stimulus_id),
        ncsnr=regions.ncsnr[keep],
        voxel_ijk=regions.ijk[keep],
        volume_shape=regions.shape,
        affine=regions.affine,
        n_dropped=int((~keep).sum()),
    )
