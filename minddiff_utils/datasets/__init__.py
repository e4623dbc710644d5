# ruff: noqa: F401 (the public names of this room)
"""Recordings, each read into the same `Subject` record."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from minddiff_utils.datasets.kay import load_kay
from minddiff_utils.datasets.laion import load_laion
from minddiff_utils.datasets.miyawaki import load_miyawaki, load_miyawaki_full
from minddiff_utils.datasets.nsd import load_nsd
from minddiff_utils.datasets.own import check_own, load_own
from minddiff_utils.datasets.subject import (
    Fold,
    Split,
    Subject,
    estimate_ncsnr,
    mean_repetitions,
    noise_ceiling,
    prepare_fold,
    single_trial_ncsnr,
)
from minddiff_utils.io import InputError
from minddiff_utils.settings import recall

READERS = {
    "miyawaki": load_miyawaki,
    "miyawaki_full": load_miyawaki_full,
    "kay": load_kay,
    "own": load_own,
}
# These also take sessions, protocol, split and cache.
LARGE_READERS = {"nsd": load_nsd, "laion": load_laion}
DATASETS = (*LARGE_READERS, *READERS)


def load_subject(
    dataset: str,
    path: str | Path,
    subject: str,
    *,
    rois: str = "kastner2015",
    sessions: int | str | Sequence[int] | None = None,
    protocol: int | None = None,
    split: str = "",
    cache: str | Path | None = None,
) -> Subject:
    """Read one subject of a recording.

    Parameters
    ----------
    dataset : {"nsd", "laion", "miyawaki", "miyawaki_full", "kay", "own"}
        The layout of the files. The phantom is written in the layout of NSD; "own" is the HDF5
        file described in `minddiff_utils.datasets.own`.
    path : str or Path
        The top folder of the tree of NSD or LAION-fMRI, the file `V1_mean_figure.mat` ("miyawaki"),
        the folder that `minddiff fetch` filled ("miyawaki_full", "kay"), or an HDF5 file (or a
        folder with one a subject) in the layout of "own".
    subject : str
        For example "subj01", "sub-01" of LAION-fMRI; "S1" for those of Miyawaki et al. and of Kay
        et al.
    rois : str
        Which regions: "kastner2015" (eleven groups), "nsdgeneral", or names of groups separated
        by commas ("V1,V2,hV4"), or any atlas of NSD's: see
        `minddiff_utils.datasets.nsd.regions.read_regions`. A recording with one region ignores
        "kastner2015", and an own one takes it, like "all", for all regions of the file. Of
        LAION-fMRI masks by name; "kastner2015" stands for "laion-general" there.
    sessions : int, str, sequence of int, or None
        Of NSD or LAION-fMRI the first so many sessions, exactly these (from 1; also "1-10,12"), or
        all.
    protocol : {982, 1000, None}
        NSD's test pictures: 982 takes the first 37 sessions, 1000 the first 40.
    split : str
        Which pictures test, by the recording's own names with commas between: first the split of
        the book, then further test sets. "" for the first that the recording has. See
        `minddiff_utils.datasets.laion.split_names`.
    cache : str or Path, optional
        Folder for the file into which the responses of a big recording are gathered, and from
        which they are then read; the folder of the subject's results, for example.

    Returns
    -------
    Subject

    Raises
    ------
    InputError
        If the dataset or subject is unknown, or a file is missing, damaged or of a wrong shape.
    """
    if dataset not in DATASETS:
        raise InputError(f"dataset={dataset!r} is unknown; choose one of {', '.join(DATASETS)}")
    if dataset in LARGE_READERS:
        return LARGE_READERS[dataset](path, subject, rois, sessions, protocol, split, cache)
    if (sessions, protocol, split) != (None, None, ""):
        large = " and ".join(LARGE_READERS)
        raise InputError(f"sessions, protocol and split are for {large}, not dataset={dataset!r}")
    return READERS[dataset](path, subject, rois=rois)


def reload_subject(folder: str | Path) -> Subject:
    """Read the subject again that chapter 01 was given, whose results are in `folder`."""
    given = recall(folder)
    chosen = {name: getattr(given, name) for name in ("rois", "sessions", "protocol", "split")}
    found = load_subject(given.dataset, given.data_path, given.subject, **chosen, cache=folder)
    return replace(found, repetitions=given.repetitions)
