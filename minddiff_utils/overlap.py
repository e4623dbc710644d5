"""How close is each test picture to what the decoders were trained on, and does it matter?"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from minddiff_utils.datasets import Split
from minddiff_utils.features import read_features
from minddiff_utils.files import InputError
from minddiff_utils.metrics import METHODS, METRICS, in_order, unit_rows

__all__ = ["Overlap", "nearest", "overlap", "overlap_trend"]

MOST = 1000  # training pictures that are compared among themselves


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
