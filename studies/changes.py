"""Changes of decoded features that no setting of the book makes: where are images lost?

Each is a function of what was decoded, of a file of true features and of the training stimuli, and
looks at nothing of the held-out images but what its name says is true.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np

from minddiff_utils.decoding.features import read_features
from minddiff_utils.evaluation.baselines import true_features
from minddiff_utils.evaluation.metrics import unit_rows

N_NEAREST = 5
CHANGES = ("true", "c_nearest", "c_tokens", "n_blocks", "negative", "guidance_by_spread")

Arrays = Mapping[str, np.ndarray]


def change_decoded(decoded: Arrays, features: Path, train: np.ndarray, change: Mapping) -> dict:
    """Change decoded features.

    Parameters
    ----------
    decoded : mapping of str to array
        As `read_decoded` returns them.
    features : Path
        Of true features.
    train : int array
        Training stimuli.
    change : mapping
        `true`: parts that are true in the place of decoded, of "c", "z" and "structure", with "+"
        between. `c_nearest`: weight of the mean `c` of the five training images
        whose `c` is nearest, in the mixture with the decoded one. `n_blocks`: blocks that stage 2
        follows. Left to the caller are `c_tokens`, "equal" where each token of `c` has the same
        share in its components (see `equal_tokens`); `negative`, weight of the mean training `c`
        beside the empty caption's in guidance by text; and `guidance_by_spread`, by how much the
        guidance scale is higher for the half of images whose decoded `c` is farther from its mean,
        and lower for the others.

    Returns
    -------
    dict
        To call `reconstruct` with.
    """
    changed = dict(decoded)
    if parts := change.get("true"):
        true = true_features(changed, features)
        own = {name for name in changed if name in ("c", "z")}
        of_z = {"evidence_z", "projection_z"}
        structure = set(true) - own - of_z
        wanted = {"c": {"c"}, "z": {"z"} | of_z, "structure": structure}
        names = set().union(*(wanted[part] for part in parts.split("+"))) & set(true)
        changed |= {name: true[name] for name in names}
    if weight := change.get("c_nearest"):
        near = nearest_mean(decoded["c"], read_features(features, "c", train))
        changed["c"] = (1 - weight) * decoded["c"] + weight * near
    last = change.get("n_blocks", 6)
    blocks = {name for name in changed if name.rpartition("_")[2].isdigit()}
    return {
        k: v for k, v in changed.items() if k not in blocks or int(k.rpartition("_")[2]) <= last
    }


def equal_tokens(features: Path, train: np.ndarray, copy: Path) -> np.ndarray:
    """Copy a file of features with each token of `c` divided by its spread over training images.

    Returns
    -------
    float32 array, shape (n_tokens, 1)
        The spreads; 1 for a token that does not change.
    """
    shutil.copy(features, copy)
    spread = np.sqrt(read_features(features, "c", train).var(0).mean(-1, keepdims=True))
    spread = np.where(spread > 1e-6, spread, 1).astype(np.float32)
    with h5py.File(copy, "r+") as file:
        file["c"][...] = file["c"][...] / spread
    return spread


def nearest_mean(decoded: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return the mean `c` of the training images whose `c` correlates best with the decoded one."""
    mean = known.mean(0)
    flat = (unit_rows((values - mean).reshape(len(values), -1)) for values in (decoded, known))
    likeness = np.matmul(next(flat), next(flat).T)
    nearest = np.argsort(-likeness, axis=1)[:, :N_NEAREST]
    return known[nearest].mean(1)
