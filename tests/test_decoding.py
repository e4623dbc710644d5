"""Decoders against scikit-learn and brute force, and whole recordings with a known answer."""

import dataclasses

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold

from minddiff_utils import decoding
from minddiff_utils.datasets import Split, Subject
from minddiff_utils.decoding import (
    PENALTIES,
    fit_decoder,
    load_decoder,
    save_decoder,
    voxel_weights,
)
from minddiff_utils.files import InputError

SHAPES = {"z": (4, 2, 2), "c": (3, 5), "block_1": (4, 6), "block_2": (4, 6), "embedding": (7,)}


def regression(n=60, n_voxels=40, n_targets=25, noise=3.0, seed=0):
    """Responses and targets; the signal fades from the first target to the last."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, n_voxels)).astype(np.float32)
    weights = rng.standard_normal((n_voxels, n_targets)) * np.linspace(2, 0, n_targets)
    y = x @ weights + noise * rng.standard_normal((n, n_targets)) + 5 * rng.random(n_targets)
    return x, y.astype(np.float32)


# --- one decoder ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_voxels", [20, 200])
def test_weights_and_predictions_are_those_of_scikit_learn(n_voxels):
    x, y = regression(n_voxels=n_voxels)
    new = np.random.default_rng(1).standard_normal((9, n_voxels)).astype(np.float32)
    decoder = fit_decoder(x, y)
    weights, predicted = decoder.train_x.T @ decoder.dual, decoder.predict(new)
    scale = y.std(0)
    assert predicted.dtype == np.float32 and predicted.shape == (9, y.shape[1])
    for target, penalty in enumerate(decoder.penalty):
        ridge = Ridge(alpha=float(penalty), solver="svd").fit(x.astype(float), y[:, target])
        assert np.abs(weights[:, target] - ridge.coef_).max() < 1e-4 * scale[target]
        assert np.abs(predicted[:, target] - ridge.predict(new)).max() < 1e-4 * scale[target]


def test_weighted_voxels_are_ridge_on_scaled_voxels():
    x, y = regression()
    given = np.random.default_rng(2).random(40) + 0.1
    decoder = fit_decoder(x, y, weights=given)
    scale = given / np.sqrt(np.mean(given**2))
    for target, penalty in enumerate(decoder.penalty):
        ridge = Ridge(alpha=float(penalty)).fit(x * scale, y[:, target])
        wanted = ridge.predict(x[:9] * scale)
        np.testing.assert_allclose(decoder.predict(x[:9])[:, target], wanted, rtol=1e-4, atol=1e-3)
    twice = fit_decoder(x, y, weights=2 * given)
    np.testing.assert_allclose(twice.dual, decoder.dual, rtol=1e-4, atol=1e-6)


def repeated(noise, n=80, repetitions=3, seed=0):
    """A subject whose voxels have signal of variance 1 and noise of the given deviations."""
    rng = np.random.default_rng(seed)
    ids = np.repeat(np.arange(n), repetitions)
    signal = rng.standard_normal((n, len(noise)))[ids]
    x = (signal + noise * rng.standard_normal(signal.shape)).astype(np.float32)
    split = Split("main", np.arange(n // 2), np.arange(n // 2, n))
    everywhere = {"A": np.ones(len(noise), bool)}
    session = np.ones(len(ids), np.int64)
    return Subject("s", "test", x, ids, session, everywhere, (split,), None), split


def test_voxels_weigh_what_repeats_of_them_in_training_trials_alone():
    noise = np.repeat([0.5, 1.0, 2.0, 20.0], 400)
    subject, split = repeated(noise)
    weights = voxel_weights(subject, split).reshape(4, 400).mean(axis=1)
    np.testing.assert_allclose(weights[:3], 1 / (1 + np.array([0.25, 1, 4]) / 3), atol=0.05)
    assert weights[3] < 0.12
    spoilt = subject.responses.copy()
    spoilt[subject.stimulus_id >= 40] = 1e6
    other = dataclasses.replace(subject, responses=spoilt)
    np.testing.assert_array_equal(voxel_weights(other, split), voxel_weights(subject, split))


def test_without_repetitions_all_voxels_weigh_the_same():
    subject, split = repeated(np.ones(5), repetitions=1)
    np.testing.assert_array_equal(voxel_weights(subject, split), np.ones(5))


@pytest.mark.parametrize("n_folds", [2, 5])
def test_penalty_and_score_are_those_of_brute_force(n_folds):
    x, y = regression()
    decoder = fit_decoder(x, y, n_folds=n_folds)
    x, y = x.astype(float) - x.mean(0), y.astype(float) - y.mean(0)
    penalties = x.shape[1] * PENALTIES
    scores = np.zeros((len(penalties), y.shape[1]))
    for row, penalty in enumerate(penalties):
        for train, test in KFold(n_folds).split(x):
            ridge = Ridge(alpha=penalty, fit_intercept=False).fit(x[train], y[train])
            found = r2_score(y[test], ridge.predict(x[test]), multioutput="raw_values")
            scores[row] += found / n_folds
    np.testing.assert_allclose(decoder.score, scores.max(0), atol=1e-4)
    np.testing.assert_allclose(decoder.penalty, penalties[scores.argmax(0)], rtol=1e-5)


def test_blocks_of_targets_change_nothing():
    x, y = regression()
    one, many = fit_decoder(x, y), fit_decoder(x, y, block=4)
    np.testing.assert_allclose(one.dual, many.dual, atol=1e-5)
    np.testing.assert_array_equal(one.penalty, many.penalty)


@pytest.mark.parametrize(("keep", "n"), [(1.0, 25), (0.4, 10), (0.25, 6), (1e-6, 1)])
def test_the_best_scored_share_is_kept(keep, n):
    x, y = regression()
    decoder = fit_decoder(x, y, keep)
    best = np.argsort(-decoder.score, kind="stable")[:n]
    np.testing.assert_array_equal(np.flatnonzero(decoder.selected), np.sort(best))
    predicted, whole = decoder.predict(x), fit_decoder(x, y).predict(x)
    assert np.isnan(predicted[:, ~decoder.selected]).all()
    np.testing.assert_allclose(
        predicted[:, decoder.selected], whole[:, decoder.selected], atol=1e-4
    )


def test_constant_targets_are_predicted_by_their_mean():
    x, y = regression()
    y[:, 3], y[:, 7] = 2.5, 0
    decoder = fit_decoder(x, y)
    assert decoder.selected.all()
    assert np.isnan(decoder.score[[3, 7]]).all() and np.isnan(decoder.penalty[[3, 7]]).all()
    np.testing.assert_allclose(decoder.predict(x)[:, [3, 7]], [[2.5, 0]] * len(x), atol=1e-6)
    assert not fit_decoder(x, y, 0.5).selected[[3, 7]].any()
    constant = fit_decoder(x, np.full((len(x), 2), 4, np.float32))
    np.testing.assert_allclose(constant.predict(x), 4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x, y: (np.where(x == x[0, 0], np.nan, x), y, 1.0), "1 of the training responses"),
        (lambda x, y: (x, np.where(y == y[0, 0], np.inf, y), 1.0), "1 of the training features"),
        (lambda x, y: (x[:3], y[:3], 1.0), "3 training stimuli"),
        (lambda x, y: (x, y, 0.0), "keep=0.0"),
        (lambda x, y: (x, y, 1.5), "keep=1.5"),
        (lambda x, y: (x, y, float("nan")), "keep=nan"),
    ],
)
def test_bad_input_is_named(change, said):
    x, y, keep = change(*regression())
    with pytest.raises(InputError, match=said):
        fit_decoder(x, y, keep)


def test_four_stimuli_are_enough():
    x, y = regression(n=4)
    assert np.isfinite(fit_decoder(x, y).predict(x)).all()


def test_saved_decoder_predicts_the_same(tmp_path):
    x, y = regression()
    decoder = fit_decoder(x, y, 0.5)
    again = load_decoder(save_decoder(decoder, tmp_path / "deep" / "z.safetensors"))
    for name, value in vars(decoder).items():
        np.testing.assert_array_equal(getattr(again, name), value)
    np.testing.assert_allclose(again.predict(x), decoder.predict(x), atol=1e-4)


def test_foreign_damaged_and_missing_files_are_named(tmp_path):
    x, y = regression()
    path = save_decoder(fit_decoder(x, y), tmp_path / "z.safetensors")
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputError, match="z.safetensors cannot be read"):
        load_decoder(path)
    save_file({"a": x}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="other.safetensors is no decoder"):
        load_decoder(tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="none.safetensors"):
        load_decoder(tmp_path / "none.safetensors")


# --- a whole recording ----------------------------------------------------------------------------


def write_features(path, ids, seed=0):
    """Random features of every family, as `features.write_features` lays them out."""
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        file["stimulus_id"] = ids
        for name, shape in SHAPES.items():
            file[name] = rng.standard_normal((len(ids), *shape)).astype(np.float32)
    return path


def recording(features, splits, noise=1.0, seed=1):
    """A subject: the voxels of region A mix the values of `z`, those of region B are noise."""
    rng = np.random.default_rng(seed)
    with h5py.File(features) as file:
        ids, z = file["stimulus_id"][:], file["z"][:].reshape(len(file["z"]), -1)
    signal = np.concatenate([z @ rng.standard_normal((16, 50)), np.zeros((len(ids), 50))], axis=1)
    rows = rng.permutation(np.tile(np.arange(len(ids)), 2))
    responses = signal[rows] + noise * rng.standard_normal((len(rows), 100))
    return Subject(
        name="s1",
        dataset="made up",
        responses=responses.astype(np.float32),
        stimulus_id=ids[rows],
        session=np.arange(len(rows)) % 2 + 1,
        roi={"A": np.arange(100) < 50, "B": np.arange(100) >= 50},
        splits=tuple(splits),
        stimuli=None,
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Features of 150 stimuli with gaps between their ids, and a subject with one split."""
    ids = np.arange(150) * 7 + 3
    path = write_features(tmp_path_factory.mktemp("features") / "features.h5", ids)
    return path, ids, recording(path, [Split("main", ids[30:], ids[:30])])


