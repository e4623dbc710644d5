"""Shared ridge regression against himalaya and scikit-learn, and against itself by another form."""

import numpy as np
import pytest
from himalaya.kernel_ridge import KernelRidgeCV
from himalaya.scoring import r2_score
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from test_decoding import regression

from minddiff_utils.decoding import ridge
from minddiff_utils.decoding.ridge import CrossValidatedRidge, assign_folds

PENALTIES = np.logspace(0, 4, 7)
FOLDS = assign_folds(np.arange(60))
CV = PredefinedSplit(FOLDS)


def recording(n=60, n_voxels=90):
    """Centred responses and targets; the signal fades from the first target to the last."""
    x, y = regression(n, n_voxels)
    return x - x.mean(0), y - y.mean(0)


@pytest.mark.parametrize("n_voxels", [20, 90])  # the second form, and the first
def test_scores_and_solutions_are_himalayas(n_voxels):
    x, y = recording(n_voxels=n_voxels)
    params = {"score_func": r2_score}
    model = KernelRidgeCV(alphas=PENALTIES, cv=CV, warn=False, solver_params=params).fit(x, y)
    found = clone(CrossValidatedRidge(PENALTIES, FOLDS)).fit(x, y + 5)
    np.testing.assert_allclose(found.cv_scores_, model.cv_scores_.ravel(), atol=1e-4)
    np.testing.assert_allclose(found.best_alphas_, model.best_alphas_, rtol=1e-5)
    np.testing.assert_allclose(found.coef_, x.T @ model.dual_coef_, atol=2e-3)
    new = recording(9, n_voxels)[0]
    np.testing.assert_allclose(found.predict(new), model.predict(new) + 5, atol=1e-2)


def test_blocks_of_targets_and_a_given_kernel_change_nothing(monkeypatch):
    x, y = recording()
    whole = CrossValidatedRidge(PENALTIES, FOLDS).fit(x, y)
    monkeypatch.setattr(ridge, "AT_ONCE", 20_000)
    parts = CrossValidatedRidge(PENALTIES, FOLDS).fit(x, y)
    kernel = CrossValidatedRidge(PENALTIES, FOLDS, kernel="precomputed").fit(x @ x.T, y)
    for found, given in ((parts, x), (kernel, x @ x.T)):
        np.testing.assert_allclose(found.cv_scores_, whole.cv_scores_, atol=1e-4)
        np.testing.assert_allclose(found.predict(given), whole.predict(x), atol=1e-3)


def test_other_targets_are_fitted_to_the_same_responses():
    x, y = recording()
    shared = CrossValidatedRidge(PENALTIES, FOLDS).prepare(x)
    for targets in (y[:, :7], y[:, 7:]):
        alone = CrossValidatedRidge(PENALTIES, FOLDS).fit(x, targets)
        found = shared.fit_targets(targets)
        np.testing.assert_array_equal(found.coef_, alone.coef_)
        np.testing.assert_array_equal(found.held_out_, alone.held_out_)


def test_held_out_predictions_are_scikit_learns_and_have_the_scores():
    x, y = recording()
    found = CrossValidatedRidge(PENALTIES[3:4], FOLDS).fit(x, y)
    wanted = cross_val_predict(Ridge(PENALTIES[3], fit_intercept=False), x, y, cv=CV)
    np.testing.assert_allclose(found.held_out_, wanted, atol=1e-4)
    r2, r = ridge.fold_accuracy(found.held_out_, y, FOLDS)
    np.testing.assert_allclose(r2, found.cv_scores_, atol=1e-4)
    rows = [np.corrcoef(y[held, 3], wanted[held, 3])[0, 1] for _, held in CV.split()]
    assert r[3] == pytest.approx(np.mean(rows), abs=1e-4)


@pytest.mark.parametrize("n_voxels", [20, 90])
def test_repetitions_are_so_many_rows_of_one_stimulus(n_voxels):
    x, _ = recording(n_voxels=n_voxels)
    stimulus = np.random.default_rng(1).permutation(np.repeat(np.arange(20), 3))
    y, folds = recording(n=20)[1], assign_folds(np.arange(20))
    found = CrossValidatedRidge(PENALTIES[3:4], folds, stimulus).fit(x, y)
    wanted = x.T @ np.linalg.solve(x @ x.T + PENALTIES[3] * np.eye(60), y[stimulus])
    np.testing.assert_allclose(found.coef_, wanted, atol=1e-3)
    held = np.isin(stimulus, np.flatnonzero(folds == 0))
    kernel = x[~held] @ x[~held].T + PENALTIES[3] * np.eye((~held).sum())
    rows = x[held] @ x[~held].T @ np.linalg.solve(kernel, y[stimulus[~held]])
    for one in np.unique(stimulus[held]):
        mean = rows[stimulus[held] == one].mean(0)
        np.testing.assert_allclose(found.held_out_[one], mean, atol=1e-3)


def test_only_ratios_of_reliabilities_matter():
    x = recording()[0] + 7
    given = np.random.default_rng(2).random(90) + 0.1
    scaled, twice = (ridge.ReliabilityScaler(k * given).fit_transform(x) for k in (1, 2))
    wanted = (x - x.mean(0)) * given / np.sqrt(np.mean(given**2))
    np.testing.assert_allclose(scaled, wanted, atol=1e-5)
    np.testing.assert_allclose(twice, scaled, rtol=1e-5)


def test_no_targets_are_no_fault():
    x = np.random.default_rng(0).normal(size=(12, 4))
    model = CrossValidatedRidge([1.0, 10.0]).fit(x, np.empty((12, 0)))
    assert model.predict(x).shape == model.held_out_.shape == (12, 0)
