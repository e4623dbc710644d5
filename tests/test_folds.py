"""Folds follow from stimuli, pictures and sessions, not from the order in which they come."""

import dataclasses

import numpy as np
import pytest
from builders import refuses
from hypothesis import given
from hypothesis import strategies as st

from minddiff_utils.datasets import Split, prepare_fold
from minddiff_utils.decoding import decode as decoding
from minddiff_utils.decoding.decode import training_folds
from minddiff_utils.decoding.decoders import Method
from minddiff_utils.decoding.ridge import assign_folds
from studies.held_out import hold_out


@given(st.integers(4, 80), st.integers(2, 12), st.integers(0, 2**32 - 1))
def test_folds_are_even_keep_groups_and_follow_from_ids(n, n_folds, seed):
    rng = np.random.default_rng(seed)
    ids = rng.choice(10**6, n, replace=False)
    groups, session = ids[rng.permutation(n) // 2 * 2 % n], rng.integers(1, 4, n)
    if len(np.unique(groups)) < 4:
        groups = ids
    folds = assign_folds(ids, n_folds, groups=groups, session=session, seed=seed)
    order = rng.permutation(n)
    known = {"groups": groups[order], "session": session[order], "seed": seed}
    again = assign_folds(ids[order], n_folds, **known)
    np.testing.assert_array_equal(again, folds[order])
    assigned = set(zip(groups.tolist(), folds.tolist(), strict=True))
    assert len(assigned) == len(np.unique(groups))  # no group is in two folds
    sizes = np.bincount([fold for _, fold in assigned])
    assert len(sizes) == min(n_folds, len(assigned) // 2) and np.ptp(sizes) <= 1
    plain = assign_folds(ids, n_folds, session=session, seed=seed)
    for one in np.unique(session):  # every fold has its share of every session
        assert np.ptp(np.bincount(plain[session == one], minlength=plain.max() + 1)) <= 1


def test_too_few_stimuli_or_folds_are_named():
    refuses("3 different training stimuli", assign_folds, np.arange(6), groups=np.arange(6) // 2)
    refuses("n_folds=1", Method, n_folds=1)


@pytest.mark.parametrize("repetitions", ["average", "keep"])
def test_the_order_of_rows_changes_no_decoder(world, tmp_path, repetitions):
    features, ids, subject = world
    subject = dataclasses.replace(subject, repetitions=repetitions)
    rng = np.random.default_rng(0)
    trials, order = rng.permutation(len(subject.stimulus_id)), rng.permutation(ids[30:])
    moved = {k: getattr(subject, k)[trials] for k in ("responses", "stimulus_id", "session")}
    other = dataclasses.replace(subject, **moved, splits=(Split("main", order, ids[:30]),))
    one, two = (
        decoding.read_decoded(decoding.decode_subject(each, features, tmp_path / f"{k}.h5"))
        for k, each in enumerate((subject, other))
    )
    for name in ("z", "c", "embedding", "block_1", "reliability_1"):
        np.testing.assert_allclose(two[name], one[name], atol=2e-4, err_msg=name)


def test_copies_of_a_picture_share_a_fold_and_leave_training_together(world):
    _, ids, subject = world
    copies = {int(b): int(a) for a, b in zip(ids[30:90:2], ids[31:90:2], strict=True)}
    subject = dataclasses.replace(subject, copy_of=copies)
    (split,) = subject.splits
    design = decoding.training_design(subject, split, prepare_fold(subject, split), Method())
    np.testing.assert_array_equal(design.folds[0:60:2], design.folds[1:60:2])
    np.testing.assert_array_equal(design.folds, training_folds(subject, split.train))
    held = hold_out(subject, 20).splits[0]
    assert not np.isin(subject.picture_of(held.train), subject.picture_of(held.test)).any()
