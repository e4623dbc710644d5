"""Early and higher visual areas: what regions are called in atlases, and which is which."""

import re
from collections.abc import Iterable, Mapping

import numpy as np

EARLY_AREAS, HIGHER_AREAS = "early areas", "higher areas"
# What software puts before a name: the atlas, the side, "ROI"; as in lh.V1, L_V1_ROI, LHV1.
BEFORE = re.compile(
    r"^(.*:)?((roi|[lr]h?|left|right)[\W_]+|[lr]h(?=v\d|vp|early)|roi(?=v\d))*", re.I
)
# Areas that answer to edges and colours at one place. VP is the lower half of V3; all three are
# "early" in NSD's atlas `streams` and EarlyVis in BOLD5000, hOc1 to hOc3 in the Julich atlas, and
# LVC, lower visual cortex, in Kamitani's recordings.
FIRST = r"v[123]([vd]|ventral|dorsal)?|vp|early(vis\w*)?|evc|lvc|ba1[78]|hoc[12]|hoc3[vd]"
# Areas that see the picture itself, too, rather than what is in it.
NEXT = r"v3[ab]{1,2}|h?v4([vd]|ventral|dorsal)?|hoc4\w*"


def is_early(name: str, narrow: bool = False) -> bool:
    """Whether a region is an early visual area, by its name.

    Parameters
    ----------
    name : str
        As atlases and recordings have it: "V1", "V1v", "lh.V1", "L_V1_ROI", "ROI_V1", "early".
    narrow : bool
        Only V1, V2 and V3 count, not V3A, V3B and V4.
    """
    known = FIRST if narrow else f"{FIRST}|{NEXT}"
    # After the name may come a side or a kind of file: V1_exvivo, V1-lh.
    return bool(re.fullmatch(rf"({known})([\W_].*)?", BEFORE.sub("", name), re.I))


def area_kind(name: str) -> str:
    """Return `EARLY_AREAS` or `HIGHER_AREAS`, by the name of a region."""
    return EARLY_AREAS if is_early(name) else HIGHER_AREAS


def describe_areas(roi: Mapping[str, np.ndarray]) -> str:
    """Say which regions are taken for early and which for higher areas, by their names."""
    kinds = _by_kind(roi).items()
    return "; ".join(f"{kind}: {', '.join(names) or 'none'}" for kind, names in kinds)


def area_masks(roi: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the voxels of all early areas and of all higher ones, where there are both.

    Parameters
    ----------
    roi : mapping of name to bool array, shape (n_voxels,)

    Returns
    -------
    dict of name to bool array, shape (n_voxels,)
        `EARLY_AREAS` and `HIGHER_AREAS`, or nothing.
    """
    kinds = _by_kind(roi)
    both = kinds.items() if all(kinds.values()) else ()
    return {kind: np.any([roi[name] for name in names], axis=0) for kind, names in both}


def _by_kind(names: Iterable[str]) -> dict[str, list[str]]:
    kinds = (EARLY_AREAS, HIGHER_AREAS)
    return {kind: [name for name in names if area_kind(name) == kind] for kind in kinds}
