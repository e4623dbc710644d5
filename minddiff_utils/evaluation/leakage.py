"""How close is each test picture to what the decoders were trained on, and does it matter?"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from scipy import stats

from minddiff_utils.datasets import Split
from minddiff_utils.datasets.content import digests, stream_pictures
from minddiff_utils.datasets.subject import Stimuli
from minddiff_utils.decoding.features import read_features
from minddiff_utils.evaluation.metrics import METHODS, METRICS, in_order, unit_rows
from minddiff_utils.io import InputError

MOST = 1000  # training pictures that are compared among themselves
# Near twins: of this many patches a side, fewer than so many differ by more than so many levels.
N_PATCHES = 10
DIFFERENT_PATCHES = 10
DIFFERENT_LEVELS = 24  # of 255, in one of the colours


class Copies(NamedTuple):
    """How many training pictures are exact copies, or near twins, of each test picture.

    All int64 (n_test,): `stimulus_id` in the order of the splits, `exact` (the same pixels) and
    `near` (near twins that are no exact copies).
    """

    stimulus_id: np.ndarray
    exact: np.ndarray
    near: np.ndarray

    @property
    def any(self) -> np.ndarray:
        """Ids of the test pictures that have a copy or near twin."""
        return self.stimulus_id[self.exact + self.near > 0]


def count_copies(stimuli: Stimuli, splits: Sequence[Split]) -> Copies:
    """Count by their pixels the training pictures that a test picture may be recognised from.

    Near twins are pictures of which, shrunk to 10 by 10 patches, fewer than 10 patches differ by
    more than a tenth of the range in one of the colours. Pictures are read once, some at a time.

    Parameters
    ----------
    stimuli : Stimuli
    splits : sequence of Split
        Each test picture is compared with the training pictures of its split.

    Returns
    -------
    Copies
    """
    parts = [part for split in splits for part in (split.train, split.test)]
    ids = np.unique(np.concatenate(parts))
    keys, small = [], []
    for _, pictures in stream_pictures(stimuli, ids):
        keys += digests(pictures)
        small += [_shrunk(picture) for picture in pictures]
    group, small = np.unique(np.array(keys, "S32"), return_inverse=True)[1].ravel(), np.stack(small)
    found = []
    for split in splits:
        train = np.searchsorted(ids, split.train)
        for number, place in zip(split.test, np.searchsorted(ids, split.test), strict=True):
            change = np.abs(small[train] - small[place]).max(axis=-1) > DIFFERENT_LEVELS
            near = change.sum(axis=(1, 2)) < DIFFERENT_PATCHES
            exact = group[train] == group[place]
            found.append((number, exact.sum(), (near & ~exact).sum()))
    return Copies(*np.array(found, np.int64).T)


def _shrunk(picture: np.ndarray) -> np.ndarray:
    """Return the means of the patches of a picture, int16 (10, 10, 3)."""
    image = Image.fromarray(picture).resize((N_PATCHES, N_PATCHES), Image.Resampling.BOX)
    return np.asarray(image, np.int16)


class Overlap(NamedTuple):
    """Distances to the nearest training picture, 1 - cosine of two embeddings.

    `stimulus_id` int64 (n_test,), `distance` float64 (n_test,), `nearest_id` int64 (n_test,) and,
    for comparison, `among_training` float64 (n,): the same for training pictures, each to the
    nearest other one.
    """

    stimulus_id: np.ndarray
    distance: np.ndarray
    nearest_id: np.ndarray
    among_training: np.ndarray


def nearest(rows: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find for each embedding the most similar one among others.

    Parameters
    ----------
    rows : float (n, d)
    others : float (m, d)

    Returns
    -------
    distance : float64 (n,)
        1 - cosine, from 0 to 2.
    place : int64 (n,)
        Which of the others it is.
    """
    if not len(others):
        raise InputError("No embeddings to compare with: a split without training pictures?")
    similarity = unit_rows(rows) @ unit_rows(others).T
    place = similarity.argmax(axis=1)
    return 1 - similarity[np.arange(len(rows)), place], place


def overlap(
    splits: Sequence[Split], features_path: str | Path, family: str = "embedding", seed: int = 0
) -> Overlap:
    """Compare the test pictures of every split with its training pictures.

    Parameters
    ----------
    splits : sequence of Split
    features_path : str or Path
        From `write_features`.
    family : str
        Features with one vector a picture; "embedding" is that of the guide.
    seed : int
        Of the choice among many training pictures, of which at most 1,000 of the first split are
        compared among themselves.

    Returns
    -------
    Overlap
        Test pictures in the order of the splits.
    """
    found = []
    for split in splits:
        test, train = (
            read_features(features_path, family, ids) for ids in (split.test, split.train)
        )
        distance, place = nearest(test, train)
        found.append((split.test, distance, split.train[place]))
    ids = splits[0].train
    if len(ids) > MOST:
        ids = np.random.default_rng(seed).choice(ids, MOST, replace=False)
    rows = unit_rows(read_features(features_path, family, ids))
    similarity = rows @ rows.T
    np.fill_diagonal(similarity, -np.inf)
    parts = (np.concatenate(part) for part in zip(*found, strict=True))
    return Overlap(*parts, 1 - similarity.max(axis=1))


def overlap_trend(
    values: pd.DataFrame, found: Overlap, n_resamples: int = 4999, seed: int = 0
) -> pd.DataFrame:
    """Correlate each method's values with the distance to the nearest training picture.

    Parameters
    ----------
    values : DataFrame
        `method, stimulus_id, metric, value`.
    found : Overlap
    n_resamples : int
        Of the bootstrap over pictures.
    seed : int

    Returns
    -------
    DataFrame
        Methods as rows, metrics as columns: Spearman's correlation with its 95 % percentile
        interval. Below zero: pictures further from the training set come out worse.
    """
    rng = np.random.default_rng(seed)
    n = len(found.stimulus_id)
    draws = rng.integers(0, n, (n_resamples, n))
    rows = {}
    for (method, metric), group in values.groupby(["method", "metric"], sort=False):
        value = group.set_index("stimulus_id")["value"].reindex(found.stimulus_id).to_numpy()
        rows.setdefault(method, {})[METRICS.get(metric, metric)] = _trend(
            value, found.distance, draws
        )
    table = pd.DataFrame.from_dict(rows, orient="index")
    table = table.loc[in_order(table.index, METHODS)]
    table = table.rename(index=METHODS).rename_axis("method")
    table.attrs["note"] = (
        "Spearman's correlation of the score with the distance to the nearest training picture, "
        "and its 95\u00a0% bootstrap interval over pictures. Below zero: pictures further from the "
        "training set come out worse. A dash: fewer than four pictures, or all scores alike."
    )
    return table


def _trend(value: np.ndarray, distance: np.ndarray, draws: np.ndarray) -> str:
    if np.ptp(value) == 0 or len(value) < 4 or not np.isfinite(value).all():
        return "–"
    rho = stats.spearmanr(value, distance).statistic
    x, y = (stats.rankdata(v)[draws] for v in (value, distance))
    x, y = (v - v.mean(axis=1, keepdims=True) for v in (x, y))
    norm = np.sqrt((x * x).sum(1) * (y * y).sum(1))
    # A resample of one and the same picture has no correlation.
    sampled = (x * y).sum(1)[norm > 0] / norm[norm > 0]
    low, high = np.percentile(sampled, [2.5, 97.5])
    return f"{rho:+.2f} [{low:+.2f},\u00a0{high:+.2f}]"
