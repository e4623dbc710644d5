"""Banded ridge regression: every region of voxels has a penalty of its own."""

from typing import NamedTuple

import numpy as np

from minddiff_utils.datasets import Subject
from minddiff_utils.decoding.decoders import PENALTIES, Design
from minddiff_utils.decoding.moments import column_moments
from minddiff_utils.decoding.ridge import RidgePath
from minddiff_utils.io import InputError

# Concentrations of the Dirichlet distribution that shares are drawn from: few bands, and many.
CONCENTRATIONS = (0.1, 1.0)
N_SHARES = 21


class Bands(NamedTuple):
    """Products of responses in each band of voxels, divided by their mean square over stimuli.

    `names` of the bands; `train` float32 (n_bands, n_rows, n_rows), `test` float32 (n_bands,
    n_test, n_rows); `share` float64 (n_bands,), that of the mean square in one band, 1 together;
    `penalties` (n_penalties,). With these shares and penalties, the sum over bands is what
    `fit_family` does.
    """

    names: list[str]
    train: np.ndarray
    test: np.ndarray
    share: np.ndarray
    penalties: np.ndarray = PENALTIES


def band_kernels(subject: Subject, design: Design, test_x: np.ndarray) -> Bands:
    """Make a band of each region.

    Parameters
    ----------
    subject : Subject
        A voxel of two regions belongs to the first; those of none are a band together.
    design : Design
        Of all its voxels.
    test_x : float array, shape (n_test, n_voxels)

    Returns
    -------
    Bands
    """
    test_x = (test_x - design.mean_x) * design.scale
    left = np.ones(design.x.shape[1], bool)
    names, train, test = [], [], []
    for name, mask in [*subject.roi.items(), ("rest", left.copy())]:
        voxels = mask & left
        left &= ~mask
        if not voxels.any():
            continue
        names.append(name)
        train.append(design.x[:, voxels] @ design.x[:, voxels].T)
        test.append(test_x[:, voxels] @ design.x[:, voxels].T)
    size = np.array([np.trace(part) / len(part) for part in train])
    scaled = [np.stack(part) / size[:, None, None].astype(np.float32) for part in (train, test)]
    penalties = design.x.shape[1] * PENALTIES / size.sum()
    return Bands(names, *scaled, size / size.sum(), penalties)


def draw_shares(bands: Bands, n: int, seed: int = 0) -> np.ndarray:
    """Draw how much of a say each band has: (n, n_bands), each row 1 together.

    The first row is ridge regression without bands. Dirichlet draws follow, as himalaya's random
    search takes them: in turns with a few bands alone and with all.
    """
    if n < 1:
        raise InputError(f"n={n}: expected 1 or more.")
    rng = np.random.default_rng(seed)
    n_bands = len(bands.share)
    drawn = [
        rng.dirichlet(np.full(n_bands, CONCENTRATIONS[number % len(CONCENTRATIONS)]))
        for number in range(n - 1)
    ]
    return np.array([bands.share, *drawn])


def decode_banded(
    bands: Bands,
    y: np.ndarray,
    stimulus: np.ndarray,
    folds: np.ndarray,
    shares: np.ndarray | None = None,
) -> np.ndarray:
    r"""Decode with the shares :math:`\gamma` and the penalty that each target is best with.

    .. math:: K = \sum_g \gamma_g K_g

    Parameters
    ----------
    bands : Bands
    y : float32 array, shape (n_stimuli, n_targets)
    stimulus : int array, shape (n_rows,)
    folds : int array, shape (n_stimuli,)
        Of the cross-validation, whose R² chooses.
    shares : float array, shape (n, n_bands), optional
        Tried one after the other; `N_SHARES` of `draw_shares` if not given.

    Returns
    -------
    float32 array, shape (n_test, n_targets)

    References
    ----------
    Dupré la Tour et al. 2022, Feature-space selection with banded ridge regression (NeuroImage).
    """
    shares = draw_shares(bands, N_SHARES) if shares is None else shares
    mean = column_moments(y, np.bincount(stimulus))[0].astype(np.float32)
    y = y - mean
    best = np.full(y.shape[1], -np.inf, np.float32)
    out = np.empty((bands.test.shape[1], y.shape[1]), np.float32)
    for share in shares.astype(np.float32):
        train, test = (np.tensordot(share, part, 1) for part in (bands.train, bands.test))
        path = RidgePath(None, bands.penalties, folds, stimulus, kernel=train)
        score = path.scores(y)[0]
        found = score.max(0)
        better = np.flatnonzero(found > best)
        best[better] = found[better]
        out[:, better] = test @ path.dual(y[:, better], score[:, better].argmax(0))
    return out + mean
