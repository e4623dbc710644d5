"""Where the Natural Scenes Dataset keeps each file."""

import re
from pathlib import Path

from minddiff_utils.io import InputError

SPACE = "func1pt8mm"
BETAS = "betas_fithrf_GLMdenoise_RR"
BETA_SUFFIXES = (".hdf5", ".nii.gz", ".nii")  # the first that is there is read


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
        pattern = re.compile(r"betas_session(\d\d+)(\.hdf5|\.nii\.gz|\.nii)")
        matches = [pattern.fullmatch(path.name) for path in self.betas.glob("betas_session*")]
        return sorted({int(match[1]) for match in matches if match})

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
        if not found:
            raise InputError(
                f"{folder} has no subject: {self.root} is no NSD tree. Give the folder that holds "
                "nsddata, nsddata_betas and nsddata_stimuli."
            )
        if self.subject not in found:
            raise InputError(
                f"subject={self.subject!r} is not in {folder}, which has {', '.join(found)}: "
                "choose one that is there, or fetch it"
            )
