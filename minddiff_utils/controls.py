"""What would a method reach without the brain? Baselines and permutations to compare with."""

from typing import NamedTuple

import numpy as np

from minddiff_utils.datasets import Subject
from minddiff_utils.files import InputError

__all__ = [
    "PermutationTest",
    "mean_picture",
    "mean_pictures",
    "permutation_test",
    "shuffled_rows",
]

BLOCK = 256  # pictures read at a time


class PermutationTest(NamedTuple):
    """A statistic, its values under the null hypothesis, and how rare it is among them."""

    observed: float
    null: np.ndarray
    p: float


def mean_picture(pictures: np.ndarray) -> np.ndarray:
    """Average of the training pictures, pixel by pixel: a guess that knows nothing of the brain.

    It is blurred, and blur does well on SSIM and PCC, so it shows what those metrics reward.

    Parameters
    ----------
    pictures : uint8 (n, h, w, 3)
        Training pictures; for a leave-one-out split, of that fold alone.

    Returns
    -------
    uint8 (h, w, 3)
    """
    if len(pictures) == 0:
        raise InputError("The mean picture needs at least one training picture; none was given.")
    return np.rint(np.mean(pictures, axis=0, dtype=np.float64)).astype(np.uint8)


def mean_pictures(subject: Subject) -> np.ndarray:
    """Return, for every test picture of every split, the mean of that split's training pictures.

    Pictures are read a block at a time: those of a big recording do not fit into memory.

    Parameters
    ----------
    subject : Subject

    Returns
    -------
    uint8 array, shape (n_test, height, width, 3)
        In the order of the splits and their test stimuli, as decoded features are.
    """
    rows = []
    for split in subject.splits:
        blocks = np.array_split(split.train, -(-len(split.train) // BLOCK))
        total = sum(subject.stimuli.pictures(ids).sum(axis=0, dtype=np.int64) for ids in blocks)
        mean = np.rint(total / len(split.train)).astype(np.uint8)
        rows.append(np.repeat(mean[None], len(split.test), axis=0))
    return np.concatenate(rows)


def permutation_test(
    similarity: np.ndarray, n_permutations: int = 9999, seed: int = 0
) -> PermutationTest:
    """Test whether reconstructions are closer to their own pictures than to others.

    The statistic is the mean similarity of matched pairs (the diagonal). Under the null
    hypothesis the reconstructions carry no information about *which* picture was seen, so every
    assignment of reconstructions to pictures is equally likely. A method that draws the same
    pleasant picture every time gets p = 1, however high its similarity.

    Parameters
    ----------
    similarity : float (n, n)
        Row i: similarity of reconstruction i to each picture that was seen.
    n_permutations : int
        Random assignments.
    seed : int
        Same seed, same null distribution.

    Returns
    -------
    PermutationTest
        `observed`, `null` float64 (n_permutations,), and the one-sided
        `p = (1 + #{null >= observed}) / (1 + n_permutations)`.

    Raises
    ------
    InputError
        If the matrix is not square, has fewer than two pictures, or holds a NaN.
    """
    similarity = np.asarray(similarity, dtype=np.float64)
    n = len(similarity)
    if similarity.shape != (n, n) or n < 2 or not np.isfinite(similarity).all():
        raise InputError(
            f"The permutation test needs a finite square matrix of at least two pictures, not "
            f"{similarity.shape} with {np.sum(~np.isfinite(similarity))} non-finite values."
        )
    rng = np.random.default_rng(seed)
    rows = np.arange(n)
    null = np.array([similarity[rows, rng.permutation(n)].mean() for _ in range(n_permutations)])
    observed = np.trace(similarity) / n
    # Sums in another order differ in the last digit: an assignment equal to the observed counts.
    as_large = np.sum(null >= observed - 1e-12 * max(1.0, np.abs(similarity).max()))
    return PermutationTest(float(observed), null, float((1 + as_large) / (1 + n_permutations)))


def shuffled_rows(n: int, rng: np.random.Generator) -> np.ndarray:
    """Random order of n rows in which no row keeps its place (a uniform random derangement).

    For the control of shuffled training responses: every stimulus gets another one's response.

    Parameters
    ----------
    n : int
        Number of rows, at least 2.
    rng : numpy Generator

    Returns
    -------
    int64 (n,)
    """
    if n < 2:
        raise InputError(f"{n} rows cannot be shuffled: at least 2 are needed.")
    while True:  # a random permutation has no fixed point with probability 1/e: 2.7 tries
        order = rng.permutation(n)
        if not np.any(order == np.arange(n)):
            return order
