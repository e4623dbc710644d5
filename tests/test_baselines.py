"""Baselines: what they may look at, and nothing else; other methods as changes of this one."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from builders import make_subject, read_hdf5, refuses, write_hdf5

from minddiff_utils.datasets import Split
from minddiff_utils.decoding.decode import decode_subject, decode_tests, read_decoded
from minddiff_utils.decoding.decoders import Method
from minddiff_utils.evaluation import baselines
from minddiff_utils.io import method_file
from minddiff_utils.models.stable_diffusion import load_generator
from minddiff_utils.reconstruction.results import read_pictures, write_pictures
from minddiff_utils.reconstruction.stage2 import reconstruct
from minddiff_utils.settings import Settings


def make_bench(folder, decoded, splits=(), generator=None, settings=None, person=None):
    person = person or SimpleNamespace(splits=splits)
    generator = generator or SimpleNamespace(device="cpu")
    settings = settings or Settings(structure_target="values")
    features = folder / "features.h5"
    return baselines.Bench(person, generator, decoded, features, folder, settings, settings)


class Drawn:
    """Pictures of random pixels, told apart by their id."""

    def pictures(self, ids):
        return np.stack([np.random.default_rng(i).integers(0, 256, (4, 4, 3)) for i in ids])


@pytest.mark.parametrize("block", [7, 256])
def test_mean_pictures_of_each_split_whatever_the_block(monkeypatch, block):
    monkeypatch.setattr(baselines, "BLOCK", block)
    ids = np.arange(30)
    splits = Split("a", ids[:20], ids[20:23]), Split("b", ids[:5], ids[9:10])
    person = SimpleNamespace(stimuli=Drawn(), splits=splits)
    generator = SimpleNamespace(resize=lambda pictures: pictures)
    found = baselines.mean_pictures(SimpleNamespace(person=person, generator=generator))
    wanted = [np.rint(Drawn().pictures(split.train).mean(axis=0)) for split in splits]
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.stack([wanted[0]] * 3 + [wanted[1]]))


# --- the same two stages from other inputs ---


@pytest.fixture
def recording(tmp_path):
    """A bench of two splits, which share no test picture, and the true features."""
    rng = np.random.default_rng(0)
    shapes = {"z": (2, 4, 4), "c": (3, 5), "embedding": (7,), "block_1": (4, 6), "block_2": (4, 6)}
    values = {name: rng.normal(1, 1, (46, *shape)).astype("f4") for name, shape in shapes.items()}
    ids = np.arange(46) * 3
    write_hdf5(tmp_path / "features.h5", {"stimulus_id": ids, **values})
    splits = (Split("a", ids[6:], ids[:3]), Split("b", ids[8:], ids[3:6]))
    first = {name: rows[:6] for name, rows in values.items()}
    decoded = {k: rows + 0.1 * rng.normal(size=rows.shape) for k, rows in first.items()}
    decoded["block_2"][:, 0, 0] = np.nan  # not decoded
    decoded |= {"stimulus_id": ids[:6], "split": np.array([0, 0, 0, 1, 1, 1])}
    for number in (1, 2):
        decoded[f"projection_{number}"] = rng.normal(size=(2, 24, 5)).astype("f4")
        decoded[f"evidence_{number}"] = rng.normal(size=(6, 5)).astype("f4")
    return make_bench(tmp_path, decoded, splits), values


def test_true_features_are_those_of_the_file(recording):
    bench, values = recording
    decoded = bench.decoded
    found = baselines.true_features(decoded, bench.features)
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
    monkeypatch.setattr(baselines, "BLOCK", block)
    bench, values = recording
    found = baselines.mean_features(bench)
    for row, first in ((0, 6), (4, 8)):
        np.testing.assert_allclose(found["c"][row], values["c"][first:].mean(0), atol=1e-5)
        mean = values["block_2"][first:].mean(0).ravel()
        projection = bench.decoded["projection_2"][bench.decoded["split"][row]]
        np.testing.assert_allclose(found["evidence_2"][row], mean @ projection, atol=1e-4)
    assert np.isnan(found["block_2"][:, 0, 0]).all()


def test_nearest_training_picture_is_found_and_never_a_test_picture(recording, monkeypatch):
    bench, values = recording
    decoded, splits = bench.decoded, bench.person.splits
    wanted = np.array([12, 20, 30, 9, 44, 13])  # rows of training pictures
    for name in ("z", "c", "embedding"):
        noise = np.random.default_rng(3).normal(size=decoded[name].shape)
        decoded[name] = values[name][wanted] + 0.3 * noise
    np.testing.assert_array_equal(baselines.nearest_training(bench), wanted * 3)
    for name in ("z", "c", "embedding"):
        decoded[name] = values[name][:6]  # exactly the test pictures, which are not to be had
    found = baselines.nearest_training(bench)
    assert all(i in splits[k].train for i, k in zip(found, decoded["split"], strict=True))
    # The neighbours of the stimuli themselves, whatever was decoded.
    decoded |= {name: np.zeros_like(decoded[name]) for name in ("z", "c", "embedding")}
    monkeypatch.setattr(baselines.Bench, "seen", lambda self, ids: ids)
    np.testing.assert_array_equal(baselines.neighbour(bench), found)


def test_settings_are_read_back_and_the_prior_knows_nothing(tiny_models, tmp_path):
    generator = load_generator(tiny_models, "cpu", "float32")
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2, *generator.encode_pictures(np.zeros((1, 64, 64, 3), "u1")).shape[1:]))
    c = generator.empty.numpy().repeat(2, axis=0)
    decoded = {"stimulus_id": np.array([5, 9]), "z": z, "c": c, "block_1": np.ones((2, 65, 128))}
    settings = Settings(3, 0.7, solver="algorithm_1", iterations=0, structure_target="values")
    path = reconstruct(generator, decoded, settings, tmp_path / "x.h5", seed=4)
    assert baselines.settings_of(path) == (settings, 4)
    # Told nothing, it paints the same whatever was decoded.
    prior = [
        baselines.make_control("prior", make_bench(tmp_path / name, given, (), generator, settings))
        for given, name in ((decoded, "a"), (decoded | {"z": z + 1, "c": c + 1}, "b"))
    ]
    np.testing.assert_array_equal(*prior)
    assert not np.array_equal(prior[0], read_pictures(path))


@pytest.fixture
def stages(tiny_models, tmp_path):
    """A subject's folder after chapter 04, and a function that runs either stage into it."""
    generator = load_generator(tiny_models, "cpu", "float32")
    z = np.random.default_rng(0).normal(size=(2, 4, 16, 16)).astype(np.float32)
    c = generator.empty.numpy().repeat(2, axis=0)
    decoded = {"stimulus_id": np.array([5, 9]), "z": z, "c": c, "block_1": np.ones((2, 65, 128))}
    write_hdf5(tmp_path / "decoded.h5", decoded)
    known = {"solver": "algorithm_1", "ablations": False, "n_seeds": 2}
    (tmp_path / "run.json").write_text(json.dumps({"04_stage2": known}))
    write_pictures(method_file(tmp_path, "truth"), [5, 9], np.zeros((2, 64, 64, 3), np.uint8))

    def paint(method, seed=4, draw=None, **changes):
        known = {"solver": "algorithm_1", "iterations": 0, "structure_target": "values", **changes}
        settings = Settings(n_steps=3, **known)
        reconstruct(generator, decoded, settings, method_file(tmp_path, method, draw), seed=seed)

    for method in ("stage1", "algorithm_1", "shuffled"):
        paint(method)
    return tmp_path, paint, decoded


