"""The phantom's cortex: a small volume, its visual areas and their receptive fields.

Each hemisphere is half an ellipsoid's shell. An area is the part of the shell nearest to a seed;
seeds lie as the areas of the Kastner2015 atlas (Wang et al. 2015) lie on a real brain: V1 at the
back, V2 and V3 around it, ventral areas below, dorsal and parietal areas above.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from nibabel.affines import from_matvec

SHAPE = (44, 50, 38)  # voxels: left to right, back to front, bottom to top
VOXEL_MM = 1.8

# The atlas's names in the order of its integer labels, as in NSD's Kastner2015.mgz.ctab.
KASTNER = """Unknown V1v V1d V2v V2d V3v V3d hV4 VO1 VO2 PHC1 PHC2 TO2 TO1 LO2 LO1 V3B V3A
    IPS0 IPS1 IPS2 IPS3 IPS4 IPS5 SPL1 FEF""".split()


def read_table(name: str) -> pd.DataFrame:
    """Read a table of the brain's numbers, with its first column as the index."""
    return pd.read_csv(Path(__file__).with_name(name), index_col=0, keep_default_na=False)


# Place of each area on a hemisphere and law of its receptive fields. `tilt` is the angle from the
# back pole and `turn` that from the lateral direction towards the top (negative: bottom), both in
# degrees; `radius` is the patch's radius in degrees of arc. A receptive field has the standard
# deviation `width` + `slope` x eccentricity, in pixels of the 64-pixel picture. `field` is the part
# of the opposite half field that is covered.
AREAS = read_table("areas.csv")
OUTSIDE = pd.Series({"width": 9.0, "slope": 0.2, "field": "half"})  # of all areas
FIELD_ANGLES = {"half": (-85, 85), "upper": (2, 88), "lower": (-88, -2)}  # degrees above horizon
MAX_ECCENTRICITY = 43.0  # px; a corner of the picture is 45 px from fixation


def affine() -> np.ndarray:
    """Return the 4 x 4 matrix from voxel indices to millimetres (right, anterior, superior)."""
    return from_matvec(VOXEL_MM * np.eye(3), -VOXEL_MM * (np.array(SHAPE) - 1) / 2)


def anatomy(rng: np.random.Generator, size: float = 1.0) -> tuple[np.ndarray, ...]:
    """Grow one subject's visual cortex.

    Parameters
    ----------
    rng : numpy.random.Generator
        Moves the seeds and the receptive fields, so that subjects differ.
    size : float
        Scales the extent of all areas; 1 gives about 7,500 voxels.

    Returns
    -------
    ijk : int array of shape (n_voxels, 3)
        Place in the volume of each voxel that responds to pictures.
    area : str array of shape (n_voxels,)
        Name of the area, "" for a voxel of `nsdgeneral` that is in no area.
    prf : float array of shape (n_voxels, 3)
        Centre x, y from the top left corner and standard deviation of the population receptive
        field; px of the 64-pixel picture.
    """
    ijk, side, direction = _shell()
    tilt, turn, radius = AREAS[["tilt", "turn", "radius"]].to_numpy(float).T
    moves = rng.normal(0, (1.2, 1.5), (len(AREAS), 2)).T
    tilt, turn = np.radians((tilt, turn) + moves)
    # Unit vectors (right, front, up) of places on the right hemisphere.
    seeds = [np.sin(tilt) * np.cos(turn), -np.cos(tilt), np.sin(tilt) * np.sin(turn)]
    distance = np.degrees(np.arccos(np.clip(direction @ np.array(seeds), -1, 1))) - radius * size
    margin = distance.min(axis=1)
    area = np.where(margin < 0, np.array(AREAS.index, str)[distance.argmin(axis=1)], "")
    keep = margin < 1.2
    prf = _receptive_fields(side[keep], direction[keep], area[keep], rng)
    return ijk[keep], area[keep], prf


def _shell() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return voxels of the shell (n, 3), side (-1 left, 1 right) and unit direction (n, 3).

    Directions of the left hemisphere are mirrored to the right.
    """
    ijk = np.indices(SHAPE).reshape(3, -1).T
    centred = ijk - (np.array(SHAPE) - 1) / 2
    # The hemispheres stand one voxel apart; the axes leave one empty voxel at the border.
    scaled = centred / (np.array(SHAPE) / 2 - 1)
    radius = np.linalg.norm(scaled, axis=1)
    shell = (radius <= 1) & (radius > 0.80) & (np.abs(centred[:, 0]) > 0.9)
    side, direction = np.sign(centred[shell, 0]), scaled[shell] / radius[shell, None]
    direction[:, 0] *= side
    return ijk[shell], side.astype(int), direction


def _receptive_fields(
    side: np.ndarray, direction: np.ndarray, area: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return centres and widths (n, 3): each area of each hemisphere maps the opposite field.

    Along an area eccentricity grows with the distance from the back pole, across it the polar
    angle turns. Ranks make the map cover the field evenly whatever the shape of the patch.
    """
    prf = np.empty((len(area), 3))
    for name in np.unique(area):
        shape = AREAS.loc[name] if name else OUTSIDE
        for sign in (-1, 1):
            here = np.flatnonzero((area == name) & (side == sign))
            right, along, up = direction[here].T  # along: from the back pole forwards
            across = np.arctan2(up, right)
            u = _rank(along + 0.05 * rng.normal(size=here.size))
            v = _rank(across + 0.05 * rng.normal(size=here.size))
            eccentricity = MAX_ECCENTRICITY * u**0.62
            low, high = FIELD_ANGLES[shape.field]
            angle = np.radians(low + (high - low) * v)
            # The left hemisphere sees the right half of the field, and the other way round.
            x, y = 32 - sign * eccentricity * np.cos(angle), 32 - eccentricity * np.sin(angle)
            width = shape.width + shape.slope * eccentricity
            prf[here] = np.transpose([x, y, width * np.exp(rng.normal(0, 0.15, here.size))])
    return prf


def _rank(values: np.ndarray) -> np.ndarray:
    """Return the ranks of `values`, spread evenly over 0 to 1."""
    return (values.argsort().argsort() + 0.5) / len(values)
