"""Shared ridge regression against himalaya, and against itself by another form."""

import numpy as np
import pytest
from himalaya.kernel_ridge import KernelRidgeCV
from himalaya.ridge import RidgeCV
from himalaya.scoring import correlation_score, r2_score
from sklearn.model_selection import PredefinedSplit

from minddiff_utils.decoding import ridge
from minddiff_utils.decoding.folds import deal_folds
from minddiff_utils.decoding.ridge import RidgePath

PENALTIES = np.logspace(0, 4, 7)
FOLDS = deal_folds(np.arange(60))
CV = PredefinedSplit(FOLDS)


def recording(n=60, n_voxels=90, n_targets=25, seed=0):
    """Centred responses and targets; the signal fades from the first target to the last."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, n_voxels)).astype(np.float32)
    weights = rng.standard_normal((n_voxels, n_targets)) * np.linspace(2, 0, n_targets)
    y = (x @ weights + 3 * rng.standard_normal((n, n_targets))).astype(np.float32)
    return x - x.mean(0), y - y.mean(0)


@pytest.mark.parametrize("n_voxels", [20, 90])  # the second form, and the first
@pytest.mark.parametrize("score", [r2_score, correlation_score])
def test_scores_and_solutions_are_himalayas(n_voxels, score):
    x, y = recording(n_voxels=n_voxels)
    params = {"score_func": score}
    model = KernelRidgeCV(alphas=PENALTIES, cv=CV, warn=False, solver_params=params)
    model.fit(x, y)
    path = RidgePath(x, PENALTIES, FOLDS)
    found = path.scores(y)[0 if score is r2_score else 1]
    np.testing.assert_allclose(found.max(0), model.cv_scores_.ravel(), atol=1e-4)
    choice = found.argmax(0)
    np.testing.assert_allclose(PENALTIES[choice], model.best_alphas_, rtol=1e-5)
    np.testing.assert_allclose(path.weights(y, choice), x.T @ model.dual_coef_, atol=2e-3)
    new = recording(9, n_voxels)[0]
    wanted = new @ x.T @ model.dual_coef_
    np.testing.assert_allclose(path.predict(new, y, choice), wanted, atol=1e-2)


def test_weights_are_himalayas_where_voxels_are_few():
    x, y = recording(n_voxels=20)
    params = {"score_func": r2_score, "warn": False}
    model = RidgeCV(alphas=PENALTIES, cv=CV, solver_params=params).fit(x, y)
    path = RidgePath(x, PENALTIES, FOLDS)
    weights = path.weights(y, path.scores(y)[0].argmax(0))
    np.testing.assert_allclose(weights, model.coef_, atol=1e-5)


def test_blocks_of_targets_and_a_given_kernel_change_nothing(monkeypatch):
    x, y = recording()
    whole = RidgePath(x, PENALTIES, FOLDS)
    choice = whole.scores(y)[0].argmax(0)
    monkeypatch.setattr(ridge, "AT_ONCE", 20_000)
    for path in (RidgePath(x, PENALTIES, FOLDS), RidgePath(None, PENALTIES, FOLDS, kernel=x @ x.T)):
        for found, wanted in zip(path.scores(y), whole.scores(y), strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-4)
        np.testing.assert_allclose(path.dual(y, choice), whole.dual(y, choice), atol=1e-4)


def test_held_out_predictions_have_the_scores():
    x, y = recording()
    path = RidgePath(x, PENALTIES, FOLDS)
    scores = np.stack(path.scores(y))
    choice = scores[0].argmax(0)
    found = path.accuracy(path.held_out(y, choice), y)
    np.testing.assert_allclose(found, scores[:, choice, np.arange(25)], atol=1e-4)


@pytest.mark.parametrize("n_voxels", [20, 90])
def test_repetitions_are_so_many_rows_of_one_stimulus(n_voxels):
    x, _ = recording(n_voxels=n_voxels)
    stimulus = np.random.default_rng(1).permutation(np.repeat(np.arange(20), 3))
    y, folds = recording(n=20)[1], deal_folds(np.arange(20))
    path = RidgePath(x, PENALTIES, folds, stimulus)
    other = RidgePath(None, PENALTIES, folds, stimulus, x @ x.T)
    np.testing.assert_allclose(path.scores(y), other.scores(y), atol=1e-3)
    wanted = x.T @ np.linalg.solve(x @ x.T + PENALTIES[3] * np.eye(60), y[stimulus])
    np.testing.assert_allclose(path.weights(y, np.full(25, 3)), wanted, atol=1e-3)


def test_constant_targets_score_zero():
    x, y = recording()
    y[:, 4] = 0
    assert not np.stack(RidgePath(x, PENALTIES, FOLDS).scores(y))[:, :, 4].any()