def test_what_an_earlier_run_left_does_not_count_and_what_does_not_fit_is_named(stages):
    folder, paint, _ = stages
    write_pictures(method_file(folder, "no_z"), [5, 9], np.zeros((2, 64, 64, 3), np.uint8))
    paint("stage2", strength=0.9)
    assert baselines.methods_of_stages(folder) == ["stage1", "algorithm_1"]
    paint("algorithm_1", strength=0.9)
    said = r"strength=0.56, stage 2 with 0.9. Run 04_stage2 again"
    refuses(said, baselines.methods_of_stages, folder)
    method_file(folder, "algorithm_1").unlink()
    refuses(r"algorithm_1.h5 is missing. Run 04_stage2", baselines.methods_of_stages, folder)


def test_every_draw_is_read_and_stored_pictures_join_them(stages):
    folder, paint, decoded = stages
    for method in ("stage1", "algorithm_1"):
        paint(method, seed=5, draw=5)
    draws = baselines.read_draws(folder, baselines.methods_of_stages(folder))
    assert [*draws] == [4, 5]
    assert all(list(made) == ["stage1", "algorithm_1"] for made in draws.values())
    assert not np.array_equal(draws[4]["stage1"], draws[5]["stage1"])
    # The same pictures as stored ones of the published solver, beside the guided pass.
    known = {"solver": "guided", "ablations": False, "n_seeds": 3}
    (folder / "run.json").write_text(json.dumps({"04_stage2": known}))
    for draw in (None, 5, 6):
        paint("stage1", seed=draw or 4, draw=draw)
        paint("stage2", seed=draw or 4, draw=draw)
    method_file(folder, "algorithm_1", 5).unlink()
    stored = np.random.default_rng(0).integers(0, 256, (2, 6, 64, 64, 3), np.uint8)
    baselines.add_stored(folder, stored, decoded, range(4, 7))
    methods = baselines.methods_of_stages(folder)
    assert methods == ["stage1", "algorithm_1", "stage2"]
    draws = baselines.read_draws(folder, methods)
    np.testing.assert_array_equal(draws[4]["algorithm_1"], stored[:, 0])
    np.testing.assert_array_equal(draws[5]["algorithm_1"], stored[:, 5])
    assert list(draws[6]) == ["stage1", "stage2"]  # no such draw is stored
    baselines.add_stored(folder, stored, decoded | {"z": decoded["z"] + 1}, [4])
    assert "algorithm_1" not in baselines.methods_of_stages(folder)


