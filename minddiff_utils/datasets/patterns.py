"""Contrast patterns of 10 by 10 patches, drawn as the phantom's world draws them."""

import numpy as np

SIZE = 64  # px, side of the picture
N_PATCHES = 10  # patches along each side
PATCH = 6  # px, side of a patch
BORDER = 2  # px around the patches
BACKGROUND = 128  # grey level between and around the patches that are on
ON = 235  # grey level of a patch that is on


def pattern_picture(pattern: np.ndarray) -> np.ndarray:
    """Draw a contrast pattern: light patches on a grey background.

    Parameters
    ----------
    pattern : array of shape (10, 10)
        True (or non-zero) where a patch is on; row 0 is the top.

    Returns
    -------
    uint8 array of shape (64, 64, 3)

    Raises
    ------
    ValueError
        If `pattern` has another shape.
    """
    pattern = np.asarray(pattern)
    if pattern.shape != (N_PATCHES, N_PATCHES):
        raise ValueError(f"pattern has shape {pattern.shape}; expected {(N_PATCHES, N_PATCHES)}")
    grey = np.full((SIZE, SIZE), BACKGROUND, np.uint8)
    inside = slice(BORDER, BORDER + N_PATCHES * PATCH)
    patches = np.where(pattern.astype(bool), ON, BACKGROUND).astype(np.uint8)
    grey[inside, inside] = patches.repeat(PATCH, axis=0).repeat(PATCH, axis=1)
    return np.repeat(grey[:, :, None], 3, axis=2)
