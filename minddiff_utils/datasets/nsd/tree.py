"""Where the Natural Scenes Dataset keeps each file."""

import re
from dataclasses import dataclass
from pathlib import Path

from minddiff_utils.io import InputError

SPACE = "func1pt8mm"
BETAS = "betas_fithrf_GLMdenoise_RR"
BETA_SUFFIXES = (".hdf5", ".nii.gz", ".nii")  # the first that is there is read


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

    @property
    def rois(self) -> Path:
        """Folder with one volume an atlas."""
        return self.root / "nsddata/ppdata" / self.subject / SPACE / "roi"

    @property
    def atlases(self) -> list[str]:
        """Names of the atlases whose volume is there, sorted."""
        return sorted(path.name.removesuffix(".nii.gz") for path in self.rois.glob("*.nii.gz"))

    @property
    def sessions(self) -> list[int]:
        """Numbers of the sessions whose betas are there, sorted."""
        pattern = re.compile(r"betas_session(\d\d+)(\.hdf5|\.nii\.gz|\.nii)")
        names = [path.name for path in self.betas.iterdir()] if self.betas.is_dir() else []
        return sorted({int(match[1]) for name in names if (match := pattern.fullmatch(name))})

    def session(self, number: int) -> Path:
        """Betas of one session, from 1: the HDF5 file, or a NIfTI file if only that is there."""
        stem = self.betas / f"betas_session{number:02d}"
        paths = [stem.with_name(stem.name + suffix) for suffix in BETA_SUFFIXES]
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
        folder = self.betas.parent.parent.parent
        if not folder.is_dir():
            raise InputError(
                f"{folder} is missing: {self.root} is no NSD tree. Give the folder that holds "
                "nsddata, nsddata_betas and nsddata_stimuli."
            )
        found = sorted(p.name for p in folder.iterdir() if re.fullmatch(r"subj\d\d", p.name))
        if self.subject not in found:
            raise InputError(
                f"subject={self.subject!r} is not in {folder}, which has "
                f"{', '.join(found) or 'none'}: choose one that is there, or fetch it"
            )
