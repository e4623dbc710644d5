"""Standardising, averaging and noise ceilings, against loops a reader can check by eye."""

import builders
import numpy as np
import pytest
from builders import refuses
from hypothesis import given, settings
from hypothesis import strategies as st

from minddiff_utils.datasets import Split, estimate_ncsnr, noise_ceiling, prepare_fold


def make_subject(seed=0, n_stimuli=12, n_repetitions=3, n_sessions=2, n_voxels=5):
    rng = np.random.default_rng(seed)
    ids = 10 * np.arange(n_stimuli) + 3
    stimulus = rng.permutation(np.repeat(ids, n_repetitions))
    session = np.sort(np.arange(len(stimulus)) % n_sessions + 1)
    responses = rng.normal(3, 2, (len(stimulus), n_voxels)) + session[:, None]
    split = Split("all", train=ids[::-1][:8], test=ids[:4])
    return builders.make_subject(responses, stimulus, [split], session=session)


def slow_fold(subject, split):
    """The same as `prepare_fold`, one stimulus, session and trial at a time."""
    z = np.full(subject.responses.shape, np.nan)
    for session in set(subject.session):
        here = [i for i, s in enumerate(subject.session) if s == session]
        train = [i for i in here if subject.stimulus_id[i] in split.train]
        mean = subject.responses[train].astype(float).mean(axis=0)
        sd = subject.responses[train].astype(float).std(axis=0)
        for i in here:
            z[i] = (subject.responses[i] - mean) / sd
    means = {i: z[subject.stimulus_id == i].mean(axis=0) for i in subject.stimulus_ids}
    return [np.stack([means[i] for i in ids]) for ids in (split.train, split.test)]


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), n_repetitions=st.integers(1, 4), n_sessions=st.integers(1, 2))
def test_fold_agrees_with_a_loop(seed, n_repetitions, n_sessions):
    subject = make_subject(seed, n_repetitions=n_repetitions, n_sessions=n_sessions)
    fold = prepare_fold(subject, subject.splits[0])
    train, test = slow_fold(subject, subject.splits[0])
    assert fold.train_id.tolist() == subject.splits[0].train.tolist()
    np.testing.assert_allclose(fold.train_x, train, atol=2e-5)
    np.testing.assert_allclose(fold.test_x, test, atol=2e-5)
    assert fold.train_x.dtype == np.float32


def test_test_trials_enter_no_statistic():
    subject = make_subject()
    (split,) = subject.splits
    before = prepare_fold(subject, split)
    subject.responses[np.isin(subject.stimulus_id, split.test)] *= 100
    after = prepare_fold(subject, split)
    np.testing.assert_array_equal(before.train_x, after.train_x)
    assert not np.allclose(before.test_x, after.test_x)


@pytest.mark.parametrize("value", [0.1, np.nan])
def test_voxel_that_cannot_be_standardised_is_named(value):
    subject = make_subject()
    subject.responses[:, 3] = value
    refuses(r"session 1: 1 of 5 voxels.*voxel 3", prepare_fold, subject, subject.splits[0])


def test_split_must_be_disjoint_and_full():
    with pytest.raises(ValueError, match="in train and in test"):
        Split("x", np.array([1, 2]), np.array([2]))
    refuses("0 test", Split, "x", np.array([1, 2]), np.array([], int))


def test_noise_ceiling_of_known_ratios():
    np.testing.assert_allclose(noise_ceiling(np.array([0, 1, 1]), np.array([3, 1, 3])), [0, 50, 75])


def slow_ncsnr(subject):
    """NSD's recipe in loops: z-score within a session, variance over repetitions."""
    z = subject.responses.astype(float)
    for session in np.unique(subject.session):
        here = subject.session == session
        z[here] = (z[here] - z[here].mean(axis=0)) / z[here].std(axis=0, ddof=1)
    each = [z[subject.stimulus_id == i].var(axis=0, ddof=1) for i in subject.stimulus_ids]
    noise = np.mean(each, axis=0)
    return np.sqrt(np.maximum(1 - noise, 0) / noise)


def test_ncsnr_agrees_with_a_loop_and_recovers_what_was_made():
    subject = make_subject(n_stimuli=30)
    got = estimate_ncsnr(subject.responses, subject.stimulus_id, subject.session)
    np.testing.assert_allclose(got, slow_ncsnr(subject), atol=1e-4)
    rng, truth = np.random.default_rng(0), np.array([0.3, 0.7, 1.5])
    stimulus = np.repeat(np.arange(20_000), 3)
    signal = (rng.normal(size=(20_000, 3)) * truth)[stimulus]
    estimate = estimate_ncsnr(5 + 2 * (signal + rng.normal(size=signal.shape)), stimulus)
    np.testing.assert_allclose(estimate, truth, rtol=0.05)
    refuses("repetitions", estimate_ncsnr, np.zeros((3, 2)), np.arange(3))


def test_repetitions_are_counted():
    assert make_subject().n_repetitions([3, 999, 13, -1]).tolist() == [3, 0, 3, 0]
