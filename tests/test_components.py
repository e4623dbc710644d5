"""Components and evidence against scikit-learn, Bayes' rule and simulated decoding."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from minddiff_utils.decoding.components import Components, evidence, fit_components, informative
from minddiff_utils.decoding.decoders import fit_decoder
from minddiff_utils.io import InputError


def low_rank(n=120, n_values=60, rank=5, seed=0):
    """Values that vary in a few directions, most in the first."""
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((n, rank)) * np.linspace(5, 1, rank)
    basis = np.linalg.qr(rng.standard_normal((n_values, rank)))[0]
    noise = 0.01 * rng.standard_normal((n, n_values))
    return (3 + scores @ basis.T + noise).astype(np.float32)


@pytest.mark.parametrize("exact", [0, 2000], ids=["randomised", "exact"])
@pytest.mark.parametrize("n", [120, 40], ids=["tall", "wide"])
@pytest.mark.parametrize("n_components", [3, 100])
def test_components_are_those_of_scikit_learn(monkeypatch, n_components, n, exact):
    monkeypatch.setattr("minddiff_utils.decoding.components.EXACT", exact)
    values = low_rank(n)
    found = fit_components(values, n_components)
    size = min(n_components, 60, n - 1)
    wanted = PCA(size, svd_solver="full").fit(values.astype(float))
    assert found.basis.shape == (60, size)
    np.testing.assert_allclose(found.basis.T @ found.basis, np.eye(size), atol=1e-4)
    agreement = np.abs(np.sum(found.basis[:, :3].T * wanted.components_[:3], axis=1))
    np.testing.assert_allclose(agreement, 1, atol=1e-4)
    np.testing.assert_allclose(found.variance, found.scores(values).var(axis=0), rtol=1e-3)


@pytest.mark.parametrize("shape", [(40, 90), (90, 40)], ids=["wide", "tall"])
def test_every_component_is_exact_where_one_side_is_short(shape):
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32) + 5
    found = fit_components(values, 30)
    wanted = PCA(30, svd_solver="full").fit(values.astype(float))
    size = np.abs(np.sum(found.basis.T * wanted.components_, axis=1))
    np.testing.assert_allclose(size, 1, atol=1e-6)
    rows = len(values)
    variance = wanted.explained_variance_ * (rows - 1) / rows
    np.testing.assert_allclose(found.variance, variance, rtol=1e-5)


def test_directions_without_variance_are_left_out():
    rng = np.random.default_rng(0)
    for shape in [(30, 50), (50, 30)]:
        values = rng.standard_normal((shape[0], 4)) @ rng.standard_normal((4, shape[1]))
        assert fit_components(values.astype(np.float64), 20).variance.size == 4


def test_there_are_no_more_components_than_stimuli_allow():
    found = fit_components(low_rank(n=7), 128)
    assert found.basis.shape == (60, found.variance.size) and found.variance.size <= 6
    with pytest.raises(InputError, match="n_components=0"):
        fit_components(low_rank(), 0)


@given(r2=st.floats(0.05, 0.75), variance=st.floats(0.1, 9), score=st.floats(-4, 4))
def test_evidence_times_prior_is_the_decoders_posterior(r2, variance, score):
    """Bayes: the precision and the mean that the decoder reports come back."""
    one = Components(np.zeros(1, np.float32), np.ones((1, 1), np.float32), np.array([variance]))
    projection, value = evidence(one, np.array([[score]]), np.array([r2]))
    precision, mean = float(projection[0, 0]) ** 2, float(value[0, 0] / projection[0, 0])
    posterior = precision + 1 / variance
    assert posterior == pytest.approx(1 / (variance * (1 - r2)), rel=1e-4)
    assert precision * mean / posterior == pytest.approx(score, rel=1e-4, abs=1e-6)


def test_the_picture_that_was_seen_is_one_away():
    """Decode simulated responses: the seen structure lies at a squared distance of one."""
    rng = np.random.default_rng(0)
    values = low_rank(n=900)
    x = values @ rng.standard_normal((60, 40)) + 8 * rng.standard_normal((900, 40))
    x = (x - x.mean(0)).astype(np.float32)
    components = fit_components(values[:600], 20)
    decoder = fit_decoder(x[:600], components.scores(values[:600]))
    found = components, decoder.predict(x[600:]), decoder.r2
    projection, value = evidence(*found, least=0.3, most=0.98)
    seen = np.square(values[600:] @ projection - value).sum(1)
    other = np.square(np.roll(values[600:], 1, axis=0) @ projection - value).sum(1)
    assert 0.8 < seen.mean() < 1.25
    assert other.mean() > 3 * seen.mean()


def test_what_cannot_be_decoded_says_nothing():
    components = fit_components(low_rank(), 5)
    scores = np.array([[1.0, 2, 3, 4, 5]])
    projection, value = evidence(components, scores, np.array([0.5, 0.01, np.nan, -3, 0.4]))
    np.testing.assert_array_equal((projection != 0).any(axis=0), [1, 0, 0, 0, 1])
    np.testing.assert_array_equal(value[0, 1:4], 0)
    projection, value = evidence(components, scores, np.full(5, np.nan))
    assert not projection.any() and not value.any()


def test_reliability_is_bounded_and_its_bounds_are_checked():
    chosen, r2 = informative(np.array([np.nan, 0.01, 0.3, 0.99]))
    np.testing.assert_array_equal(chosen, [False, False, True, True])
    np.testing.assert_allclose(r2, [0.02, 0.02, 0.3, 0.8])
    for least, most in [(0, 0.5), (0.5, 0.5), (0.1, 1)]:
        with pytest.raises(InputError, match="least < most"):
            informative(np.zeros(3), least, most)
