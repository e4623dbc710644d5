"""Intervals and tests against what theory says of them."""

from itertools import permutations

import numpy as np
import pytest
from builders import refuses
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from minddiff_utils.evaluation import statistics


def test_bootstrap_interval_is_repeatable_and_survives_odd_values():
    values = np.random.default_rng(0).normal(size=30)
    assert statistics.bootstrap_interval(values) == statistics.bootstrap_interval(values)
    with_gap = statistics.bootstrap_interval([*values, np.nan])
    assert with_gap == statistics.bootstrap_interval(values)
    assert statistics.bootstrap_interval([0.3, 0.3, 0.3]) == (0.3, 0.3)
    assert np.isnan(statistics.bootstrap_interval([1.0])).all()
    assert np.isnan(statistics.bootstrap_interval([])).all()


def test_interval_of_hits_is_exact_where_resampling_says_nothing():
    low, high = statistics.hit_interval(np.zeros(64))
    assert low == 0 and high == pytest.approx(1 - 0.025 ** (1 / 64))
    assert statistics.hit_interval(np.ones(64)) == pytest.approx((1 - high, 1))
    some = np.random.default_rng(0).uniform(size=30)
    assert statistics.hit_interval(some) == statistics.bootstrap_interval(some)
    assert np.isnan(statistics.hit_interval([0.0])).all()


def test_paired_difference_of_few_pictures_is_exact():
    a = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    found = statistics.paired_difference(a, a - 0.1 - 0.01 * np.arange(6))
    assert found["n"] == 6
    assert found["mean"] == pytest.approx(0.125)
    assert found["low"] > 0
    # All 64 flips are tried: only the observed one and its mirror are this extreme.
    assert found["p"] == pytest.approx(2 / 64)


def test_paired_difference_leaves_gaps_out_and_is_large_for_noise():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 60))
    a[0] = np.nan
    found = statistics.paired_difference(a, b)
    assert found["n"] == 59
    assert found["p"] > 0.05
    assert found["low"] < 0 < found["high"]
    assert np.isnan(statistics.paired_difference([1.0], [0.0])["p"])
    refuses("one shape", statistics.paired_difference, np.zeros(3), np.zeros(4))


def test_holm_by_hand_and_with_gaps():
    # Sorted .01 .02 .03 .04 times 4 3 2 1: .04 .06 .06 .06, and order is kept.
    found = statistics.holm([0.04, 0.01, np.nan, 0.03, 0.02])
    np.testing.assert_allclose(found, [0.06, 0.04, np.nan, 0.06, 0.06])
    np.testing.assert_allclose(statistics.holm([[0.6, 0.9]]), [[1, 1]])
    assert statistics.holm([]).shape == (0,)


def test_resampled_correlations_are_those_of_pictures_drawn_again(monkeypatch):
    rng = np.random.default_rng(0)
    true = rng.standard_normal((20, 7))
    predicted = true + rng.standard_normal((20, 7)) + 3
    true[:, 2], predicted[:, 4], predicted[3, 5] = 1.0, 2.0, np.nan
    monkeypatch.setattr(statistics, "VALUES", 3)
    found = statistics.resampled_correlation(true, predicted, 50, seed=3)
    drawn = np.random.default_rng(3).multinomial(20, np.full(20, 1 / 20), 50)
    for counts, value in zip(drawn, found, strict=True):
        rows = np.repeat(np.arange(20), counts)
        pairs = [(true[rows, k], predicted[rows, k]) for k in (0, 1, 3, 6)]
        assert value == pytest.approx(np.mean([np.corrcoef(*pair)[0, 1] for pair in pairs]))
    assert np.isnan(statistics.resampled_correlation(np.ones((4, 2)), np.ones((4, 2)))).all()


def test_permutation_p_approaches_the_exact_one():
    similarity = np.random.default_rng(0).normal(size=(5, 5)) + 0.6 * np.eye(5)
    sums = [similarity[np.arange(5), list(order)].mean() for order in permutations(range(5))]
    exact = np.mean(np.array(sums) >= np.trace(similarity) / 5 - 1e-12)
    test = statistics.permutation_test(similarity, 20000)
    assert test.observed == pytest.approx(np.trace(similarity) / 5)
    assert test.p == pytest.approx(exact, abs=0.015)
    assert test.null.shape == (20000,)
    assert test.null.mean() == pytest.approx(similarity.mean(), abs=0.02)


def test_permutation_test_of_matched_and_constant_reconstructions():
    assert statistics.permutation_test(np.eye(20), 999).p == pytest.approx(1 / 1000)
    # Always the same picture, however close to all of them: nothing is known.
    always = np.tile(np.random.default_rng(0).uniform(0.5, 1, 20), (20, 1))
    assert statistics.permutation_test(always, 999).p == 1


@given(st.integers(2, 50), st.integers(0, 1000))
def test_shuffled_rows_keep_none_in_place(n, seed):
    order = statistics.shuffled_rows(n, np.random.default_rng(seed))
    assert sorted(order) == list(range(n))
    assert not np.any(order == np.arange(n))
    np.testing.assert_array_equal(order, statistics.shuffled_rows(n, np.random.default_rng(seed)))


def test_the_interval_is_bias_corrected_and_accelerated():
    """Efron's formula (1987) written out, on values so skewed that percentiles differ from it."""
    values = np.random.default_rng(3).exponential(size=20) ** 2
    draws = np.random.default_rng(4).choice(values, (50_000, 20)).mean(axis=1)
    bias = stats.norm.ppf((draws < values.mean()).mean())
    left_out = (values.sum() - values) / 19
    off = left_out.mean() - left_out
    speed = (off**3).sum() / (6 * (off**2).sum() ** 1.5)
    z = bias + stats.norm.ppf([0.025, 0.975])
    wanted = np.quantile(draws, stats.norm.cdf(bias + z / (1 - speed * z)))
    found = np.array(statistics.bootstrap_interval(values))
    np.testing.assert_allclose(found, wanted, rtol=0.08)  # ten thousand draws of a long tail
    plain = np.quantile(draws, [0.025, 0.975])
    assert (np.abs(found - wanted) < np.abs(found - plain) / 2).all()
