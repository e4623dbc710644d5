"""Sums over thousands of rows, far from zero, against the same in double precision."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline

from minddiff_utils.decoding import components
from minddiff_utils.decoding.ridge import (
    PENALTIES,
    CrossValidatedRidge,
    ReliabilityScaler,
    assign_folds,
    column_moments,
    fold_accuracy,
)
from minddiff_utils.decoding.voxel_selected_ridge import VoxelSelectedRidge

N = 5000  # about as many as a subject's training pictures of the Natural Scenes Dataset


def data():
    """Responses and targets 100 spreads from zero; the last target is constant."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, 12))
    y = x @ rng.standard_normal((12, 6)) + 2 * rng.standard_normal((N, 6))
    x, y = ((part + 100 * part.std(0)).astype(np.float32) for part in (x, y))
    y[:, -1] = -1.2757065
    return x, y


def weighted_moments(x, y, x64, y64):
    count = np.arange(N) % 3 + 1
    again = np.repeat(y64, count, axis=0)
    return column_moments(y, count), (again.mean(0), again.var(0))


def papers_decoder(x, y, x64, y64):
    """The bias is a weight of ones, penalised like the others; not so for a constant."""
    ones = np.column_stack([x64, np.ones(N)])
    exact = ones @ np.linalg.solve(ones.T @ ones + 0.15 * np.eye(13), ones.T @ y64)
    exact[:, -1] = y64[:, -1]
    return VoxelSelectedRidge(12).fit(x, y).predict(x) - y64.mean(0), exact - y64.mean(0)


def ridge(x, y, x64, y64):
    penalties, folds = 12 * PENALTIES[::4], assign_folds(np.arange(N), 2)
    model = make_pipeline(ReliabilityScaler(), CrossValidatedRidge(penalties, folds)).fit(x, y)
    every = [Ridge(penalty).fit(x64, y64).predict(x64) - y64.mean(0) for penalty in penalties]
    choice = np.searchsorted(penalties.astype(np.float32), model[-1].best_alphas_)
    assert model[-1].cv_scores_[-1] == 0 and (model[-1].cv_scores_[:-1] > 0).all()
    return model.predict(x) - y64.mean(0), np.stack(every)[choice, :, np.arange(6)].T


def accuracy(x, y, x64, y64):
    """Within folds; a constant target scores 0."""
    folds = assign_folds(np.arange(N))
    made = (y64 + y64.std(0) * np.random.default_rng(1).standard_normal(y.shape)).astype("f4")
    exact = np.zeros((2, 6))
    for fold in range(5):
        held = folds == fold
        true, other = y64[held, :-1], made[held, :-1].astype(float)
        residual = np.square(true - other).sum(0) / np.square(true - true.mean(0)).sum(0)
        r = [np.corrcoef(*pair)[0, 1] for pair in zip(true.T, other.T, strict=True)]
        exact[:, :-1] += np.array([1 - residual, r]) / 5
    return fold_accuracy(made, y, folds), exact


def scores(x, y, x64, y64):
    found = components.PrincipalComponents(3).fit_transform(y)
    exact = PCA(3, svd_solver="full").fit_transform(y64)
    return found * np.sign((found * exact).sum(0)), exact


CHECKS = [weighted_moments, papers_decoder, ridge, accuracy, scores]


@pytest.mark.parametrize("check", CHECKS, ids=lambda f: f.__name__)
def test_single_precision_is_as_good_as_double(monkeypatch, check):
    monkeypatch.setattr(components, "EXACT", 0)  # the randomised solver, as at full size
    x, y = data()
    found, exact = check(x, y, x.astype(float), y.astype(float))
    np.testing.assert_allclose(found, exact, rtol=2e-4, atol=2e-4)