def test_decoded_file_holds_every_family_and_marks_what_was_not_kept(world, tmp_path):
    features, ids, subject = world
    path = decoding.decode_subject(
        subject,
        features,
        tmp_path / "out" / "decoded.h5",
        keep_structure=0.25,
        decoders=tmp_path / "decoders",
    )
    found = decoding.read_decoded(path)
    blocks = [name for name in SHAPES if name.startswith("block_")]
    evidence = {
        f"{part}_{name[-1]}"
        for name in ["z", *blocks]
        for part in ("evidence", "projection", "reliability", "variance")
    }
    assert set(found) == {*SHAPES, *evidence, "stimulus_id", "split"}
    np.testing.assert_array_equal(found["stimulus_id"], ids[:30])
    for name, shape in SHAPES.items():
        assert found[name].shape == (30, *shape) and found[name].dtype == np.float32
        missing = np.isnan(found[name])
        assert (missing == missing[:1]).all()  # the same values for every stimulus
        kept = round(0.25 * missing[0].size) if name.startswith("block_") else missing[0].size
        assert (~missing[0]).sum() == kept
    saved = load_decoder(tmp_path / "decoders" / "main" / "z.safetensors")
    fold = decoding.prepare_fold(subject, subject.splits[0])
    found_z = found["z"].reshape(30, -1)
    np.testing.assert_allclose(saved.predict(fold.test_x), found_z, atol=1e-5)


