"""Can a reconstruction tell which image was seen? Identification, with its chance level."""

from collections.abc import Mapping, Sequence
from math import comb

import numpy as np
import pandas as pd

from minddiff_utils.evaluation.metrics import check_rows, unit_rows
from minddiff_utils.evaluation.statistics import hit_interval
from minddiff_utils.evaluation.tables import summary_table
from minddiff_utils.io import InputError

TOP = (1, 5, 10)  # zero-shot identification: among the first so many
SAME = 1e-6  # cosines closer than this are a tie: equal pictures in batches of two sizes round so


def similarity_matrix(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Cosine similarity of every predicted row (n, d) with every true row (n, d): float64 (n, n).

    Row i is reconstruction i; its own image is on the diagonal.
    """
    check_rows(predicted, true)
    return unit_rows(predicted) @ unit_rows(true).T


def identification_accuracy(predicted: np.ndarray, true: np.ndarray, n_way: int = 2) -> np.ndarray:
    """Probability that a reconstruction is matched with its own image among `n_way` candidates.

    The candidates are the stimulus and `n_way - 1` others drawn at random, without
    repetition, from the other images; the one with the largest cosine wins. The expectation
    over all draws is computed exactly, so there is no sampling noise. With `w` other images less
    similar than the right one, `e` equally similar (a tie is drawn by lot) and `k = n_way - 1`,

        P = [C(w + e + 1, k + 1) - C(w, k + 1)] / [(e + 1) C(n - 1, k)]

    Parameters
    ----------
    predicted, true : float (n, d)
        Embeddings of the reconstructions and of the images seen, in the same order.
    n_way : int
        Number of candidates, 2 to n. Chance is `1 / n_way`.

    Returns
    -------
    float64 (n,)
        Between 0 and 1 for every image; NaN where its embedding is not finite.
    """
    similarity = similarity_matrix(predicted, true)
    n, k = len(similarity), n_way - 1
    if not 2 <= n_way <= n:
        raise InputError(f"n_way is {n_way}: it must be between 2 and the {n} pictures there are.")
    own = np.diag(similarity)[:, None]
    less = (similarity < own).sum(axis=1)
    equal = np.maximum((similarity == own).sum(axis=1) - 1, 0)  # NaN does not equal itself
    values = [
        (comb(w + e + 1, k + 1) - comb(w, k + 1)) / ((e + 1) * comb(n - 1, k))
        for w, e in zip(less.tolist(), equal.tolist(), strict=True)
    ]
    return np.where(np.isfinite(own[:, 0]), values, np.nan)


def pairwise_identification(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    r"""Two-alternative forced choice as the Kamitani laboratory's bdpy defines it.

    Every other image is the alternative once. With the Pearson correlation :math:`r_{ij}` over
    the features between prediction i and image j,

    .. math:: P_i = \frac{1}{n - 1} \sum_{j \ne i} [\, r_{ij} < r_{ii} \,] .

    A tie counts as wrong, and correlation, unlike cosine, takes each row's mean out first: the two
    differences from `identification_accuracy` with `n_way=2`. Features that are NaN in any row
    are left out, and so are alternatives without a correlation (a constant row).

    Parameters
    ----------
    predicted, true : float (n, d)
        In the same order.

    Returns
    -------
    float64 (n,)
        Between 0 and 1; chance is 0.5. NaN where the prediction has no correlation.
    """
    check_rows(predicted, true)
    kept = np.isfinite(predicted).all(axis=0) & np.isfinite(true).all(axis=0)
    x, y = (np.asarray(values, np.float64)[:, kept] for values in (predicted, true))
    x_unit, y_unit = (unit_rows(values - values.mean(1, keepdims=True)) for values in (x, y))
    r = x_unit @ y_unit.T
    r[np.ptp(x, axis=1) == 0], r[:, np.ptp(y, axis=1) == 0] = np.nan, np.nan
    own = np.diag(r)[:, None]
    right = (r < own).sum(axis=1) / (np.isfinite(r).sum(axis=1) - 1)
    return np.where(np.isfinite(own[:, 0]), right, np.nan)


def zero_shot_accuracy(
    predicted: np.ndarray, true: np.ndarray, extra: np.ndarray, ks: Sequence[int]
) -> np.ndarray:
    r"""Probability that the right image is among the `k` most similar of all candidates.

    Candidates are the n test images and m more, by cosine. With `w` candidates more similar than
    the right one and `e` equally similar (a tie is drawn by lot),

    .. math:: P = \min(1, \max(0, \tfrac{k - w}{e + 1})) .

    Parameters
    ----------
    predicted, true : float (n, d)
        Embeddings of the reconstructions and of the images seen, in the same order.
    extra : float (m, d)
        Embeddings of the extra candidates, none of which was seen in the test; m may be 0.
    ks : sequence of int
        From 1 to n + m.

    Returns
    -------
    float64 (n, len(ks))
        Chance is `k / (n + m)`. NaN where an embedding is not finite.
    """
    check_rows(predicted, true)
    candidates = np.concatenate([true, extra])
    similarity = unit_rows(predicted) @ unit_rows(candidates).T
    own = np.diag(similarity)[:, None]
    more = (similarity > own).sum(axis=1)[:, None]
    ties = np.maximum((similarity == own).sum(axis=1) - 1, 0)[:, None]  # NaN equals not itself
    found = np.clip((np.asarray(ks) - more) / (ties + 1), 0, 1)
    return np.where(np.isfinite(own), found, np.nan)


def retrieval_accuracy(
    predicted: np.ndarray, true: np.ndarray, n_way: int = 300, n_draws: int = 30, seed: int = 0
) -> np.ndarray:
    """Share of images that are retrieved first among `n_way`, as MindEye reports it.

    `n_way` images are drawn at random, without repetition, `n_draws` times. Forward: of each
    reconstruction, is its own image the nearest of those drawn? Backward: of each image, is its
    own reconstruction? By cosine; a tie is no hit. Scotti et al. 2023 do this with embeddings that
    are predicted from the responses; here it is the embedding of the reconstruction.

    Parameters
    ----------
    predicted, true : float (n, d)
        Embeddings of the reconstructions and of the images seen, in the same order.
    n_way : int
        At most n; chance is `1 / n_way`.
    n_draws : int
    seed : int

    Returns
    -------
    float64 (n_draws, 2)
        Forward and backward, from 0 to 1.
    """
    similarity = similarity_matrix(predicted, true)
    rng, found = np.random.default_rng(seed), []
    for _ in range(n_draws):
        rows = rng.choice(len(similarity), min(n_way, len(similarity)), replace=False)
        part = similarity[np.ix_(rows, rows)]
        own = np.diag(part).copy()
        np.fill_diagonal(part, -np.inf)
        found.append([np.mean(own > part.max(axis=axis) + SAME) for axis in (1, 0)])
    return np.array(found)


def identification_table(
    embedded: Mapping[str, np.ndarray], true: np.ndarray, n_ways: Sequence[int], seed: int = 0
) -> pd.DataFrame:
    """Identification accuracy of every method, `mean [low, high]` in each cell.

    Parameters
    ----------
    embedded : dict of float (n, d)
        Method -> embeddings of its reconstructions.
    true : float (n, d)
        Embeddings of the images seen.
    n_ways : sequence of int
        Numbers of candidates, a column each; those above n are left out.
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    DataFrame of str
        One row a method, in the order of `METHODS`; the last column but one is
        `pairwise_identification`.
    """
    values = {}
    for method, rows in embedded.items():
        for n_way in sorted({n for n in n_ways if n <= len(true)}):
            found = identification_accuracy(rows, true, n_way)
            values[method, f"{n_way}-way (chance {1 / n_way:.3f})"] = found
        values[method, "2AFC of bdpy (chance 0.500)"] = pairwise_identification(rows, true)
    return _table_of_hits(values, seed)


def zero_shot_table(
    embedded: Mapping[str, np.ndarray], true: np.ndarray, extra: np.ndarray, seed: int = 0
) -> pd.DataFrame:
    """Zero-shot identification of every method, `mean [low, high]` in each cell.

    Parameters
    ----------
    embedded : dict of float (n, d)
        Method -> embeddings of its reconstructions.
    true : float (n, d)
    extra : float (m, d)
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    DataFrame of str
        One row a method, in the order of `METHODS`; a column each for the first 1, 5 and 10, but
        not where every guess is right.
    """
    n, values = len(true) + len(extra), {}
    ks = [k for k in TOP if k < n]
    for method, rows in embedded.items():
        found = zero_shot_accuracy(rows, true, extra, ks)
        for k, column in zip(ks, found.T, strict=True):
            values[method, f"top {k} of {n} (chance {k / n:.3f})"] = column
    return _table_of_hits(values, seed)


def _table_of_hits(values: Mapping[tuple[str, str], np.ndarray], seed: int) -> pd.DataFrame:
    """Table of chances to be right, from those of every image by (method, metric)."""
    frames = {names: pd.DataFrame({"value": column}) for names, column in values.items()}
    frame = pd.concat(frames, names=["method", "metric", "stimulus_id"]).reset_index()
    return summary_table(frame, seed, hit_interval)
