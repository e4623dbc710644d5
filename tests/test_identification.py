"""Identification against naive loops, closed forms and bdpy's definition."""

from itertools import combinations

import numpy as np
from builders import refuses
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from minddiff_utils.evaluation import identification
from minddiff_utils.evaluation.identification import identification_accuracy as accuracy
from minddiff_utils.evaluation.identification import pairwise_identification as pairwise


def naive_identification(predicted, true, n_way):
    """Try every set of wrong candidates; a tie is won as often as a fair lot wins it."""
    similarity = identification.similarity_matrix(predicted, true)
    result = []
    for i, row in enumerate(similarity):
        others = [j for j in range(len(row)) if j != i]
        wins = []
        for chosen in combinations(others, n_way - 1):
            rivals = row[list(chosen)]
            tied = np.sum(rivals == row[i])
            wins.append(0.0 if np.any(rivals > row[i]) else 1 / (1 + tied))
        result.append(np.mean(wins))
    return result


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.booleans())
def test_identification_equals_a_naive_loop(seed, n_way, coarse):
    rng = np.random.default_rng(seed)
    # Whole directions of a plane, so that exact ties are common.
    rows = np.eye(3)[rng.integers(0, 3, (2, 6))] if coarse else rng.normal(size=(2, 6, 3))
    found = accuracy(*rows, n_way)
    np.testing.assert_allclose(found, naive_identification(*rows, n_way), atol=1e-12)


def test_identification_of_many_pictures_does_not_overflow():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(400, 20))
    predicted = true + rng.normal(size=true.shape)
    values = [accuracy(predicted, true, k).mean() for k in (2, 50, 400)]
    assert 1 > values[0] > values[1] > values[2] > 1 / 400
    broken = predicted.copy()
    broken[3] = np.nan
    assert np.flatnonzero(np.isnan(accuracy(broken, true))) == [3]


def test_pairwise_identification_is_bdpys():
    """bdpy counts, for each prediction, true features that correlate less than its own."""
    rng = np.random.default_rng(0)
    true = rng.normal(size=(9, 30)) + 3
    predicted = true + 4 * rng.normal(size=true.shape) + 5
    r = 1 - cdist(predicted, true, metric="correlation")
    expected = np.sum(r - np.diag(r)[:, None] < 0, axis=1) / 8
    assert 0.5 < expected.mean() < 1
    np.testing.assert_allclose(pairwise(predicted, true), expected)


def test_pairwise_identification_leaves_gaps_out():
    rng = np.random.default_rng(1)
    true = rng.normal(size=(6, 12))
    predicted = true + rng.normal(size=true.shape)
    holed = predicted.copy()
    holed[2, 3] = np.nan
    whole = pairwise(np.delete(predicted, 3, 1), np.delete(true, 3, 1))
    np.testing.assert_allclose(pairwise(holed, true), whole)
    flat = predicted.copy()
    flat[1] = 4.0  # nothing correlates with a constant prediction
    assert np.flatnonzero(np.isnan(pairwise(flat, true))) == [1]
    flat = true.copy()
    flat[1] = 4.0  # nor does a constant alternative: it is no rival
    found = pairwise(predicted, flat)
    kept = [0, 2, 3, 4, 5]
    np.testing.assert_allclose(found[kept], pairwise(predicted[kept], true[kept]))


def test_zero_shot_closed_forms():
    identity, none = np.eye(6), np.zeros((0, 6))
    assert np.all(identification.zero_shot_accuracy(identity, identity, none, [1, 2]) == 1)
    # Always the same answer, and all candidates alike: chance, exactly.
    same = np.ones((6, 6))
    found = identification.zero_shot_accuracy(same, same, np.ones((4, 6)), [1, 5, 10])
    np.testing.assert_allclose(found, np.tile([0.1, 0.5, 1.0], (6, 1)))
    # An extra candidate that is the prediction itself takes the first place.
    rng = np.random.default_rng(0)
    predicted, true = rng.normal(size=(2, 5, 8))
    assert np.all(identification.zero_shot_accuracy(predicted, true, predicted, [1]) == 0)


def test_tables_state_chance_and_leave_certain_columns_out():
    table = identification.zero_shot_table({"stage2": np.eye(4)}, np.eye(4), np.eye(4)[:1])
    assert list(table.columns) == ["top 1 of 5 (chance 0.200)", "n"]
    refuses("n_way is 4", accuracy, np.eye(3), np.eye(3), 4)
    refuses("one shape", identification.similarity_matrix, np.zeros((3, 2)), np.zeros((3, 4)))
