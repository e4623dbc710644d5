"""Regions of interest: which voxels of NSD's volume belong to which part of an atlas."""

from pathlib import Path
from typing import NamedTuple, TypeAlias

import nibabel as nib
import numpy as np

from minddiff_utils.datasets.nsd.design import NsdTree
from minddiff_utils.datasets.reading import read_nifti, reading
from minddiff_utils.io import InputError

# The groups of the paper, made of the atlas's labels. MT and MST are TO1 and TO2 in some label
# tables and hMT and hMST in others.
# fmt: off
KASTNER_GROUPS = {
    "V1": ("V1v", "V1d"), "V2": ("V2v", "V2d"), "V3": ("V3v", "V3d"), "V3ab": ("V3A", "V3B"),
    "hV4": ("hV4",), "VO": ("VO1", "VO2"), "PHC": ("PHC1", "PHC2"), "MT": ("TO1", "MT", "hMT"),
    "MST": ("TO2", "MST", "hMST"), "LO": ("LO1", "LO2"),
    "IPS": ("IPS0", "IPS1", "IPS2", "IPS3", "IPS4", "IPS5"),
}
# fmt: on
HINT = "It is part of NSD's nsddata or nsddata_betas."
KASTNER = "Kastner2015"
GENERAL = "nsdgeneral"
ROUNDING = 1e-3  # that labels may be off whole numbers
SHIFT = 0.1  # voxels, that two headers may place a voxel apart; others mean half a voxel or more


# Shape (X, Y, Z) of volumes, and affine (4, 4) from voxel indices to millimetres.
Grid: TypeAlias = tuple[tuple[int, int, int], np.ndarray]


class Regions(NamedTuple):
    """The voxels of the regions asked for.

    Parameters
    ----------
    affine : float array of shape (4, 4)
        From voxel indices to millimetres.
    shape : tuple of three int
        Of the volume (X, Y, Z).
    ijk : int array of shape (n_voxels, 3)
        Places in the volume, each voxel once.
    roi : dict of str to bool array of shape (n_voxels,)
    ncsnr : float32 array of shape (n_voxels,)
    """

    affine: np.ndarray
    shape: tuple[int, int, int]
    ijk: np.ndarray
    roi: dict[str, np.ndarray]
    ncsnr: np.ndarray


def read_regions(tree: NsdTree, rois: str) -> Regions:
    """Read the regions asked for, on the grid of the betas' `ncsnr`.

    Parameters
    ----------
    tree : NsdTree
    rois : str
        - "kastner2015": the eleven groups of `KASTNER_GROUPS`; some of them as "V1,V2,hV4";
        - "nsdgeneral": the part of visual cortex that answers reliably, as one region;
        - the name of any atlas in the folder `roi`, such as "streams": each of its labels is a
          region; some of them as "streams:ventral,lateral";
        - several of these with "+" between them: "nsdgeneral+floc-faces". A voxel that is in
          more than one counts once.

    Returns
    -------
    Regions

    Raises
    ------
    InputError
        If an atlas or a label is unknown, a volume or label table is missing, damaged, of
        another shape or on another grid than the betas, a label is no whole number, or a region
        asked for by name has no voxel.
    """
    ncsnr, affine = read_nifti(tree.ncsnr, HINT)
    masks: dict[str, np.ndarray] = {}
    for part in map(str.strip, rois.split("+")):
        atlas, regions = _parse(tree, part)
        path = tree.roi(atlas)
        volume = read_labels(path, (ncsnr.shape, affine))
        for name, labels in regions.items():
            mask = np.isin(volume, labels)
            if mask.any():
                masks[f"{atlas}:{name}" if name in masks else name] = mask
            elif part != atlas:  # of a whole atlas, labels that this subject lacks are left out
                why = f"{path} has no label {labels}"
                raise InputError(f"ROI {name} is empty: {why}. Leave it out.")
    if not masks:
        raise InputError(f"rois={rois!r} are empty in {tree.rois}: choose others")
    ijk = np.argwhere(np.logical_or.reduce(list(masks.values())))
    place = tuple(ijk.T)
    roi = {name: mask[place] for name, mask in masks.items()}
    return Regions(affine, ncsnr.shape, ijk, roi, ncsnr[place].astype(np.float32))


