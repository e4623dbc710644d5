"""Features of all stimuli: right, in order, and the same after a kill."""

import shutil

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from minddiff_utils.datasets import Split, Subject
from minddiff_utils.decoding import features
from minddiff_utils.decoding.features import feature_spaces, read_features, write_features
from minddiff_utils.io import InputError
from minddiff_utils.models.clip import to_rgb
from minddiff_utils.models.stable_diffusion import load_generator
from minddiff_utils.phantom import world

IDS = np.array([2, 3, 5, 8, 13, 21, 34, 55, 89])
NAMES = ["z", "c", *(f"block_{k}" for k in range(1, 7)), "embedding"]


class Drawn:
    """Stimuli straight from the phantom's world."""

    ids = IDS

    def pictures(self, ids):
        return np.stack([world.picture(int(i)) for i in ids])

    def captions(self, ids):
        return [world.captions(int(i)) for i in ids]


class Relabelled(Drawn):
    """The same with other pictures or captions under the ids: those of the ids in `order`."""

    def __init__(self, part, order):
        found = getattr(Drawn, part)
        places = dict(zip(IDS, order, strict=True))
        setattr(self, part, lambda ids: found(self, [places[i] for i in ids]))


def make_subject(ids=IDS, stimuli=None):
    return Subject(
        name="s",
        dataset="nsd",
        responses=np.zeros((len(ids), 2), np.float32),
        stimulus_id=ids[::-1].copy(),
        session=np.ones(len(ids), np.int64),
        roi={"V1": np.ones(2, bool)},
        splits=(Split("all", ids[:-1], ids[-1:]),),
        stimuli=stimuli or Drawn(),
    )


@pytest.fixture(scope="module")
def generator(tiny_models):
    return load_generator(tiny_models, "cpu")


@pytest.fixture(scope="module")
def whole(generator, tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "features.h5"
    return write_features(path, make_subject(), generator, batch=4)


def contents(path):
    with h5py.File(path) as file:
        return {name: file[name][()] for name in file}


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_values_are_the_generators_own(generator, whole):
    pictures, captions = Drawn().pictures(IDS), Drawn().captions(IDS)
    assert feature_spaces(whole) == NAMES and not whole.with_name("features.h5.partial").exists()
    with torch.no_grad():
        expected = {
            "z": generator.encode_pictures(pictures),
            "c": generator.encode_captions(captions),
            **generator.structure(to_rgb(pictures, "cpu"), range(1, 7)),
        }
    for name, values in expected.items():
        found = read_features(whole, name, IDS)
        assert found.dtype == np.float32 and found.shape == values.shape
        half = name.startswith("block")
        np.testing.assert_allclose(found, values, rtol=2e-3 if half else 1e-4, atol=1e-4)


def test_rows_come_in_the_order_asked_for(whole):
    z = read_features(whole, "z", IDS)
    np.testing.assert_array_equal(read_features(whole, "z", [55, 2, 55]), z[[7, 0, 7]])


@pytest.mark.parametrize("n_done", [0, 2])
def test_after_a_kill_the_result_is_the_same(generator, whole, tmp_path, monkeypatch, n_done):
    path, compute, calls = tmp_path / "features.h5", features._compute, []

    def killed(*arguments):
        if len(calls) == n_done:
            raise KeyboardInterrupt
        calls.append(1)
        return compute(*arguments)

    monkeypatch.setattr(features, "_compute", killed)
    with pytest.raises(KeyboardInterrupt):
        write_features(path, make_subject(), generator, batch=4)
    assert not path.exists()
    calls.clear()
    monkeypatch.setattr(features, "_compute", lambda *a: calls.append(1) or compute(*a))
    write_features(path, make_subject(), generator, batch=4)
    assert len(calls) == 3 - n_done
    assert_equal(contents(path), contents(whole))


def test_a_partial_file_of_other_stimuli_is_not_used(generator, whole, tmp_path):
    path, partial = tmp_path / "features.h5", tmp_path / "features.h5.partial"
    partial.write_bytes(whole.read_bytes())
    write_features(path, make_subject(IDS[:3]), generator)
    np.testing.assert_array_equal(contents(path)["stimulus_id"], IDS[:3])


def test_a_whole_file_is_not_made_again_and_outlives_a_failure(
    generator, whole, tmp_path, monkeypatch
):
    path = tmp_path / "features.h5"
    path.write_bytes(whole.read_bytes())

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features, "_compute", full)
    write_features(path, make_subject(), generator, batch=5)  # other than it was made with
    with pytest.raises(OSError, match="No space left"):
        write_features(path, make_subject(), generator, n_blocks=3)
    assert_equal(contents(path), contents(whole))


