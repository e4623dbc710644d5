"""Which region knows what: decoding from one region alone, and from all voxels but its own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from minddiff_utils.datasets import Split, Subject, prepare_fold
from minddiff_utils.decoders import PENALTIES
from minddiff_utils.decoding import correlations, voxel_weights
from minddiff_utils.features import families, read_features
from minddiff_utils.ridge import RidgePath

__all__ = ["region_accuracies"]

# Every second penalty: mean accuracies need no finer choice.
COARSE = PENALTIES[::2]


class _Kernel(NamedTuple):
    """Products of responses over some voxels, and their number, each counted by its weight.

    `train` float32 (n_rows, n_rows), `test` float32 (n_test, n_rows).
    """

    train: np.ndarray
    test: np.ndarray
    size: float

    def without(self, other: "_Kernel") -> "_Kernel":
        """Take some of the voxels away."""
        return _Kernel(self.train - other.train, self.test - other.test, self.size - other.size)


def region_accuracies(
    subject: Subject,
    features_path: str | Path,
    *,
    names: Sequence[str] = ("z", "c", "block_1", "block_6"),
    n_targets: int = 150,
    n_folds: int = 3,
    seed: int = 0,
) -> pd.DataFrame:
    """Decode a sample of each family's values from each region, and from all but the region.

    Ridge regression sees voxels only through their products, summed over voxels. So the matrix of
    products of all voxels but a region's is that of all less that of the region.

    Parameters
    ----------
    subject : Subject
    features_path : str or Path
    names : sequence of str
        Families; those that the file lacks are left out.
    n_targets : int
        Values of each family, drawn at random among those that vary.
    n_folds : int
        Folds that choose each value's penalty, among five.
    seed : int

    Returns
    -------
    DataFrame
        `family`, `roi`, `voxels` ("alone", "without" the region, or "all" with `roi` ""),
        `value` (its place in the family) and `correlation` over the test stimuli: one row each.
    """
    names = [name for name in names if name in families(features_path)]
    chosen = _sample(features_path, names, subject.splits[0], n_targets, seed)
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    true = []
    bar = tqdm(total=len(subject.splits) * (2 * len(subject.roi) + 1), desc="regions")
    for split in subject.splits:
        true.append(_values(features_path, chosen, split.test))
        y = _values(features_path, chosen, split.train)
        for key, kernel, stimulus in _kernels(subject, split):
            found.setdefault(key, []).append(_decode(kernel, y, n_folds, stimulus))
            bar.update()
    bar.close()
    family = np.repeat(names, [len(chosen[name]) for name in names])
    value = np.concatenate([chosen[name] for name in names])
    frames = []
    for (roi, voxels), parts in found.items():
        r = correlations(np.concatenate(true), np.concatenate(parts))
        frames.append({"family": family, "roi": roi, "voxels": voxels, "value": value})
        frames[-1]["correlation"] = r
    return pd.concat([pd.DataFrame(frame) for frame in frames], ignore_index=True)


def _sample(
    path: str | Path, names: Sequence[str], split: Split, n: int, seed: int
) -> dict[str, np.ndarray]:
    """Draw values of each family that vary over the training stimuli."""
    rng = np.random.default_rng(seed)
    chosen = {}
    for name in names:
        y = read_features(path, name, split.train)
        y = y.reshape(len(y), -1)
        varied = np.flatnonzero(y.std(0) > 1e-6 * np.maximum(1, np.abs(y.mean(0))))
        chosen[name] = np.sort(rng.choice(varied, min(n, len(varied)), replace=False))
    return chosen


def _values(path: str | Path, chosen: Mapping[str, np.ndarray], ids: np.ndarray) -> np.ndarray:
    """Read the drawn values of all families side by side."""
    parts = [
        read_features(path, name, ids).reshape(len(ids), -1)[:, places]
        for name, places in chosen.items()
    ]
    return np.concatenate(parts, axis=1)


def _kernels(subject: Subject, split: Split):
    """Yield (region, which voxels), the kernel, and the stimulus of each row, from 0."""
    fold, weights = prepare_fold(subject, split), voxel_weights(subject, split)
    order = np.argsort(split.train)
    stimulus = order[np.searchsorted(split.train[order], fold.train_id)]
    centre = fold.train_x.mean(0)
    train, test = (fold.train_x - centre) * weights, (fold.test_x - centre) * weights

    def kernel(voxels: np.ndarray | slice) -> _Kernel:
        part = train[:, voxels]
        size = float(np.square(weights[voxels]).sum())
        return _Kernel(part @ part.T, test[:, voxels] @ part.T, size)

    whole = kernel(slice(None))
    yield ("", "all"), whole, stimulus
    for roi, mask in subject.roi.items():
        alone = kernel(mask)
        yield (roi, "alone"), alone, stimulus
        if not mask.all():
            yield (roi, "without"), whole.without(alone), stimulus


def _decode(kernel: _Kernel, y: np.ndarray, n_folds: int, stimulus: np.ndarray) -> np.ndarray:
    mean = np.average(y, axis=0, weights=np.bincount(stimulus))
    path = RidgePath(None, kernel.size * COARSE, n_folds, stimulus, kernel=kernel.train)
    choice = path.scores(y - mean)[0].argmax(0)
    return kernel.test @ path.dual(y - mean, choice) + mean
