"""The Natural Scenes Dataset, and anything else written in its layout of folders and files."""

from pathlib import Path

import numpy as np

from minddiff_utils.datasets.nsd.betas import inspect_betas
from minddiff_utils.datasets.nsd.design import Sessions, Trials, choose_sessions, read_trials
from minddiff_utils.datasets.nsd.regions import Regions, read_regions
from minddiff_utils.datasets.nsd.responses import Gathered, gather_responses
from minddiff_utils.datasets.nsd.stimuli import NsdStimuli
from minddiff_utils.datasets.nsd.tree import NsdTree
from minddiff_utils.datasets.reading import read_volume
from minddiff_utils.datasets.subject import Split, Subject
from minddiff_utils.io import InputError


def load_nsd(
    path: str | Path,
    subject: str,
    *,
    rois: str = "kastner2015",
    sessions: Sessions = None,
    protocol: int | None = None,
    repetitions: str = "average",
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
    repetitions : {"average", "keep"}
        What `prepare_fold` makes of several trials of a training picture.
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
    ncsnr = read_volume(tree.ncsnr, regions.shape)[tuple(regions.ijk.T)].astype(np.float32)
    numbers = choose_sessions(tree, sessions, protocol)
    files = {number: inspect_betas(tree.session(number), regions.shape) for number in numbers}
    trials = read_trials(tree, {n: file.n_trials for n, file in files.items()}, protocol)
    gathered = gather_responses(files, regions.ijk, regions.shape, cache)
    return _subject(tree, regions, trials, gathered, ncsnr, repetitions)


def _subject(
    tree: NsdTree,
    regions: Regions,
    trials: Trials,
    gathered: Gathered,
    ncsnr: np.ndarray,
    repetitions: str,
) -> Subject:
    """Put the parts together, without the voxels that are at fault."""
    responses, keep, dropped = gathered.without_faults()
    roi = {name: mask[keep] for name, mask in regions.roi.items()}
    for name, mask in roi.items():
        if not mask.any():
            raise InputError(
                f"{tree.subject}: every voxel of ROI {name} is constant or not a number in "
                f"{tree.betas}. Leave it out of rois, or fetch the betas again."
            )
    ids, shared = trials.stimulus_id, trials.shared
    split = Split("shared", train=np.unique(ids[~shared]), test=np.unique(ids[shared]))
    return Subject(
        name=tree.subject,
        dataset="nsd",
        responses=responses,
        stimulus_id=ids,
        session=trials.session,
        roi=roi,
        splits=(split,),
        stimuli=NsdStimuli(tree, ids),
        ncsnr=ncsnr[keep],
        voxel_ijk=regions.ijk[keep],
        volume_shape=regions.shape,
        affine=regions.affine,
        n_dropped=int((~keep).sum()),
        dropped=dropped,
        repetitions=repetitions,
    )
