"""Ranges of the notebooks' parameters: a value outside is named before anything is computed."""

import math

from minddiff_utils import settings
from minddiff_utils.files import InputError

__all__ = ["CHOICES", "RANGES", "WORDS", "check"]

ANY = math.inf
# Least and most of each number; those of the two stages are `settings.BOUNDS`.
RANGES = {
    **settings.BOUNDS,
    "n_tokens": (0, ANY),
    "n_blocks": (1, ANY),
    "target_components": (0, ANY),
    "n_voxels_z": (1, ANY),
    "n_voxels_c": (1, ANY),
    "n_voxels_structure": (1, ANY),
    "n_components": (1, ANY),
    "n_folds": (2, ANY),
    "n_shuffles": (2, ANY),
    "least_reliability": (1e-6, 1 - 1e-6),
    "most_reliability": (1e-6, 1 - 1e-6),
    "keep_structure": (1e-6, 1),
    "alpha": (1e-12, ANY),
    "rescale_power": (0, 1),
    "early_say": (1e-6, 1),
    "batch": (1, ANY),
    "seed": (0, 2**32 - 1),
    "ssim_size": (0, ANY),
    "blur": (1e-6, 1),
    "seeds": (1, 1000),
    "n_way": (2, ANY),
    "n_extra": (0, ANY),
    "holdouts": (0, ANY),
    "n_gallery": (1, ANY),
    "n_shown": (1, ANY),
}
CHOICES = {
    **settings.CHOICES,
    "decoder": ("ridge", "voxel_selected"),
    "select_by": ("correlation", "r2"),
    "rescale_z": ("none", "global", "target"),
    "panel": ("none", "published", "full"),
    "repetitions": ("average", "keep"),
}
# Texts of words with commas between; none of them is needed.
WORDS = {
    "controls": (
        "ceiling",
        "mean_features",
        "prior",
        "retrieval",
        "blur",
        "takagi",
        "neuraldiffuser",
    ),
    "save_memory": ("attention", "tiling", "checkpointing"),
}


def check(**values: object) -> None:
    """Check parameters of a notebook; names that have no range and no choices are not looked at.

    Parameters
    ----------
    **values
        Parameters by name.

    Raises
    ------
    InputError
        At the first value that is none of its choices, no number or outside its range.
    """
    for name, value in values.items():
        if name in CHOICES and value not in CHOICES[name]:
            wanted = " or ".join(f'"{choice}"' for choice in CHOICES[name])
            raise InputError(f"{name}={value!r}: expected {wanted}.")
        if name in WORDS and not {word.strip() for word in value.split(",")} <= {"", *WORDS[name]}:
            wanted = ", ".join(WORDS[name])
            raise InputError(f"{name}={value!r}: expected any of {wanted}, with commas between.")
        if name in RANGES and not _inside(value, *RANGES[name]):
            raise InputError(f"{name}={value!r}: expected {_in_words(*RANGES[name])}.")


def _inside(value: object, low: float, high: float) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and low <= value <= high


def _in_words(low: float, high: float) -> str:
    return f"{low:g} or more" if high == ANY else f"a value from {low:g} to {high:g}"
