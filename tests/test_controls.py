"""Controls: baselines that know nothing of the brain, and the permutation test."""

from itertools import permutations
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minddiff_utils.datasets import Split
from minddiff_utils.evaluation import controls
from minddiff_utils.io import InputError


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


# --- the same two stages from other inputs ---


def small_recording(n=40, n_test=6, seed=0):
    """Features of 46 stimuli in a file, and what a decoder with noise makes of the last ones."""
    rng = np.random.default_rng(seed)
    shapes = {"z": (2, 4, 4), "c": (3, 5), "embedding": (7,), "block_1": (4, 6), "block_2": (4, 6)}
    return {name: rng.normal(1, 1, (n + n_test, *s)).astype("f4") for name, s in shapes.items()}


@pytest.fixture
def recording(tmp_path):
    """Path of features, decoded features and splits: two of them, which share no test picture."""
    values, path = small_recording(), tmp_path / "features.h5"
    ids = np.arange(46) * 3
    with h5py.File(path, "w") as file:
        file["stimulus_id"] = ids
        for name, rows in values.items():
            file[name] = rows
    splits = (Split("a", ids[6:], ids[:3]), Split("b", ids[8:], ids[3:6]))
    rng = np.random.default_rng(1)
    decoded = {
        name: rows[:6] + 0.1 * rng.normal(size=rows[:6].shape) for name, rows in values.items()
    }
    decoded["block_2"][:, 0, 0] = np.nan  # not decoded
    decoded |= {"stimulus_id": ids[:6], "split": np.array([0, 0, 0, 1, 1, 1])}
    for number in (1, 2):
        decoded[f"projection_{number}"] = rng.normal(size=(2, 24, 5)).astype("f4")
        decoded[f"evidence_{number}"] = rng.normal(size=(6, 5)).astype("f4")
    return path, decoded, splits, values


def test_true_features_are_those_of_the_file(recording):
    path, decoded, _, values = recording
    found = controls.true_features(decoded, path)
    assert set(found) == set(decoded)
    np.testing.assert_array_equal(found["z"], values["z"][:6])
    np.testing.assert_array_equal(found["block_1"], values["block_1"][:6])
    # What was not decoded does not become known.
    assert np.isnan(found["block_2"][:, 0, 0]).all() and np.isfinite(found["block_2"][:, 1:]).all()
    for row in range(6):
        projection = decoded["projection_1"][decoded["split"][row]]
        expected = values["block_1"][row].ravel() @ projection
        np.testing.assert_allclose(found["evidence_1"][row], expected, rtol=1e-4)
    assert not np.array_equal(decoded["z"], values["z"][:6])  # the input is left alone


@pytest.mark.parametrize("block", [7, 256])
def test_mean_features_are_those_of_each_split(recording, monkeypatch, block):
    monkeypatch.setattr(controls, "BLOCK", block)
    path, decoded, splits, values = recording
    found = controls.mean_features(decoded, path, splits)
    for row, first in ((0, 6), (4, 8)):
        np.testing.assert_allclose(found["c"][row], values["c"][first:].mean(0), atol=1e-5)
        mean = values["block_2"][first:].mean(0).ravel()
        projection = decoded["projection_2"][decoded["split"][row]]
        np.testing.assert_allclose(found["evidence_2"][row], mean @ projection, atol=1e-4)
    assert np.isnan(found["block_2"][:, 0, 0]).all()


def test_nearest_training_picture_is_found_and_never_a_test_picture(recording):
    path, decoded, splits, values = recording
    wanted = np.array([12, 20, 30, 9, 44, 13])  # rows of training pictures
    for name in ("z", "c", "embedding"):
        noise = np.random.default_rng(3).normal(size=decoded[name].shape)
        decoded[name] = values[name][wanted] + 0.3 * noise
    np.testing.assert_array_equal(controls.nearest_training(decoded, path, splits), wanted * 3)
    for name in ("z", "c", "embedding"):
        decoded[name] = values[name][:6]  # exactly the test pictures, which are not to be had
    found = controls.nearest_training(decoded, path, splits)
    assert all(i in splits[k].train for i, k in zip(found, decoded["split"], strict=True))


def test_blur_keeps_brightness_and_takes_away_detail():
    pictures = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    found = controls.blurred(pictures, 0.1)
    assert found.shape == pictures.shape and found.dtype == np.uint8
    assert found.std() < 0.3 * pictures.std()
    assert found.mean() == pytest.approx(pictures.mean(), rel=0.02)
    np.testing.assert_array_equal(controls.blurred(pictures, 1e-4), pictures)
    with pytest.raises(InputError, match="share=0"):
        controls.blurred(pictures, 0)


def test_controls_are_chosen_by_name():
    assert controls.choose_controls("") == []
    assert controls.choose_controls(" blur, ceiling") == ["ceiling", "blur"]
    with pytest.raises(InputError, match="sealing"):
        controls.choose_controls("sealing,blur")


def test_settings_are_read_back_from_what_reconstruct_wrote(tiny_models, tmp_path):
    from minddiff_utils.models.stable_diffusion import load_generator
    from minddiff_utils.reconstruction.results import read_pictures
    from minddiff_utils.reconstruction.stage2 import reconstruct
    from minddiff_utils.settings import Settings

    generator = load_generator(tiny_models, "cpu", "float32")
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2, *generator.encode_pictures(np.zeros((1, 64, 64, 3), "u1")).shape[1:]))
    c = generator.empty_condition().numpy().repeat(2, axis=0)
    decoded = {"stimulus_id": np.array([5, 9]), "z": z, "c": c, "block_1": np.ones((2, 65, 128))}
    settings = Settings(3, 0.7, solver="algorithm_1", iterations=0, structure_target="values")
    path = reconstruct(generator, decoded, settings, tmp_path / "x.h5", seed=4)
    assert controls.settings_of(path) == (settings, 4)
    # Told nothing, it paints the same whatever was decoded.
    other = decoded | {"z": z + 1, "c": c + 1}
    prior = [
        read_pictures(
            reconstruct(
                generator, *controls.no_brain(generator, given, settings), tmp_path / name, seed=4
            )
        )
        for given, name in ((decoded, "a.h5"), (other, "b.h5"))
    ]
    np.testing.assert_array_equal(*prior)
    assert not np.array_equal(prior[0], read_pictures(path))
    with pytest.raises(InputError, match=r"none\.h5 cannot be read"):
        controls.settings_of(tmp_path / "none.h5")
