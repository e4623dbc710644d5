"""Controls: baselines that know nothing of the brain, and the permutation test."""

from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minddiff_utils import controls
from minddiff_utils.datasets import Split
from minddiff_utils.files import InputError


def test_mean_picture_is_the_rounded_mean():
    pictures = np.random.default_rng(0).integers(0, 256, (9, 5, 6, 3), dtype=np.uint8)
    mean = controls.mean_picture(pictures)
    assert mean.dtype == np.uint8
    np.testing.assert_array_equal(mean, np.rint(pictures.astype(float).mean(axis=0)))
    with pytest.raises(InputError, match="at least one"):
        controls.mean_picture(pictures[:0])


class Drawn:
    """Pictures of random pixels, told apart by their id."""

    def pictures(self, ids):
        return np.stack([np.random.default_rng(i).integers(0, 256, (4, 4, 3)) for i in ids])


@pytest.mark.parametrize("block", [1, 7, 256])
def test_mean_pictures_of_each_split_whatever_the_block(monkeypatch, block):
    monkeypatch.setattr(controls, "BLOCK", block)
    splits = [
        Split("a", np.arange(20), np.arange(20, 23)),
        Split("b", np.arange(5), np.arange(9, 10)),
    ]
    found = controls.mean_pictures(SimpleNamespace(stimuli=Drawn(), splits=splits))
    wanted = [controls.mean_picture(Drawn().pictures(split.train)) for split in splits]
    np.testing.assert_array_equal(found, np.stack([wanted[0]] * 3 + [wanted[1]]))


def test_permutation_p_approaches_the_exact_one():
    similarity = np.random.default_rng(0).normal(size=(5, 5)) + 0.6 * np.eye(5)
    sums = [similarity[np.arange(5), list(order)].mean() for order in permutations(range(5))]
    exact = np.mean(np.array(sums) >= np.trace(similarity) / 5 - 1e-12)
    test = controls.permutation_test(similarity, 20000)
    assert test.observed == pytest.approx(np.trace(similarity) / 5)
    assert test.p == pytest.approx(exact, abs=0.015)
    assert test.null.shape == (20000,)
    assert test.null.mean() == pytest.approx(similarity.mean(), abs=0.02)


def test_permutation_test_of_matched_and_constant_reconstructions():
    assert controls.permutation_test(np.eye(20), 999).p == pytest.approx(1 / 1000)
    # Always the same picture, however close to all of them: nothing is known.
    always = np.tile(np.random.default_rng(0).uniform(0.5, 1, 20), (20, 1))
    assert controls.permutation_test(always, 999).p == 1


def test_permutation_p_is_uniform_without_information():
    rng = np.random.default_rng(1)
    p = [controls.permutation_test(rng.normal(size=(8, 8)), 199, seed).p for seed in range(200)]
    assert 0.4 < np.mean(p) < 0.6
    assert np.mean(np.array(p) <= 0.1) < 0.18


def test_permutation_test_is_repeatable_and_names_bad_input():
    similarity = np.random.default_rng(0).normal(size=(6, 6))
    first, second = (controls.permutation_test(similarity, 99, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.null, second.null)
    bad = similarity.copy()
    bad[0, 1] = np.nan
    for matrix in (bad, similarity[:4], similarity[:1, :1]):
        with pytest.raises(InputError, match="finite square matrix"):
            controls.permutation_test(matrix)


@given(st.integers(2, 50), st.integers(0, 1000))
def test_shuffled_rows_keep_none_in_place(n, seed):
    order = controls.shuffled_rows(n, np.random.default_rng(seed))
    assert sorted(order) == list(range(n))
    assert not np.any(order == np.arange(n))
    np.testing.assert_array_equal(order, controls.shuffled_rows(n, np.random.default_rng(seed)))


def test_shuffled_rows_are_uniform_and_need_two():
    rng = np.random.default_rng(0)
    seen = [tuple(controls.shuffled_rows(4, rng)) for _ in range(4500)]
    counts = np.unique(seen, axis=0, return_counts=True)[1]
    assert len(counts) == 9  # the derangements of four
    assert np.all(np.abs(counts - 500) < 100)
    with pytest.raises(InputError, match="at least 2"):
        controls.shuffled_rows(1, rng)