def test_several_splits_stand_below_one_another_each_with_its_own_decoder(world, tmp_path):
    features, ids, subject = world
    splits = [Split("b", ids[20:], ids[:20][::-1]), Split("a", ids[:100], ids[100:])]
    subject = dataclasses.replace(subject, splits=tuple(splits))
    found = decoding.read_decoded(
        decoding.decode_subject(subject, features, tmp_path / "decoded.h5", keep_structure=1.0)
    )
    order = np.concatenate([ids[:20][::-1], ids[100:]])
    np.testing.assert_array_equal(found["stimulus_id"], order)
    assert np.isfinite(found["block_1"]).all()
    for split, rows in zip(splits, (slice(0, 20), slice(20, None)), strict=True):
        alone = dataclasses.replace(subject, splits=(split,))
        path = decoding.decode_subject(alone, features, tmp_path / f"{split.name}.h5")
        np.testing.assert_array_equal(decoding.read_decoded(path)["c"], found["c"][rows])


def test_evidence_is_that_of_each_split_by_hand(world, tmp_path):
    features, ids, subject = world
    splits = [Split("a", ids[30:], ids[:30]), Split("b", ids[:5], ids[100:])]
    subject = dataclasses.replace(subject, splits=tuple(splits))
    path = decoding.decode_subject(
        subject, features, tmp_path / "decoded.h5", n_components=8, reliability=(0.05, 0.9)
    )
    found = decoding.read_decoded(path)
    np.testing.assert_array_equal(found["split"], np.repeat([0, 1], [30, 50]))
    assert found["evidence_1"].shape == (80, 8) and found["projection_1"].shape == (2, 24, 8)
    for number, rows in enumerate((slice(0, 30), slice(30, None))):
        fold = decoding.prepare_fold(subject, splits[number])
        y = decoding.read_features(features, "block_1", fold.train_id).reshape(-1, 24)
        components = decoding.fit_components(y, 8)
        weights = voxel_weights(subject, splits[number])
        decoder = fit_decoder(fold.train_x, components.scores(y), weights=weights)
        wanted = decoding.evidence(
            components, decoder.predict(fold.test_x), decoder.score, 0.05, 0.9
        )
        n = components.variance.size  # five stimuli have four components, the rest are padding
        np.testing.assert_allclose(found["projection_1"][number, :, :n], wanted[0], atol=1e-6)
        np.testing.assert_allclose(found["evidence_1"][rows, :n], wanted[1], atol=1e-5)
        assert not found["projection_1"][number, :, n:].any()
        assert not found["evidence_1"][rows, n:].any()
        assert np.isnan(found["reliability_1"][number, n:]).all()


