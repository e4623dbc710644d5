"""Can a reconstruction tell which picture was seen? Identification, with its chance level."""

from collections.abc import Callable, Mapping, Sequence
from math import comb

import numpy as np
import pandas as pd

from minddiff_utils.datasets.subject import Stimuli
from minddiff_utils.evaluation.metrics import check_rows, unit_rows
from minddiff_utils.evaluation.statistics import hit_interval
from minddiff_utils.evaluation.tables import summary_table
from minddiff_utils.io import InputError


def similarity_matrix(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Cosine similarity of every predicted row (n, d) with every true row (n, d): float64 (n, n).

    Row i is reconstruction i; its own picture is on the diagonal.
    """
    check_rows(predicted, true)
    return unit_rows(predicted) @ unit_rows(true).T


def identification_accuracy(predicted: np.ndarray, true: np.ndarray, n_way: int = 2) -> np.ndarray:
    """Probability that a reconstruction is matched with its own picture among `n_way` candidates.

    The candidates are the picture that was seen and `n_way - 1` others drawn at random, without
    repetition, from the other pictures; the one with the largest cosine wins. The expectation
    over all draws is computed exactly, so there is no sampling noise. With `w` other pictures less
    similar than the right one, `e` equally similar (a tie is drawn by lot) and `k = n_way - 1`,

        P = [C(w + e + 1, k + 1) - C(w, k + 1)] / [(e + 1) C(n - 1, k)]

    Parameters
    ----------
    predicted, true : float (n, d)
        Embeddings of the reconstructions and of the pictures seen, in the same order.
    n_way : int
        Number of candidates, 2 to n. Chance is `1 / n_way`.

    Returns
    -------
    float64 (n,)
        Between 0 and 1 for every picture; NaN where its embedding is not finite.
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


def embed_stimuli(
    stimuli: Stimuli,
    ids: Sequence[int],
    embed: Callable[[np.ndarray], np.ndarray],
    size: int,
    block: int = 256,
) -> np.ndarray:
    """Embed pictures of a recording a block at a time, for example as extra candidates.

    Parameters
    ----------
    stimuli : Stimuli
    ids : sequence of n int
        May be empty.
    embed : function from uint8 (n, h, w, 3) to float (n, d)
    size : int
        The width d, needed where there are no pictures.
    block : int
        Pictures in memory at a time.

    Returns
    -------
    float64 (n, d)
    """
    starts = range(0, len(ids), block)
    parts = [embed(stimuli.pictures(ids[start : start + block])) for start in starts]
    return np.concatenate([np.zeros((0, size)), *parts])


def pairwise_identification(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    r"""Two-alternative forced choice as the Kamitani laboratory's bdpy defines it.

    Every other picture is the alternative once. With the Pearson correlation :math:`r_{ij}` over
    the features between prediction i and picture j,

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
    kept = ~(np.isnan(predicted).any(axis=0) | np.isnan(true).any(axis=0))
    rows = [np.asarray(values, np.float64)[:, kept] for values in (predicted, true)]
    centred = [values - values.mean(axis=1, keepdims=True) for values in rows]
    r = unit_rows(centred[0]) @ unit_rows(centred[1]).T
    flat = [np.ptp(values, axis=1) == 0 for values in rows]
    r[flat[0]], r[:, flat[1]] = np.nan, np.nan
    own = np.diag(r)[:, None]
    with np.errstate(invalid="ignore"):
        right = (r < own).sum(axis=1) / (np.isfinite(r).sum(axis=1) - 1)
    return np.where(np.isfinite(own[:, 0]), right, np.nan)


def zero_shot_accuracy(
    predicted: np.ndarray, true: np.ndarray, extra: np.ndarray, ks: Sequence[int]
) -> np.ndarray:
    r"""Probability that the right picture is among the `k` most similar of all candidates.

    Candidates are the n test pictures and m more, by cosine. With `w` candidates more similar than
    the right one and `e` equally similar (a tie is drawn by lot),

    .. math:: P = \min(1, \max(0, \tfrac{k - w}{e + 1})) .

    Parameters
    ----------
    predicted, true : float (n, d)
        Embeddings of the reconstructions and of the pictures seen, in the same order.
    extra : float (m, d)
        Embeddings of the extra candidates, none of which was seen in the test; m may be 0.
    ks : sequence of int
        From 1 to n + m.

    Returns
    -------
    float64 (n, len(ks))
        Chance is `k / (n + m)`. NaN where an embedding is not finite.

    Raises
    ------
    InputError
        If the shapes do not fit, or a `k` is out of range.
    """
    check_rows(predicted, true)
    if np.ndim(extra) != 2 or np.shape(extra)[1] != np.shape(true)[1]:
        raise InputError(
            f"Extra candidates need shape (m, {np.shape(true)[1]}), not {np.shape(extra)}. "
            "Embed them with the same model."
        )
    candidates = np.concatenate([true, extra])
    wrong = [k for k in ks if not 1 <= k <= len(candidates)]
    if wrong:
        raise InputError(
            f"k={wrong[0]}: expected 1 to {len(candidates)}, the candidates there are."
        )
    similarity = unit_rows(predicted) @ unit_rows(candidates).T
    own = np.diag(similarity)[:, None]
    more = (similarity > own).sum(axis=1)[:, None]
    ties = np.maximum((similarity == own).sum(axis=1) - 1, 0)[:, None]
    found = np.clip((np.asarray(ks) - more) / (ties + 1), 0, 1)
    return np.where(np.isfinite(own), found, np.nan)


def identification_table(
    embedded: Mapping[str, np.ndarray], true: np.ndarray, n_ways: Sequence[int], seed: int = 0
) -> pd.DataFrame:
    """Identification accuracy of every method, `mean [low, high]` in each cell.

    Parameters
    ----------
    embedded : dict of float (n, d)
        Method -> embeddings of its reconstructions.
    true : float (n, d)
        Embeddings of the pictures seen.
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
    n_ways = sorted({n for n in n_ways if n <= len(true)})
    frame = pd.concat(
        pd.DataFrame(
            {
                "method": method,
                "metric": f"{n_way}-way (chance {1 / n_way:.3f})",
                "value": identification_accuracy(rows, true, n_way),
            }
        )
        for method, rows in embedded.items()
        for n_way in n_ways
    )
    forced = [
        pd.DataFrame(
            {
                "method": method,
                "metric": "2AFC of bdpy (chance 0.500)",
                "value": pairwise_identification(rows, true),
            }
        )
        for method, rows in embedded.items()
    ]
    return _table_of_hits(pd.concat([frame, *forced]), seed)


def _table_of_hits(frame: pd.DataFrame, seed: int) -> pd.DataFrame:
    table = summary_table(frame, seed, hit_interval)
    table.attrs["note"] += (
        " Where no picture was found, or every one, the interval is the exact one of a share. "
        "Candidates are shared between pictures, so the intervals are a guide."
    )
    return table


def zero_shot_table(
    embedded: Mapping[str, np.ndarray],
    true: np.ndarray,
    extra: np.ndarray,
    ks: Sequence[int] = (1, 5, 10),
    seed: int = 0,
) -> pd.DataFrame:
    """Zero-shot identification of every method, `mean [low, high]` in each cell.

    Parameters
    ----------
    embedded : dict of float (n, d)
        Method -> embeddings of its reconstructions.
    true : float (n, d)
    extra : float (m, d)
    ks : sequence of int
        A column each; those of n + m and above, where every guess is right, are left out.
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    DataFrame of str
        One row a method, in the order of `METHODS`.
    """
    n = len(true) + len(extra)
    ks = [k for k in ks if k < n]
    parts = []
    for method, rows in embedded.items():
        found = zero_shot_accuracy(rows, true, extra, ks)
        for k, values in zip(ks, found.T, strict=True):
            metric = f"top {k} of {n} (chance {k / n:.3f})"
            parts.append(pd.DataFrame({"method": method, "metric": metric, "value": values}))
    return _table_of_hits(pd.concat(parts), seed)