# --- other methods ---


class Nothing:
    ids = np.arange(60)


@pytest.fixture
def brain(tmp_path):
    """Voxels of early areas are `z` and those of higher ones `c`, and nothing else."""
    rng = np.random.default_rng(0)
    z, c = rng.normal(size=(60, 1, 2, 4)), rng.normal(size=(60, 2, 4))
    block = rng.normal(size=(60, 2, 3))
    features = {"stimulus_id": np.arange(60), "z": z, "c": c, "block_1": block}
    write_hdf5(tmp_path / "features.h5", features)
    responses = np.concatenate([z.reshape(60, -1), c.reshape(60, -1)], axis=1)
    early = np.arange(16) < 8
    roi = {"V1": early & (np.arange(16) < 4), "V3": early & (np.arange(16) >= 4), "LO": ~early}
    split = Split("only", np.arange(10, 60), np.arange(10))
    responses = responses + 0.01 * rng.normal(size=responses.shape)
    return make_subject(responses, np.arange(60), [split], roi=roi, stimuli=Nothing())


@pytest.mark.parametrize("decoder", ["ridge", "voxel_selected"])
def test_takagi_is_decoded_with_the_settings_of_the_run(tmp_path, brain, monkeypatch, decoder):
    """A recording of its voxels alone is decoded alike: nothing else sets the two apart."""
    method = Method(decoder=decoder, target_components=4, n_voxels_z=5, n_voxels_c=3, n_folds=3)
    path = decode_subject(brain, tmp_path / "features.h5", tmp_path / "decoded.h5", method)
    decoded = read_decoded(path)
    bench = make_bench(tmp_path, decoded, person=brain)
    monkeypatch.setattr(baselines.Bench, "run", lambda self, found, settings, name: found)
    found = baselines.takagi(bench)
    for space, roi in (("z", ("V1", "V3")), ("c", ("LO",))):
        voxels = np.any([brain.roi[name] for name in roi], axis=0)
        masks = {name: brain.roi[name][voxels] for name in roi}
        alone = replace(brain, responses=brain.responses[:, voxels], roi=masks)
        path = decode_subject(alone, tmp_path / "features.h5", tmp_path / "alone.h5", method)
        np.testing.assert_allclose(found[space], read_decoded(path)[space], atol=1e-5)
    # Early areas know `z`, higher ones `c`; with the regions swapped, neither knows its part.
    swapped = {"LO": brain.roi["V1"] | brain.roi["V3"], "V1": brain.roi["LO"]}
    other = baselines.takagi(replace(bench, person=replace(brain, roi=swapped)))
    for space in ("z", "c"):
        true = read_hdf5(tmp_path / "features.h5")[space][:10].ravel()
        right, wrong = (np.corrcoef(part[space].ravel(), true)[0, 1] for part in (found, other))
        assert right > 0.5 and right > wrong + 0.2


def test_decoded_again_is_what_the_run_decoded(tmp_path, brain):
    """Of the same splits; and of others with as many folds as asked for."""
    features, path = tmp_path / "features.h5", tmp_path / "decoded.h5"
    method = Method(target_components=6, rescale_z="none", keep_structure=0.5, n_components=4)
    method.set_params(max_reliability=0.7, n_folds=3)
    decoded = read_decoded(decode_subject(brain, features, path, method))
    bench = make_bench(tmp_path, decoded, person=brain)
    assert bench.decoding() == method
    found = baselines.decode_again(bench, brain.splits)
    assert {"z", "c", "evidence_1", "projection_1", "split"} <= set(found) & set(decoded)
    for name in set(found) & set(decoded):
        np.testing.assert_allclose(found[name], decoded[name], atol=2e-3, err_msg=name)
    other = (Split("other", np.arange(40), np.arange(50, 56)),)
    (wanted,) = decode_tests(brain, features, other, method.set_params(n_folds=2, keep_structure=0))
    bench = replace(bench, full=Settings(structure_target="components"))
    found = baselines.decode_again(bench, other, n_folds=2)
    assert found["block_1"].shape == (6, 0)
    np.testing.assert_allclose(found["z"], wanted["z"], atol=1e-5)


@pytest.mark.parametrize(("steps", "guided"), [(37, 7), (35, 7), (5, 1), (1, 1), (50, 9)])
def test_neuraldiffuser_guides_seven_of_thirty_seven(steps, guided):
    ours = Settings(step_size=0.4, gradient_steps=3, guide_every=2, z_evidence_weight=2.0)
    theirs = baselines.first_steps_guided(ours, steps)
    changes = {"solver": "guided", "n_guided_steps": guided, "guide_every": 1}
    assert theirs == replace(ours, **changes, gradient_steps=1, z_evidence_weight=0.0)
