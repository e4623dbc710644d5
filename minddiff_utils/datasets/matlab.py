"""MATLAB files, with one clear error for whatever is wrong with them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from minddiff_utils.datasets.reading import reading
from minddiff_utils.io import InputError


def read_matlab(path: str | Path, names: Sequence[str], hint: str) -> dict[str, np.ndarray]:
    """Read variables of a MATLAB file (up to version 7).

    Parameters
    ----------
    path : str or Path
    names : sequence of str
        The variables that must be there.
    hint : str
        A sentence on where to get the file, for error messages.

    Returns
    -------
    dict of str to array

    Raises
    ------
    InputError
        If the file is missing or damaged, or lacks a variable.
    """
    from scipy.io import loadmat

    with reading(Path(path), "MATLAB file", hint):
        content = loadmat(path, variable_names=list(names))
    missing = [name for name in names if name not in content]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}. {hint}")
    return {name: content[name] for name in names}
