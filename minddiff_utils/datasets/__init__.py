"""Recordings, each read into the same `Subject` record."""

from collections.abc import Sequence
from pathlib import Path

from minddiff_utils.datasets.kay import load_kay
from minddiff_utils.datasets.miyawaki import load_miyawaki
from minddiff_utils.datasets.miyawaki_full import load_miyawaki_full
from minddiff_utils.datasets.nsd import load_nsd
from minddiff_utils.datasets.subject import (
    Fold,
    Split,
    Subject,
    estimate_ncsnr,
    noise_ceiling,
    prepare_fold,
    single_trial_ncsnr,
    summarise,
    write_summary,
)
from minddiff_utils.files import InputError

__all__ = [
    "DATASETS",
    "Fold",
    "Split",
    "Subject",
    "estimate_ncsnr",
    "load_subject",
    "noise_ceiling",
    "prepare_fold",
    "single_trial_ncsnr",
    "summarise",
    "write_summary",
]

DATASETS = ("nsd", "miyawaki", "miyawaki_full", "kay")


def load_subject(
    dataset: str,
    path: str | Path,
    subject: str,
    *,
    rois: str = "kastner2015",
    sessions: int | Sequence[int] | None = None,
) -> Subject:
    """Read one subject of a recording.

    Parameters
    ----------
    dataset : {"nsd", "miyawaki", "miyawaki_full", "kay"}
        The layout of the files. The phantom is written in the layout of NSD.
    path : str or Path
        The top folder of the NSD tree, the file `V1_mean_figure.mat` ("miyawaki"), or the folder
        that `minddiff fetch` filled ("miyawaki_full", "kay").
    subject : str
        For example "subj01"; "S1" for those of Miyawaki et al. and of Kay et al.
    rois : str
        Which regions: "kastner2015" (eleven groups), "nsdgeneral", or names of groups separated
        by commas ("V1,V2,hV4"). A recording with one region ignores "kastner2015".
    sessions : int, sequence of int, or None
        The first so many sessions, exactly these (from 1), or all that are there.

    Returns
    -------
    Subject

    Raises
    ------
    InputError
        If the dataset or subject is unknown, or a file is missing, damaged or of a wrong shape.
    """
    if dataset == "nsd":
        return load_nsd(path, subject, rois=rois, sessions=sessions)
    if dataset == "miyawaki":
        return load_miyawaki(path, subject, rois=rois)
    if dataset == "miyawaki_full":
        return load_miyawaki_full(path, subject, rois=rois)
    if dataset == "kay":
        return load_kay(path, subject, rois=rois)
    raise InputError(f"dataset={dataset!r} is unknown; choose one of {', '.join(DATASETS)}")
