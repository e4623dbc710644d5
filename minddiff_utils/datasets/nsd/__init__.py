"""The Natural Scenes Dataset, and anything else written in its layout of folders and files."""

from pathlib import Path

import numpy as np

from minddiff_utils.datasets.nsd.design import NsdStimuli, NsdTree, choose_sessions, read_trials
from minddiff_utils.datasets.nsd.regions import read_regions
from minddiff_utils.datasets.nsd.responses import gather_responses, inspect_betas
from minddiff_utils.datasets.nsd.synthetic import SyntheticStimuli, read_synthetic
from minddiff_utils.datasets.recording import Sessions, kept_regions
from minddiff_utils.datasets.subject import Split, Subject
from minddiff_utils.io import InputError


def load_nsd(
    path: str | Path,
    subject: str,
    rois: str = "kastner2015",
    sessions: Sessions = None,
    protocol: int | None = None,
    split: str = "",
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
    split : str
        "shared"; "shared,synthetic" adds NSD-synthetic as a further test set, and so does "" where
        its betas are there.
    cache
        As of `minddiff_utils.datasets.load_subject`; without it the responses are in memory.

    Returns
    -------
    Subject
        Responses in per cent signal change. One split, "shared": the pictures shown to all
        subjects test, all the others train. The further set "synthetic" has the same training
        pictures; its session is the last and has no say in which voxels are kept.

    Raises
    ------
    InputError
        If the subject is unknown, or a file or session is missing, damaged or of a wrong shape,
        or a region is empty.
    """
    if split.replace(" ", "") not in ("", "shared", "shared,synthetic"):
        raise InputError(f"split={split!r} is unknown; NSD has shared, and shared,synthetic")
    tree = NsdTree(Path(path), subject)
    split = split or "shared,synthetic" * tree.synthetic.betas.exists()
    numbers = choose_sessions(tree, sessions, protocol)
    regions = read_regions(tree, rois)
    files = {number: inspect_betas(tree.session(number), regions.shape) for number in numbers}
    stimulus_id, session, shared = read_trials(tree, {n: f.n_trials for n, f in files.items()})
    train, test = np.unique(stimulus_id[~shared]), np.unique(stimulus_id[shared])
    photographs = NsdStimuli(tree, stimulus_id)
    stimuli: NsdStimuli | SyntheticStimuli = photographs
    sets: tuple[Split, ...] = (Split("shared", train, test),)
    kind_of: dict[int, str] = {}
    if "synthetic" in split:
        files[numbers[-1] + 1] = last = inspect_betas(tree.synthetic.betas, regions.shape)
        seen, kind_of = read_synthetic(tree, last.n_trials)
        stimuli = SyntheticStimuli(photographs, seen)
        sets += (Split("synthetic", train, stimuli.shown),)
        stimulus_id = np.concatenate([stimulus_id, seen])
        session = np.concatenate([session, np.full_like(seen, numbers[-1] + 1)])
    responses, keep = gather_responses(files, regions.ijk, cache, n_test=len(files) - len(numbers))
    return Subject(
        name=subject,
        dataset="nsd",
        responses=responses,
        stimulus_id=stimulus_id,
        session=session,
        roi=kept_regions(regions.roi, keep, f"{tree.betas}: "),
        splits=sets[:1],
        stimuli=stimuli,
        ncsnr=regions.ncsnr[keep],
        voxel_ijk=regions.ijk[keep],
        volume_shape=regions.shape,
        affine=regions.affine,
        n_dropped=int((~keep).sum()),
        test_sets=sets[1:],
        kind_of=kind_of,
    )
