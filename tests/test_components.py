"""Components and evidence against scikit-learn, Bayes' rule and simulated decoding."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.decomposition import PCA

from minddiff_utils.decoding.components import PrincipalComponents, evidence
from minddiff_utils.decoding.ridge import PENALTIES, CrossValidatedRidge


def low_rank(n=120, n_values=60, rank=5, seed=0):
    """Values that vary in a few directions, most in the first."""
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((n, rank)) * np.linspace(5, 1, rank)
    basis = np.linalg.qr(rng.standard_normal((n_values, rank)))[0]
    noise = 0.01 * rng.standard_normal((n, n_values))
    return (3 + scores @ basis.T + noise).astype(np.float32)


@pytest.mark.parametrize("exact", [0, 2000], ids=["randomised", "exact"])
@pytest.mark.parametrize("shape", [(200, 510), (510, 200)], ids=["wide", "tall"])
def test_components_are_those_of_scikit_learn(monkeypatch, shape, exact):
    monkeypatch.setattr("minddiff_utils.decoding.components.EXACT", exact)
    spread = 9 * 0.95 ** np.arange(shape[1])
    values = (np.random.default_rng(0).standard_normal(shape) * spread + 5).astype(np.float32)
    found = clone(PrincipalComponents(30)).fit(values)
    wanted = PCA(30, svd_solver="full").fit(values.astype(float))
    size = np.abs(np.sum(found.components_ * wanted.components_, axis=1))
    few = slice(None) if exact else slice(10)  # the last ones of the randomised solver are rough
    np.testing.assert_allclose(size[few], 1, atol=1e-4)
    variance = wanted.explained_variance_ * (shape[0] - 1) / shape[0]
    np.testing.assert_allclose(found.explained_variance_[few], variance[few], rtol=1e-4)
    np.testing.assert_allclose(found.transform(values).var(0), found.explained_variance_, rtol=1e-3)
    again, best = (one.inverse_transform(one.transform(values)) for one in (found, wanted))
    assert np.square(again - values).sum() < 1.1 * np.square(best - values).sum()


@given(r2=st.floats(0.05, 0.75), variance=st.floats(0.1, 9), score=st.floats(-4, 4))
def test_evidence_times_prior_is_the_decoders_posterior(r2, variance, score):
    """Bayes: the precision and the mean that the decoder reports come back."""
    one = PrincipalComponents(1)
    one.mean_, one.components_ = np.zeros(1, np.float32), np.ones((1, 1), np.float32)
    one.explained_variance_ = np.array([variance])
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
    components = PrincipalComponents(20).fit(values[:600])
    decoder = CrossValidatedRidge(40 * PENALTIES).fit(x[:600], components.transform(values[:600]))
    found = components, decoder.predict(x[600:]), decoder.cv_scores_
    projection, value = evidence(*found, least=0.3, most=0.98)
    seen = np.square(values[600:] @ projection - value).sum(1)
    other = np.square(np.roll(values[600:], 1, axis=0) @ projection - value).sum(1)
    assert 0.8 < seen.mean() < 1.25
    assert other.mean() > 3 * seen.mean()


def test_what_cannot_be_decoded_says_nothing():
    components = PrincipalComponents(5).fit(low_rank())
    scores = np.array([[1.0, 2, 3, 4, 5]])
    projection, value = evidence(components, scores, np.array([0.5, 0.01, np.nan, -3, 0.4]))
    np.testing.assert_array_equal((projection != 0).any(axis=0), [1, 0, 0, 0, 1])
    np.testing.assert_array_equal(value[0, 1:4], 0)
    projection, value = evidence(components, scores, np.full(5, np.nan))
    assert not projection.any() and not value.any()
