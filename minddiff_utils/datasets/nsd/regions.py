"""Regions of interest: which voxels of NSD's volume belong to which part of an atlas."""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from minddiff_utils.datasets.nsd.tree import NsdTree
from minddiff_utils.datasets.reading import existing, open_image, read_volume
from minddiff_utils.io import InputError

# The groups of the paper, made of the atlas's labels. MT and MST are TO1 and TO2 in some label
# tables and hMT and hMST in others.
KASTNER_GROUPS = {
    "V1": ("V1v", "V1d"),
    "V2": ("V2v", "V2d"),
    "V3": ("V3v", "V3d"),
    "V3ab": ("V3A", "V3B"),
    "hV4": ("hV4",),
    "VO": ("VO1", "VO2"),
    "PHC": ("PHC1", "PHC2"),
    "MT": ("TO1", "MT", "hMT"),
    "MST": ("TO2", "MST", "hMST"),
    "LO": ("LO1", "LO2"),
    "IPS": ("IPS0", "IPS1", "IPS2", "IPS3", "IPS4", "IPS5"),
}
KASTNER = "Kastner2015"
GENERAL = "nsdgeneral"
ROUNDING = 1e-3  # that labels may be off whole numbers
SHIFT = 0.1  # voxels, that two headers may place a voxel apart; others mean half a voxel or more


@dataclass(frozen=True)
class Regions:
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
    """

    affine: np.ndarray
    shape: tuple[int, int, int]
    ijk: np.ndarray
    roi: dict[str, np.ndarray]


def read_regions(tree: NsdTree, rois: str) -> Regions:
    """Read the regions asked for.

    Parameters
    ----------
    tree : NsdTree
    rois : str
        - "kastner2015": the eleven groups of `KASTNER_GROUPS`; some of them as "V1,V2,hV4";
        - "nsdgeneral": the part of visual cortex that answers reliably, as one region;
        - the name of any atlas in the folder `roi`, such as "streams": each of its labels is a
          region; some of them as "streams:ventral,lateral", by name or number;
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
    masks: dict[str, np.ndarray] = {}
    affine, shape = None, None
    for part in rois.split("+"):
        atlas, groups = _parse(tree, part.strip())
        image = open_image(tree.roi(atlas))
        affine = np.asarray(image.affine) if affine is None else affine
        shape = tuple(image.shape) if shape is None else shape
        if len(shape) != 3:
            raise InputError(f"{tree.roi(atlas)} has shape {shape}; expected three axes")
        volume = _whole(tree.roi(atlas), read_volume(tree.roi(atlas), shape))
        _check_grid(tree.roi(atlas), image, tree.ncsnr)
        for name, labels in (groups or _labels_present(tree, atlas, volume)).items():
            mask = np.isin(volume, labels)
            if not mask.any():
                raise InputError(
                    f"ROI {name} is empty: {tree.roi(atlas)} has no voxel with label "
                    f"{' or '.join(map(str, labels))}. Leave it out of rois."
                )
            masks[f"{atlas}:{name}" if name in masks else name] = mask
    ijk = np.argwhere(np.logical_or.reduce(list(masks.values())))
    roi = {name: mask[tuple(ijk.T)] for name, mask in masks.items()}
    return Regions(affine, shape, ijk, roi)


def _whole(path: Path, volume: np.ndarray) -> np.ndarray:
    """Return labels as integers; what is not a number belongs to no region, as label 0."""
    labels, unknown = np.rint(volume), np.isnan(volume)
    with np.errstate(invalid="ignore"):  # infinity less infinity
        wrong = ~unknown & ~(np.abs(volume - labels) <= ROUNDING)
    if wrong.any():
        raise InputError(
            f"{path}: {int(wrong.sum())} voxels have no whole number as label, such as "
            f"{volume[wrong][0]:g}. Was it resampled? Fetch it again, or make it with "
            "nearest-neighbour interpolation."
        )
    return np.where(unknown, 0, labels).astype(np.int64)


