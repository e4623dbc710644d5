"""Early and higher visual areas: what regions are called in atlases, and which is which."""

from collections.abc import Mapping

import numpy as np

__all__ = ["EARLY_AREAS", "HIGHER_AREAS", "area_kind", "area_masks"]

# Names of areas that see the picture itself begin so; all others see what is in it. Wider than
# `peers.EARLY`, the regions that another paper decoded `z` from.
EARLY = ("V1", "V2", "V3", "V4", "hV4", "early")
EARLY_AREAS, HIGHER_AREAS = "early areas", "higher areas"


def area_kind(name: str) -> str:
    """Return `EARLY_AREAS` or `HIGHER_AREAS`, by the name of a region."""
    return EARLY_AREAS if name.startswith(EARLY) else HIGHER_AREAS


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
    kinds: dict[str, list[np.ndarray]] = {EARLY_AREAS: [], HIGHER_AREAS: []}
    for name, mask in roi.items():
        kinds[area_kind(name)].append(mask)
    if not all(kinds.values()):
        return {}
    return {kind: np.any(part, axis=0) for kind, part in kinds.items()}