def read_labels(path: Path, grid: Grid, than: str = "ncsnr.nii.gz", hint: str = HINT) -> np.ndarray:
    """Read a volume of labels that lies on the grid of the responses.

    Parameters
    ----------
    path : Path
    grid : Grid
        That of the responses.
    than : str
        The file that has this grid.
    hint : str
        A sentence on where to get the file.

    Returns
    -------
    int64 array of shape (X, Y, Z)
        What is not a number belongs to no region, as label 0.

    Raises
    ------
    InputError
        If the file is missing, damaged, of another shape or grid, or holds what is no label.
    """
    volume = read_on_grid(path, grid, than, hint)
    volume = np.where(np.isnan(volume), 0, volume)
    labels = np.rint(volume)
    wrong = np.isinf(volume) | ~np.isclose(volume, labels, rtol=0, atol=ROUNDING)
    if wrong.any():
        found = f"{wrong.sum()} voxels have no whole number as label, such as {volume[wrong][0]:g}"
        raise InputError(f"{path}: {found}. Resample it with nearest-neighbour interpolation.")
    return labels.astype(np.int64)


def read_on_grid(path: Path, grid: Grid, than: str, hint: str) -> np.ndarray:
    """Read a volume; InputError if its header puts the voxels elsewhere than that of `than`."""
    volume, affine = read_nifti(path, hint, grid[0])
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(grid[0]) - 1)
    places, expected = (nib.affines.apply_affine(one, corners) for one in (affine, grid[1]))
    shift = np.linalg.norm(places - expected, axis=1).max()
    apart = shift / nib.affines.voxel_sizes(grid[1]).min()
    if not apart <= SHIFT:
        axes = ["".join(nib.aff2axcodes(one)) for one in (affine, grid[1])]
        found = f"axes {axes[0]} against {axes[1]}, up to {apart:.3g} voxels apart"
        raise InputError(f"{path} is on another grid than {than}: {found}. Resample it.")
    return volume


def atlases_of(rois: str) -> list[str]:
    """Return the atlases of the folder `roi` that hold the regions asked for, each once.

    Parameters
    ----------
    rois : str
        As in `read_regions`.
    """
    return list(dict.fromkeys(_atlas_of(part.strip()) for part in rois.split("+")))


def _atlas_of(part: str) -> str:
    """Return the atlas of one part of `rois`: the paper's groups are of Kastner2015."""
    named, colon, _ = part.partition(":")
    grouped = {name.strip() for name in named.split(",")} <= {*KASTNER_GROUPS, KASTNER.lower()}
    return KASTNER if grouped and not colon else named


def _parse(tree: NsdTree, part: str) -> tuple[str, dict[str, list[int]]]:
    """Return the atlas of one part of `rois`, and the integer labels of each region."""
    atlas, (named, _, chosen) = _atlas_of(part), part.partition(":")
    names = [name.strip() for name in (chosen or named).split(",")]
    if atlas == GENERAL:
        return GENERAL, {GENERAL: [1]}
    if atlas != named:
        groups = {name: KASTNER_GROUPS[name] for name in names if name in KASTNER_GROUPS}
        groups = groups or KASTNER_GROUPS
    elif tree.roi(atlas).exists():
        groups = {name: (name,) for name in names if chosen}
    else:
        unknown = named if chosen else next(name for name in names if name not in KASTNER_GROUPS)
        raise InputError(
            f"rois: {unknown!r} is unknown; give kastner2015, nsdgeneral or some of "
            f"{','.join(KASTNER_GROUPS)}, or an atlas of {tree.rois} "
            f"({', '.join(tree.atlases) or 'none'}), such as streams or streams:ventral,lateral"
        )
    path = tree.labels(atlas)
    with reading(path, "label table", "It is part of NSD's nsddata/freesurfer."):
        rows = [line.split("#")[0].split() for line in path.read_text().splitlines()]
        table = {row[1]: int(row[0]) for row in rows if row and int(row[0]) > 0}
    regions = {}
    for name, parts in groups.items():
        regions[name] = [table[label] for label in parts if label in table]
        if not regions[name]:
            there = ", ".join(table)
            raise InputError(f"rois: {path} has no label {' or '.join(parts)}; it has {there}")
    return atlas, regions or {label: [number] for label, number in table.items()}
