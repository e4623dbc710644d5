"""Decoders against scikit-learn and brute force, and whole recordings with a known answer."""

import dataclasses
import json

import numpy as np
import pytest
from builders import SHAPES, make_subject, refuses
from safetensors import safe_open
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.model_selection import PredefinedSplit
from sklearn.pipeline import make_pipeline

from minddiff_utils.datasets import Split, prepare_fold
from minddiff_utils.decoding import decode as decoding
from minddiff_utils.decoding import decoders
from minddiff_utils.decoding.components import PrincipalComponents, evidence
from minddiff_utils.decoding.decode import training_folds, voxel_weights
from minddiff_utils.decoding.decoders import Decoder, Method, fit_decoders, make_design, rescaling
from minddiff_utils.decoding.ridge import (
    PENALTIES,
    CrossValidatedRidge,
    ReliabilityScaler,
    assign_folds,
)
from minddiff_utils.decoding.voxel_selected_ridge import VoxelSelectedRidge


def regression(n=60, n_voxels=40, n_targets=25, noise=3.0, seed=0):
    """Responses and targets; the signal fades from the first target to the last."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, n_voxels)).astype(np.float32)
    weights = rng.standard_normal((n_voxels, n_targets)) * np.linspace(2, 0, n_targets)
    y = x @ weights + noise * rng.standard_normal((n, n_targets)) + 5 * rng.random(n_targets)
    return x, y.astype(np.float32)


def fit_decoder(x, y, keep=1.0, folds=None, weights=None, stimulus=None):
    """Each value by itself, with its own penalty; the share `keep` of highest correlation."""
    method = Method(target_components=0, keep_structure=keep, n_components=0)
    return fit_decoders(make_design(x, folds, weights, stimulus), y, "block_1", method)[0]


def splitter(n, n_folds=5):
    """What scikit-learn makes of the folds of so many stimuli."""
    return PredefinedSplit(assign_folds(np.arange(n), n_folds))


# --- one decoder ----------------------------------------------------------------------------------


def repeated(noise, n=80, repetitions=3, seed=0):
    """A subject whose voxels have signal of variance 1 and noise of the given deviations."""
    rng = np.random.default_rng(seed)
    ids = np.repeat(np.arange(n), repetitions)
    signal = rng.standard_normal((n, len(noise)))[ids]
    x = (signal + noise * rng.standard_normal(signal.shape)).astype(np.float32)
    split = Split("main", np.arange(n // 2), np.arange(n // 2, n))
    return make_subject(x, ids, [split]), split


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


@pytest.mark.parametrize(("keep", "n"), [(0.4, 10), (1e-6, 1)])
def test_the_best_scored_share_is_kept(keep, n):
    x, y = regression()
    decoder = fit_decoder(x, y, keep)
    best = np.argsort(-decoder.correlation, kind="stable")[:n]
    np.testing.assert_array_equal(np.flatnonzero(decoder.selected), np.sort(best))
    predicted, whole = decoder.predict(x), fit_decoder(x, y).predict(x)
    assert np.isnan(predicted[:, ~decoder.selected]).all()
    kept = decoder.selected
    np.testing.assert_allclose(predicted[:, kept], whole[:, kept], atol=1e-4)


def test_constant_targets_are_predicted_by_their_mean():
    x, y = regression()
    y[:, 3], y[:, 7] = 2.5, 0
    decoder = fit_decoder(x, y)
    assert decoder.selected.all()
    assert np.isnan(decoder.r2[[3, 7]]).all() and np.isnan(decoder.correlation[[3, 7]]).all()
    np.testing.assert_allclose(decoder.predict(x)[:, [3, 7]], [[2.5, 0]] * len(x), atol=1e-6)
    assert not fit_decoder(x, y, 0.5).selected[[3, 7]].any()
    constant = fit_decoder(x, np.full((len(x), 2), 4, np.float32))
    np.testing.assert_allclose(constant.predict(x), 4)


def test_bad_input_is_named():
    x, y = regression()
    refuses("1 of the training responses", fit_decoder, np.where(x == x[0, 0], np.nan, x), y)
    refuses("1 of the training features", fit_decoder, x, np.where(y == y[0, 0], np.inf, y))
    refuses("30 stimuli have features, 60 have responses", fit_decoder, x, y[:30])


@pytest.mark.parametrize("n_components", [0, 10])
def test_saved_decoder_predicts_the_same(tmp_path, n_components):
    x, y = regression(n_voxels=80)
    method = Method(target_components=n_components, keep_structure=0.5)
    decoder = fit_decoders(make_design(x), y, "block_1", method)[0]
    assert (decoder.right is None) == (n_components == 0)
    path = decoder.save(tmp_path / "deep" / "z.safetensors", {"decoder": "ridge"})
    again = Decoder.load(path)
    for name, value in vars(decoder).items():
        np.testing.assert_array_equal(getattr(again, name), value)
    np.testing.assert_allclose(again.predict(x), decoder.predict(x), atol=1e-4)
    with safe_open(path, "np") as file:
        assert json.loads(file.metadata()["about"]) == {"decoder": "ridge"}


# --- options of a method --------------------------------------------------------------------------


def low_rank(n=80, n_voxels=50, n_values=120, seed=0):
    """Responses and values that follow from three hidden numbers, both with noise."""
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((n, 3))
    x = hidden @ rng.standard_normal((3, n_voxels)) + rng.standard_normal((n, n_voxels))
    y = hidden @ rng.standard_normal((3, n_values)) + rng.standard_normal((n, n_values))
    return x.astype(np.float32), (y + 2).astype(np.float32)


def test_components_of_values_are_decoded_and_put_together():
    x, y = low_rank()
    method = Method(target_components=10, n_components=4)
    decoder, of_components, components = fit_decoders(make_design(x), y, "block_1", method)
    wanted = PrincipalComponents(10).fit(y)
    by_hand = fit_decoder(x, wanted.transform(y))
    values = by_hand.predict(x) @ wanted.components_ + wanted.mean_
    np.testing.assert_allclose(decoder.predict(x), values, atol=1e-3)
    np.testing.assert_allclose(of_components.predict(x), by_hand.predict(x)[:, :4], atol=1e-3)
    np.testing.assert_allclose(of_components.r2, by_hand.r2[:4], atol=1e-4)
    np.testing.assert_array_equal(components.components_, wanted.components_)


@pytest.mark.parametrize("repetitions", [1, 3])
def test_it_is_a_pipeline_of_scikit_learn(repetitions):
    """As chapter 2 composes it, of cloned parts."""
    x, y = low_rank()
    reliability = np.random.default_rng(4).random(50) + 0.1
    stimulus = np.random.default_rng(1).permutation(np.repeat(np.arange(len(y)), repetitions))
    x = x[stimulus] + np.random.default_rng(2).standard_normal((len(stimulus), 50)).astype("f4")
    folds = assign_folds(np.arange(len(y)))
    ridge = CrossValidatedRidge(x.shape[1] * PENALTIES, folds, stimulus)
    composed = TransformedTargetRegressor(
        clone(make_pipeline(ReliabilityScaler(reliability), ridge)),
        transformer=PrincipalComponents(10),
        check_inverse=False,
    ).fit(x, y)
    method = clone(Method()).set_params(target_components=10, rescale_c="none")
    decoder = fit_decoders(make_design(x, folds, reliability, stimulus), y, "c", method)[0]
    np.testing.assert_allclose(composed.predict(x), decoder.predict(x), atol=1e-4)


def test_the_papers_decoder_is_voxel_selected_ridge():
    x, y = low_rank()
    method = Method(decoder="voxel_selected", n_voxels_structure=20, keep_structure=0.25)
    method.set_params(n_components=3)
    decoder, of_components, _ = fit_decoders(make_design(x, method=method), y, "block_1", method)
    model = VoxelSelectedRidge(20, 0.15).fit(x, y)
    held_out = np.empty_like(y)
    for train, held in splitter(len(x)).split():
        held_out[held] = VoxelSelectedRidge(20, 0.15).fit(x[train], y[train]).predict(x[held])
    folds = [held for _, held in splitter(len(x)).split()]
    pairs = [[(y[held, k], held_out[held, k]) for held in folds] for k in range(y.shape[1])]
    r = [np.mean([np.corrcoef(*pair)[0, 1] for pair in each]) for each in pairs]
    np.testing.assert_allclose(decoder.correlation, r, atol=1e-4)
    chosen = np.sort(np.argsort(-np.array(r))[:30])
    np.testing.assert_array_equal(np.flatnonzero(decoder.selected), chosen)
    predicted = decoder.predict(x)[:, chosen]
    np.testing.assert_allclose(predicted, model.predict(x)[:, chosen], atol=1e-3)
    assert of_components.predict(x).shape == (80, 3)


def test_the_sign_of_a_correlation_counts_when_values_are_selected():
    found = decoders.best_share(np.array([0.1, -0.9, np.nan, 0.3]), 0.5)
    np.testing.assert_array_equal(found, [True, False, False, True])


@pytest.mark.parametrize("how", ["target", "global"])
def test_rescaled_predictions_vary_as_the_training_values(how):
    x, y = low_rank()
    plain = fit_decoders(make_design(x), y, "z", Method(rescale_z="none"))[0]
    stretched = fit_decoders(make_design(x), y, "z", Method(rescale_z=how, rescale_power=1))[0]
    halved = np.ones_like(y) + 0.5 * (y - y.mean(0))
    np.testing.assert_allclose(rescaling(y, halved, how), 2, rtol=1e-4)
    np.testing.assert_allclose(rescaling(y, halved, how, 0.5), 2**0.5, rtol=1e-4)
    np.testing.assert_array_equal(rescaling(y, np.zeros_like(y), how), 1)
    ratio = (stretched.predict(x) - y.mean(0)) / (plain.predict(x) - y.mean(0))
    np.testing.assert_allclose(ratio, np.broadcast_to(np.median(ratio, 0), ratio.shape), rtol=0.05)
    assert (np.median(ratio, 0) > 1).all()
    assert (np.ptp(np.median(ratio, 0)) < 1e-2) == (how == "global")
    part = fit_decoders(make_design(x), y, "z", Method(rescale_z=how, rescale_power=0.3))[0]
    less = (part.predict(x) - y.mean(0)) / (plain.predict(x) - y.mean(0))
    np.testing.assert_allclose(np.median(less, 0), np.median(ratio, 0) ** 0.3, rtol=1e-4)
    untouched = fit_decoders(make_design(x), y, "c", Method(rescale_z=how, rescale_c="none"))[0]
    np.testing.assert_array_equal(untouched.predict(x), plain.predict(x))


def test_components_of_c_are_stretched_to_their_spread_by_what_is_held_out():
    x, y = low_rank()
    x = x + 3 * np.random.default_rng(2).standard_normal(x.shape).astype("f4")
    design = make_design(x)
    plain = fit_decoders(design, y, "c", Method(rescale_c="none"))[0]
    stretched, _, components = fit_decoders(design, y, "c", Method())
    scores = components.transform(y)
    held_out = design.fit(scores, "c", Method())[-1].held_out_
    wanted = np.clip(scores.std(0) / held_out.std(0), 1, 3)
    before, after = (components.transform(one.predict(x)) for one in (plain, stretched))
    centre = components.transform(plain.mean_y[None])
    np.testing.assert_allclose(after - centre, (before - centre) * wanted, atol=1e-3)
    assert wanted.max() > 1.5 and wanted.min() >= 1


def two_areas(loud_early):
    """Responses whose first half has loud noise, or is the half that knows the features."""
    rng = np.random.default_rng(3)
    y = rng.standard_normal((120, 4)).astype(np.float32)
    early = np.arange(80) < 40
    x = rng.standard_normal((120, 80)).astype(np.float32)
    knows = ~early if loud_early else early
    x[:, knows] = 0.4 * y @ rng.standard_normal((4, 40)) + 2 * x[:, knows]
    return x, y, early


@pytest.mark.parametrize("loud_early", [True, False])
def test_early_areas_have_less_weight_where_that_predicts_better(loud_early):
    x, y, early = two_areas(loud_early)
    method = Method(target_components=0, rescale_z="none", n_components=0)
    design = make_design(x, early=early, method=method)
    for space in ("z", "c", "embedding"):
        decoder = fit_decoders(design, y, space, method)[0]
        less = loud_early and space != "z"
        wanted = fit_decoder(x, y, weights=np.where(early & less, 0.5, 1))
        np.testing.assert_allclose(decoder.predict(x), wanted.predict(x), atol=1e-5)


# --- a whole recording ----------------------------------------------------------------------------


def test_decoded_file_holds_every_feature_space_and_marks_what_was_not_kept(world, tmp_path):
    features, ids, subject = world
    method, path, saved = Method(keep_structure=0.25), tmp_path / "out/d.h5", tmp_path / "decoders"
    decoding.decode_subject(subject, features, path, method, decoders=saved)
    found = decoding.read_decoded(path)
    parts = ("evidence", "projection", "reliability", "variance")
    evidence = {f"{part}_{name}" for name in "z12" for part in parts}
    assert set(found) == {*SHAPES, *evidence, "c_unstretched", "stimulus_id", "split"}
    np.testing.assert_array_equal(found["stimulus_id"], ids[:30])
    for name, shape in SHAPES.items():
        assert found[name].shape == (30, *shape) and found[name].dtype == np.float32
        missing = np.isnan(found[name])
        assert (missing == missing[:1]).all()  # the same values for every stimulus
        kept = round(0.25 * missing[0].size) if name.startswith("block_") else missing[0].size
        assert (~missing[0]).sum() == kept
    again = Decoder.load(saved / "main" / "z.safetensors")
    predicted = again.predict(prepare_fold(subject, subject.splits[0]).test_x)
    np.testing.assert_allclose(predicted, found["z"].reshape(30, -1), atol=1e-5)


def test_several_splits_stand_below_one_another_each_with_its_own_decoder(world, tmp_path):
    features, ids, subject = world
    splits = [Split("b", ids[20:], ids[:20][::-1]), Split("a", ids[:100], ids[100:])]
    subject = dataclasses.replace(subject, splits=tuple(splits))
    path = decoding.decode_subject(subject, features, tmp_path / "decoded.h5")
    found = decoding.read_decoded(path)
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
    method = Method(n_components=8, min_reliability=0.05, max_reliability=0.9)
    path = decoding.decode_subject(subject, features, tmp_path / "decoded.h5", method)
    found = decoding.read_decoded(path)
    np.testing.assert_array_equal(found["split"], np.repeat([0, 1], [30, 50]))
    assert found["evidence_1"].shape == (80, 8) and found["projection_1"].shape == (2, 24, 8)
    for number, rows in enumerate((slice(0, 30), slice(30, None))):
        fold = decoding.prepare_fold(subject, splits[number])
        y = decoding.read_features(features, "block_1", fold.train_id).reshape(-1, 24)
        components = PrincipalComponents(8).fit(y)
        weights = voxel_weights(subject, splits[number])
        folds = training_folds(subject, fold.train_id)
        decoder = fit_decoder(fold.train_x, components.transform(y), folds=folds, weights=weights)
        wanted = evidence(components, decoder.predict(fold.test_x), decoder.r2, 0.05, 0.9)
        n = components.explained_variance_.size  # five stimuli have four, the rest are padding
        np.testing.assert_allclose(found["projection_1"][number, :, :n], wanted[0], atol=1e-6)
        np.testing.assert_allclose(found["evidence_1"][rows, :n], wanted[1], atol=1e-5)
        assert not found["projection_1"][number, :, n:].any()
        assert not found["evidence_1"][rows, n:].any()
        assert np.isnan(found["reliability_1"][number, n:]).all()


def test_information_is_found_and_the_shuffled_control_is_at_chance(world, tmp_path):
    features, _, subject = world
    path, shuffled = tmp_path / "decoded.h5", tmp_path / "shuffled.h5"
    decoding.decode_subject(subject, features, path, shuffled=shuffled)
    found = decoding.decoding_accuracy(features, path).groupby("feature_space").correlation.mean()
    assert found["z"] > 0.8 and abs(found["c"]) < 0.15
    control = decoding.decoding_accuracy(features, shuffled)
    means = control.groupby("feature_space").correlation.mean()
    assert (means.abs() < 0.15).all(), means


def test_damaged_files_are_named_and_an_old_result_survives_a_failure(world, tmp_path):
    features, _, subject = world
    path = decoding.decode_subject(subject, features, tmp_path / "decoded.h5")
    before = path.read_bytes()
    bad = Method(min_reliability=0.8)
    refuses("least < most", decoding.decode_subject, subject, features, path, bad)
    assert path.read_bytes() == before
    path.write_bytes(before[:1000])
    refuses("decoded.h5 is truncated, damaged or no HDF5 file", decoding.read_decoded, path)