def _check_grid(path: Path, image: nib.Nifti1Image, betas: Path) -> None:
    """Raise InputError if a volume's header puts its voxels elsewhere than that of the betas.

    Both must have the same shape, which is checked where volumes are read.
    """
    grid = open_image(betas)
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in image.shape], [1]), -1).reshape(-1, 4).T
    voxel = np.linalg.norm(grid.affine[:3, :3], axis=0).min()
    apart = np.linalg.norm(((image.affine - grid.affine) @ corners)[:3], axis=0).max() / voxel
    if grid.shape == image.shape and not apart <= SHIFT:
        axes = ["".join(map(str, nib.aff2axcodes(one.affine))) for one in (image, grid)]
        raise InputError(
            f"{path} lies on another grid than {betas.name} of the betas: axes {axes[0]} against "
            f"{axes[1]}, voxels up to {apart:.3g} voxels apart. Regions are not resampled: bring "
            "it to the grid of the betas (nearest neighbour), or mend its header."
        )


def _parse(tree: NsdTree, text: str) -> tuple[str, dict[str, list[int]] | None]:
    """Return the atlas and the integer labels of each region; None stands for all of them."""
    atlas, colon, labels = text.partition(":")
    if colon:
        if not tree.roi(atlas).exists():
            raise _unknown(tree, atlas)
        return atlas, _named(tree, atlas, [name.strip() for name in labels.split(",")])
    if text == GENERAL:
        return GENERAL, {GENERAL: [1]}
    names = list(KASTNER_GROUPS) if text == KASTNER.lower() else text.split(",")
    names = [name.strip() for name in names]
    if len(names) == 1 and names[0] not in KASTNER_GROUPS and tree.roi(text).exists():
        return text, None
    unknown = [name for name in names if name not in KASTNER_GROUPS]
    if unknown:
        raise _unknown(tree, unknown[0])
    return KASTNER, _groups(tree, names)


def _unknown(tree: NsdTree, name: str) -> InputError:
    return InputError(
        f"rois: {name!r} is unknown; give kastner2015, nsdgeneral or some of "
        f"{','.join(KASTNER_GROUPS)}, or an atlas of {tree.rois} "
        f"({', '.join(tree.atlases) or 'none'}), such as streams or streams:ventral,lateral"
    )


def _groups(tree: NsdTree, names: list[str]) -> dict[str, list[int]]:
    """Return the labels of the paper's groups."""
    path = tree.labels(KASTNER)
    table = read_labels(path)
    groups = {}
    for name in names:
        parts = {part.lower() for part in KASTNER_GROUPS[name]}
        groups[name] = [number for number, label in table.items() if label.lower() in parts]
        if not groups[name]:
            raise InputError(
                f"{path} has none of {', '.join(KASTNER_GROUPS[name])}, of which ROI {name} is made"
            )
    return groups


def _named(tree: NsdTree, atlas: str, names: list[str]) -> dict[str, list[int]]:
    """Return the labels of an atlas that were asked for by name or number."""
    if all(name.isdigit() for name in names):
        return {f"{atlas}:{name}": [int(name)] for name in names}
    path = tree.labels(atlas)
    table = {label.lower(): (label, number) for number, label in read_labels(path).items()}
    unknown = [name for name in names if name.lower() not in table]
    if unknown:
        known = ", ".join(label for label, number in table.values() if number > 0)
        raise InputError(f"rois: {path} has no label {unknown[0]!r}; it has {known}")
    found = [table[name.lower()] for name in names]
    return {label: [number] for label, number in found}


def _labels_present(tree: NsdTree, atlas: str, volume: np.ndarray) -> dict[str, list[int]]:
    """Return every label above zero of an atlas that has a voxel."""
    table = read_labels(tree.labels(atlas))
    present = {label: [number] for number, label in table.items() if (volume == number).any()}
    found = {label: numbers for label, numbers in present.items() if numbers[0] > 0}
    if not found:
        raise InputError(
            f"{tree.roi(atlas)} has no voxel with a label of {tree.labels(atlas)}: choose another "
            "atlas in rois"
        )
    return found


def read_labels(path: Path) -> dict[int, str]:
    """Read a FreeSurfer colour table: number, name, and maybe colours."""
    hint = "It is part of NSD's nsddata/freesurfer. Without it, give label numbers: atlas:1,2"
    table = {}
    for line in existing(path, hint).read_text().splitlines():
        parts = line.split()
        if not parts or parts[0].startswith("#"):
            continue
        if len(parts) < 2 or not parts[0].isdigit():
            raise InputError(f"{path}: cannot read {line!r}; expected a number and a name")
        table[int(parts[0])] = parts[1]
    return table
