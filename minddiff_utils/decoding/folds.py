"""Folds of the cross-validation inside the training stimuli."""

import numpy as np

from minddiff_utils.datasets import Subject
from minddiff_utils.io import InputError

FEWEST = 4  # stimuli: two in each of two folds


def assign_folds(
    ids: np.ndarray,
    n_folds: int = 5,
    *,
    groups: np.ndarray | None = None,
    session: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Assign stimuli to folds at random.

    Recordings are often sorted, by kind of picture or by session; consecutive blocks of them would
    be folds of one kind each. The fold of a stimulus follows from the ids and the seed, not from
    the order in which they come.

    Parameters
    ----------
    ids : int array, shape (n_stimuli,)
        Each once.
    n_folds : int
        At most one for every two groups.
    groups : int array, shape (n_stimuli,), optional
        Stimuli of one group share a fold; each is its own group if not given.
    session : int array, shape (n_stimuli,), optional
        In which session each was first seen: every fold gets its share of every session.
    seed : int

    Returns
    -------
    int64 array, shape (n_stimuli,)
        The fold of each stimulus, from 0.

    Raises
    ------
    InputError
        If there are fewer than four groups, or fewer than two folds are asked for.
    """
    _, row, count = np.unique(
        ids if groups is None else groups, return_inverse=True, return_counts=True
    )
    n = len(count)
    if n < FEWEST:
        raise InputError(f"{n} different training stimuli; a decoder needs at least {FEWEST}.")
    if n_folds < 2:
        raise InputError(f"n_folds={n_folds}: expected 2 or more.")
    order = np.random.default_rng(seed).permutation(n)
    if session is not None:
        first = np.full(n, np.max(session))
        np.minimum.at(first, row, session)
        order = order[np.argsort(first[order], kind="stable")]
    fold = np.empty(n, np.int64)
    fold[order] = np.arange(n) % min(n_folds, n // 2)
    return fold[row]


def training_folds(subject: Subject, ids: np.ndarray, n_folds: int = 5) -> np.ndarray:
    """Assign training stimuli of a recording to folds; copies of one picture share a fold.

    Parameters
    ----------
    subject : Subject
    ids : int array, shape (n_stimuli,)
    n_folds : int

    Returns
    -------
    int64 array, shape (n_stimuli,)
        See `assign_folds`.
    """
    trials = np.lexsort((subject.session, subject.stimulus_id))
    first = trials[np.searchsorted(subject.stimulus_id[trials], ids)]
    groups, session = subject.picture_of(ids), subject.session[first]
    return assign_folds(ids, n_folds, groups=groups, session=session)
