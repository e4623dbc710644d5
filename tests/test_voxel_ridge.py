"""The paper's decoder against a loop over targets."""

import numpy as np
import pytest

from minddiff_utils.decoding import voxel_selected_ridge
from minddiff_utils.decoding.voxel_selected_ridge import VoxelSelectedRidge

ALPHA = 0.15
# Samples, voxels, voxels for each target: with fewer and with more voxels than samples.
SHAPES = [(50, 30, 10), (50, 30, 30), (20, 60, 40), (20, 60, 60), (20, 60, 99), (3, 5, 3)]


def recording(n=50, n_voxels=30, n_targets=7, seed=0):
    """Responses and targets that do not have mean zero."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, n_voxels)) + 2 * rng.standard_normal(n_voxels)
    y = x @ rng.standard_normal((n_voxels, n_targets)) + rng.standard_normal((n, n_targets)) + 5
    return x, y


def by_loop(x, y, k):
    """Weights (n_targets, n_voxels) and biases, one target after the other."""
    weights, biases = np.zeros((y.shape[1], x.shape[1])), np.zeros(y.shape[1])
    for target, values in enumerate(y.T):
        correlation = [abs(np.corrcoef(voxel, values)[0, 1]) for voxel in x.T]
        chosen = np.argsort(correlation)[::-1][:k]
        design = np.column_stack([x[:, chosen], np.ones(len(x))])
        matrix = design.T @ design + ALPHA * np.eye(design.shape[1])
        *weights[target, chosen], biases[target] = np.linalg.solve(matrix, design.T @ values)
    return weights, biases


def distance(found, wanted):
    return np.abs(found - wanted).max() / np.abs(wanted).max()


@pytest.mark.parametrize("memory", [2**31, 1000])  # all targets at once, or one after the other
@pytest.mark.parametrize(("n", "n_voxels", "k"), SHAPES)
def test_weights_are_those_of_a_loop_over_targets(monkeypatch, n, n_voxels, k, memory):
    monkeypatch.setattr(voxel_selected_ridge, "MEMORY", memory)
    x, y = recording(n, n_voxels)
    weights, biases = by_loop(x, y, k)
    model = VoxelSelectedRidge(k, ALPHA, dtype="float64").fit(x, y)
    assert distance(model.coef_, weights) < 1e-9
    assert distance(model.intercept_, biases) < 1e-9
    np.testing.assert_allclose(model.predict(x), x @ weights.T + biases, rtol=1e-9)
    assert (np.count_nonzero(model.coef_, axis=1) == min(k, n_voxels)).all()


def test_constant_voxels_are_chosen_last_and_constant_targets_predicted_by_themselves():
    x, y = recording()
    x[:, [3, 8]] = 7.0
    y[:, 2] = 4.5
    model = VoxelSelectedRidge(28, ALPHA).fit(x, y)
    assert not np.isin(np.delete(model.voxels_, 2, axis=0), [3, 8]).any()
    np.testing.assert_allclose(model.predict(x)[:, 2], 4.5)
    assert not model.coef_[2].any()
    assert np.isfinite(VoxelSelectedRidge(30, ALPHA).fit(x, y).predict(x)).all()