def test_other_weights_in_the_same_folder_make_the_file_again(tiny_models, tmp_path):
    folder = shutil.copytree(tiny_models, tmp_path / "models")
    file = folder / "stable_diffusion/vae/diffusion_pytorch_model.safetensors"
    path, found = tmp_path / "features.h5", []
    for _ in range(2):
        generator = load_generator(folder, "cpu")
        write_features(path, make_subject(IDS[:2]), generator)
        found.append(read_features(path, "z", IDS[:2]))
        wanted = generator.encode_pictures(Drawn().pictures(IDS[:2]))
        np.testing.assert_allclose(found[-1], wanted, rtol=1e-3, atol=1e-4)
        save_file({name: 1.1 * value for name, value in load_file(file).items()}, file)
    assert not np.allclose(*found, rtol=1e-2)


@pytest.mark.parametrize(
    ("part", "name", "order"),
    [
        ("pictures", "features.h5", [3, 2, *IDS[2:]]),
        ("captions", "features.h5", [*IDS[:-1], 90]),
        ("pictures", "features.h5.partial", [*IDS[:-1], 90]),
    ],
    ids=["pictures swapped", "another caption", "another picture"],
)
def test_other_contents_under_the_same_ids_are_noticed(
    generator, whole, tmp_path, name, part, order
):
    (tmp_path / name).write_bytes(whole.read_bytes())
    path, subject = tmp_path / "features.h5", make_subject(stimuli=Relabelled(part, order))
    write_features(path, subject, generator, batch=4)
    anew = write_features(tmp_path / "anew.h5", subject, generator, batch=4)
    assert_equal(contents(path), contents(anew))
    changed = {
        name for name, values in contents(anew).items() if (values != contents(whole)[name]).any()
    }
    assert changed == ({"c"} if part == "captions" else {*NAMES} - {"c"})


def test_what_is_not_in_a_file_is_named(whole, tmp_path):
    for stimulus in (0, 4, 1000):
        with pytest.raises(InputError, match=f"stimulus {stimulus}"):
            read_features(whole, "z", [2, stimulus])
    with pytest.raises(InputError, match="'block_9'.*embedding"):
        read_features(whole, "block_9", IDS)
    short = tmp_path / "short.h5"
    short.write_bytes(whole.read_bytes()[:3000])
    with pytest.raises(InputError, match="short.h5"):
        read_features(short, "z", IDS)
    with pytest.raises(InputError, match="none.h5"):
        feature_spaces(tmp_path / "none.h5")


def test_overflow_in_half_precision_is_named(tiny_models, tmp_path):
    generator = load_generator(tiny_models, "cpu", "float16")
    for values in generator.vae.encoder.conv_in.parameters():
        values.mul_(1e5)
    with pytest.raises(InputError, match="z of a picture is not finite, computed in torch.float16"):
        write_features(tmp_path / "features.h5", make_subject(), generator)


@pytest.mark.parametrize("n_blocks", [0, 9])
def test_number_of_blocks_has_bounds(generator, tmp_path, n_blocks):
    with pytest.raises(InputError, match=f"n_blocks={n_blocks}.*8"):
        write_features(tmp_path / "features.h5", make_subject(), generator, n_blocks)
