"""The effective dimension of known spectra; few components and few sessions of a recording."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from builders import make_subject, write_hdf5

from minddiff_utils.datasets import Split, prepare_fold
from minddiff_utils.decoding import decode
from minddiff_utils.decoding.decoders import Method, fit_decoders, make_design
from minddiff_utils.decoding.features import read_values
from minddiff_utils.decoding.ridge import ReliabilityScaler
from minddiff_utils.evaluation import dimension
from minddiff_utils.evaluation.baselines import Bench
from minddiff_utils.evaluation.statistics import effective_dimension
from minddiff_utils.settings import Settings


def spread(eigenvalues, n=400, seed=0):
    """Rows whose covariance has just these eigenvalues, turned and moved."""
    rng = np.random.default_rng(seed)
    d = len(eigenvalues)
    q, _ = np.linalg.qr(rng.normal(size=(n, d)))
    q, _ = np.linalg.qr(q - q.mean(axis=0))
    turn, _ = np.linalg.qr(rng.normal(size=(d, d)))
    return q * np.sqrt(eigenvalues) @ turn + 5


@pytest.mark.parametrize("eigenvalues", [[1, 1, 1, 1], [4, 2, 1, 1], [1, 1e-3, 1e-3, 1e-3]])
def test_both_numbers_follow_from_the_spectrum(eigenvalues):
    p = np.array(eigenvalues) / np.sum(eigenvalues)
    rows = spread(eigenvalues)
    found = effective_dimension(rows)
    assert effective_dimension(7 * np.concatenate([rows, rows])) == pytest.approx(found)
    assert found.participation_ratio == pytest.approx(1 / np.sum(p**2))
    assert found.entropy == pytest.approx(np.prod(p**-p))


def test_decoded_features_are_compared_with_the_same_true_ones(tmp_path):
    true = spread([1, 1, 1, 1], 40).astype("f4")
    known = {"stimulus_id": np.arange(40), "z": true, "block_1": true[:, None]}
    write_hdf5(tmp_path / "features.h5", known)
    decoded = known | {"z": true * 3, "block_1": true[:, None].copy()}
    decoded["block_1"][:, 0, 1:] = np.nan  # not decoded
    decoded["z"] = decoded["z"] @ np.outer([1, 2, 0, 1], [1, 1, 2, 0])  # on a line
    table = dimension.dimension_table(decoded, tmp_path / "features.h5")
    assert table.loc["z"].tolist() == ["4", "1.0", "4.0", "1.0", "4.0"]
    assert table.loc["block 1"].tolist() == ["1", "1.0", "1.0", "1.0", "1.0"]


# --- few components and few sessions: what decoders then see --------------------------------------

N, N_TEST, N_VOXELS = 90, 20, 24
SHAPES = {"z": (2, 2, 3), "c": (3, 4)}


@pytest.fixture
def bench(tmp_path):
    """Pictures seen twice in six sessions; three of many dimensions of the features are large.

    Early areas answer to `z` and higher ones to `c`, with gain and offset of the session.
    """
    rng = np.random.default_rng(0)
    latent, spaces = rng.normal(size=(N, 3)), {}
    for name, shape in SHAPES.items():
        size = np.prod(shape)
        values = latent @ rng.normal(size=(3, size)) + 0.1 * rng.normal(size=(N, size))
        spaces[name] = values.reshape(N, *shape).astype("f4")
    write_hdf5(tmp_path / "features.h5", {"stimulus_id": np.arange(N), **spaces})
    features = np.concatenate([values.reshape(N, -1) for values in spaces.values()], axis=1)
    ids, session = rng.permutation(np.repeat(np.arange(N), 2)), np.repeat(np.arange(1, 7), N // 3)
    responses = features[ids] @ np.eye(N_VOXELS) + 0.5 * rng.normal(size=(len(ids), N_VOXELS))
    responses = responses * (1 + session[:, None] / 10) + session[:, None]
    early = np.arange(N_VOXELS) < 8
    train, test = np.arange(N_TEST, N), np.split(np.arange(N_TEST), 2)
    splits = Split("a", train, test[0]), Split("b", train[1:], test[1])
    roi = {"V1": early, "LO": ~early}
    person = make_subject(responses, ids, splits, session=session, roi=roi)
    return with_run(person, tmp_path, Method(target_components=9, n_folds=3))


def with_run(person, folder, method):
    """A bench of what the run has decoded."""
    path = decode.decode_subject(person, folder / "features.h5", folder / "decoded.h5", method)
    generator, first = SimpleNamespace(device="cpu"), Settings()
    decoded, features = decode.read_decoded(path), folder / "features.h5"
    return Bench(person, generator, decoded, features, folder, first, first)


def assert_same(found, wanted, tolerance=2e-3):
    for name in SHAPES:
        np.testing.assert_allclose(found[name], wanted[name], atol=tolerance, err_msg=name)


def accuracy(bench, found, name="c"):
    true = read_values(bench.features, name, bench.decoded["stimulus_id"])
    return decode.correlations(true, found[name].reshape(len(true), -1)).mean()


# --- few components ---


@pytest.mark.parametrize("repetitions", ["average", "keep"])
@pytest.mark.parametrize("band", [1.0, 0.5, 0.1])
def test_all_components_give_what_the_run_has_decoded(bench, tmp_path, repetitions, band):
    person = replace(bench.person, repetitions=repetitions)
    method = Method(target_components=9, n_folds=3, early_band_scale=band)
    bench = with_run(person, tmp_path, method)
    n = dimension.all_components(person)
    assert n == N_VOXELS
    found = dimension.decode_components(bench, (n, n + 1))
    assert list(found) == [n]
    assert_same(found[n], bench.decoded)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_few_components_are_the_run_on_projected_voxels(bench, k):
    """The same decoders of responses that were projected voxel by voxel."""
    person, split, method = bench.person, bench.person.splits[0], Method(target_components=9)
    fold, weights = prepare_fold(person, split), decode.voxel_weights(person, split)
    scaler = ReliabilityScaler(weights).fit(fold.train_x)
    _, _, axes = np.linalg.svd(scaler.transform(fold.train_x), full_matrices=False)
    axes = axes[:k]
    both = (scaler.transform(x) @ axes.T @ axes for x in (fold.train_x, fold.test_x))
    train, test = (x / scaler.scale_ + scaler.mean_ for x in both)
    folds = decode.training_folds(person, split.train, 3)
    early, rows = person.roi["V1"], decode.stimulus_of_rows(split, fold)
    design = make_design(train, folds, weights, rows, early, method)
    found = dimension.decode_components(bench, (k,))[k]
    for name in SHAPES:
        y = read_values(bench.features, name, split.train)
        wanted = fit_decoders(design, y, name, method)[0].predict(test)
        first = found[name].reshape(N_TEST, -1)[: len(wanted)]
        np.testing.assert_allclose(first, wanted, atol=2e-3)


def test_a_signal_of_three_dimensions_needs_three(bench):
    found = dimension.decode_components(bench, (1, 3, N_VOXELS))
    one, three, every = (accuracy(bench, each) for each in found.values())
    assert every > 0.8 and three == pytest.approx(every, abs=0.03) and one < three - 0.2


def test_test_responses_have_no_part_in_the_components(bench):
    person = bench.person
    changed = np.isin(person.stimulus_id, np.arange(5))
    other = np.where(changed[:, None], 30 * person.responses[::-1], person.responses)
    benches = bench, replace(bench, person=replace(person, responses=other))
    before, after = (dimension.decode_components(each, (2,))[2]["z"] for each in benches)
    np.testing.assert_array_equal(before[5:], after[5:])
    assert not np.allclose(before[:5], after[:5])


# --- few sessions ---


def test_all_sessions_give_what_the_run_has_decoded(bench):
    found = dimension.decode_sessions(bench, (1, 6))
    assert_same(found[6], bench.decoded, 1e-6)
    assert accuracy(bench, found[1]) < accuracy(bench, found[6])


def test_no_session_sees_a_later_one(bench):
    """Trials of a later session change places, which leaves its mean and deviation alone."""
    person, rng = bench.person, np.random.default_rng(1)
    place = np.arange(len(person.stimulus_id))
    train = person.stimulus_id >= N_TEST + 1  # of both splits
    for session in (4, 5, 6):
        trials = np.flatnonzero(train & (person.session == session))
        place[trials] = rng.permutation(trials)
    other = replace(bench, person=replace(person, responses=person.responses[place]))
    before, after = (dimension.decode_sessions(each, (1, 3, 4)) for each in (bench, other))
    for n in (1, 3):
        assert_same(before[n], after[n], 1e-6)
    assert not np.allclose(before[4]["z"], after[4]["z"], atol=1e-3)
