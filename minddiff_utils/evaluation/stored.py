"""Pictures that took hours and were made once: they enter the tables where they still follow."""

from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np

SAME = 1e-3  # of the spread of statistics: what rounding leaves
DEFAULT_WAY = "guided pass"


def stored_pictures(
    path: str | Path, decoded: Mapping[str, np.ndarray]
) -> tuple[np.ndarray | None, str]:
    """Return what `studies.stored.store_pictures` kept, if it follows from these decoded features.

    Parameters
    ----------
    path : str or Path
    decoded : mapping of str to array, shape (n, …)
        Of this run. Rounding of another processor is no difference.

    Returns
    -------
    pictures : uint8 array, shape (n, h, w, 3), or None
    note : str
        How they were made, or why there are none.
    """
    if not Path(path).is_file():
        return None, "No pictures of Algorithm 1 are stored for this recording."
    with h5py.File(path, "r") as file:
        ids = set(file["stimulus_id"][:].tolist())
        if ids < set(np.asarray(decoded["stimulus_id"]).tolist()):
            n = f"{len(ids)} of {len(decoded['stimulus_id'])}"
            return None, f"Of the pictures of Algorithm 1, {n} are stored yet: too few for a row."
        statistics, ours = file["statistics"][:], decoded_statistics(decoded)
        same = np.array_equal(file["stimulus_id"][:], decoded["stimulus_id"])
        same &= statistics.shape == ours.shape  # as many blocks
        if not same or not np.allclose(statistics, ours, rtol=0, atol=SAME * statistics.std()):
            return None, "The stored pictures of Algorithm 1 follow from other decoded features."
        return file["pictures"][:], f"Stored, not made here: {file.attrs['about']}"


def decoded_statistics(decoded: Mapping[str, np.ndarray]) -> np.ndarray:
    """Mean and standard deviation of each picture's decoded values; float32 (n, n_names, 2)."""
    names = sorted(name for name in decoded if name in ("z", "c") or name.startswith("block_"))
    found = []
    for name in names:
        values = decoded[name].reshape(len(decoded[name]), -1).astype(np.float64)
        found.append(np.stack([np.nanmean(values, 1), np.nanstd(values, 1)], axis=1))
    return np.stack(found, axis=1).astype(np.float32)