def test_same_input_same_numbers(world, tmp_path):
    features, _, subject = world
    one, two = (
        decoding.read_decoded(decoding.decode_subject(subject, features, tmp_path / f"{k}.h5"))
        for k in "ab"
    )
    for name, values in one.items():
        np.testing.assert_array_equal(values, two[name])


def test_information_is_found_and_the_shuffled_control_is_at_chance(world, tmp_path):
    features, _, subject = world
    path = decoding.decode_subject(subject, features, tmp_path / "decoded.h5")
    found = decoding.decoding_accuracy(features, path).groupby("family").correlation.mean()
    assert found["z"] > 0.8 and abs(found["c"]) < 0.15
    path = decoding.decode_subject(subject, features, tmp_path / "shuffled.h5", shuffle_seed=0)
    control = decoding.decoding_accuracy(features, path, control=True)
    assert control.control.all()
    means = control.groupby("family").correlation.mean()
    assert (means.abs() < 0.15).all(), means


def test_accuracy_is_numpys_correlation_of_the_kept_values(world, tmp_path):
    features, ids, subject = world
    path = decoding.decode_subject(subject, features, tmp_path / "decoded.h5")
    accuracy = decoding.decoding_accuracy(features, path)
    for name in ("z", "block_2"):
        decoded = decoding.read_decoded(path)[name].reshape(30, -1)
        with h5py.File(features) as file:
            true = file[name][:30].reshape(30, -1)
        kept = np.isfinite(decoded).all(0)
        wanted = [np.corrcoef(true[:, k], decoded[:, k])[0, 1] for k in np.flatnonzero(kept)]
        got = accuracy.loc[accuracy.family == name, "correlation"]
        np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_regions_tell_which_one_knows(world):
    features, _, subject = world
    table = decoding.roi_accuracies(subject, features, names=("z", "c", "block_9"), n_targets=10)
    assert list(table) == ["family", "roi", "correlation"]
    assert len(table) == 2 * 2 * 10  # families that are there, regions, values
    means = table.groupby(["family", "roi"]).correlation.mean()
    assert means["z", "A"] > 0.8
    assert max(abs(means["z", "B"]), abs(means["c", "A"]), abs(means["c", "B"])) < 0.2


def test_damaged_files_are_named_and_an_old_result_survives_a_failure(world, tmp_path):
    features, _, subject = world
    path = decoding.decode_subject(subject, features, tmp_path / "decoded.h5")
    before = path.read_bytes()
    with pytest.raises(InputError, match="keep=7"):
        decoding.decode_subject(subject, features, path, keep_structure=7)
    assert path.read_bytes() == before
    path.write_bytes(before[:1000])
    with pytest.raises(InputError, match="decoded.h5 cannot be read"):
        decoding.read_decoded(path)
