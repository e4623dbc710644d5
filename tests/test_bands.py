"""Banded ridge regression against himalaya, and where the answer is known."""

import dataclasses

import numpy as np
import pytest
from himalaya.kernel_ridge import MultipleKernelRidgeCV
from himalaya.scoring import r2_score
from sklearn.model_selection import PredefinedSplit
from test_decoding import recording, world  # noqa: F401

from minddiff_utils.datasets import prepare_fold
from minddiff_utils.decoding.bands import Bands, band_kernels, decode_banded, draw_shares
from minddiff_utils.decoding.decode import training_design
from minddiff_utils.decoding.decoders import PENALTIES, Method, fit_family
from minddiff_utils.decoding.features import read_features
from minddiff_utils.decoding.folds import deal_folds
from minddiff_utils.io import InputError


def two_bands(n=60, n_test=20, n_targets=12, seed=0):
    """Kernels of two bands of voxels; the first half of the targets follow the first band."""
    rng = np.random.default_rng(seed)
    x = [rng.standard_normal((n + n_test, k)).astype(np.float32) for k in (30, 40)]
    y = [part @ rng.standard_normal((part.shape[1], n_targets // 2)) for part in x]
    y = np.concatenate(y, 1) + 2 * rng.standard_normal((n + n_test, n_targets))
    y = (y - y[:n].mean(0)).astype(np.float32)
    x = [part - part[:n].mean(0) for part in x]
    x = [part / np.sqrt(np.square(part[:n]).sum(1).mean()) for part in x]
    train = np.stack([part[:n] @ part[:n].T for part in x])
    test = np.stack([part[n:] @ part[:n].T for part in x])
    return Bands(["A", "B"], train, test, np.array([0.5, 0.5])), y[:n], y[n:]


def test_predictions_are_himalayas():
    bands, y, _ = two_bands()
    shares = draw_shares(bands, 6)
    model = MultipleKernelRidgeCV(
        kernels="precomputed",
        solver="random_search",
        solver_params={
            "n_iter": shares.astype(np.float32),
            "alphas": PENALTIES.astype(np.float32),
            "score_func": r2_score,
            "progress_bar": False,
        },
        cv=PredefinedSplit(deal_folds(np.arange(60))),
    ).fit(bands.train, y)
    found = decode_banded(bands, y, np.arange(60), deal_folds(np.arange(60)), shares=shares)
    np.testing.assert_allclose(found, model.predict(bands.test), atol=2e-3 * np.abs(y).max())


def test_each_target_takes_the_band_that_it_follows():
    bands, y, true = two_bands(n=150, n_test=100)
    stimulus, folds = np.arange(150), deal_folds(np.arange(150))
    found, plain = (decode_banded(bands, y, stimulus, folds, draw_shares(bands, n)) for n in (5, 1))
    error = [np.square(part - true).mean() for part in (found, plain)]
    assert error[0] < error[1]


def test_first_share_is_the_default_decoder(world):  # noqa: F811
    features, _, subject = world
    odd = np.arange(100) % 10 == 0  # in no region
    roi = {name: mask & ~odd for name, mask in subject.roi.items()}
    subject = dataclasses.replace(subject, roi=roi)
    split = subject.splits[0]
    fold = prepare_fold(subject, split)
    ids, design = training_design(subject, split, fold)
    y = read_features(features, "z", ids).reshape(len(ids), -1)
    bands = band_kernels(subject, design, fold.test_x)
    assert bands.names == ["A", "B", "rest"]
    found = decode_banded(bands, y, design.stimulus, design.folds, shares=draw_shares(bands, 1))
    wanted = fit_family(design, y, "z", Method(target_components=0, rescale_z="none"))[0].predict(
        fold.test_x
    )
    np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_shares_are_drawn_and_add_up():
    bands = two_bands()[0]
    shares = draw_shares(bands, 9)
    np.testing.assert_allclose(shares.sum(1), 1)
    np.testing.assert_array_equal(shares, draw_shares(bands, 9))
    with pytest.raises(InputError, match="n=0"):
        draw_shares(bands, 0)
