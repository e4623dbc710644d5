"""Features of all stimuli: right, in order, and the same after a kill."""

import shutil

import builders
import numpy as np
import pytest
import torch
from builders import assert_same, counted, read_hdf5, refuses
from safetensors.torch import load_file, save_file

from minddiff_utils.datasets import Split
from minddiff_utils.decoding import features
from minddiff_utils.decoding.features import feature_spaces, read_features, write_features
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
    split = Split("all", ids[:-1], ids[-1:])
    return builders.make_subject(
        np.zeros((len(ids), 2)), ids[::-1].copy(), [split], stimuli=stimuli or Drawn()
    )


@pytest.fixture(scope="module")
def whole(generator, tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "features.h5"
    return write_features(path, make_subject(), generator, batch=4)


def test_values_are_the_generators_own(generator, whole):
    pictures, captions = Drawn().pictures(IDS), Drawn().captions(IDS)
    assert feature_spaces(whole) == NAMES and not whole.with_name("features.h5.partial").exists()
    with torch.no_grad():
        expected = generator.guide.structure(to_rgb(pictures, "cpu"), range(1, 7))
        expected["z"] = generator.encode_pictures(pictures)
        expected["c"] = generator.encode_captions(captions)
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
    path = tmp_path / "features.h5"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        counted(patch, features, "_compute", n_done)
        write_features(path, make_subject(), generator, batch=4)
    assert not path.exists()
    calls = counted(monkeypatch, features, "_compute")
    write_features(path, make_subject(), generator, batch=4)
    assert len(calls) == 3 - n_done
    assert_same(read_hdf5(path), read_hdf5(whole))


def test_a_whole_file_outlives_a_failure(generator, whole, tmp_path, monkeypatch):
    path = tmp_path / "features.h5"
    path.write_bytes(whole.read_bytes())

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features, "_compute", full)
    write_features(path, make_subject(), generator, batch=5)  # other than it was made with
    with pytest.raises(OSError, match="No space left"):
        write_features(path, make_subject(), generator, n_blocks=3)
    assert_same(read_hdf5(path), read_hdf5(whole))


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


OTHER = {
    "pictures swapped": ("pictures", "features.h5", [3, 2, *IDS[2:]]),
    "another caption": ("captions", "features.h5", [*IDS[:-1], 90]),
    "another picture": ("pictures", "features.h5.partial", [*IDS[:-1], 90]),
}


@pytest.mark.parametrize("change", OTHER)
def test_other_contents_under_the_same_ids_are_noticed(generator, whole, tmp_path, change):
    part, name, order = OTHER[change]
    (tmp_path / name).write_bytes(whole.read_bytes())
    path, subject = tmp_path / "features.h5", make_subject(stimuli=Relabelled(part, order))
    write_features(path, subject, generator, batch=4)
    anew = write_features(tmp_path / "anew.h5", subject, generator, batch=4)
    assert_same(read_hdf5(path), read_hdf5(anew))
    before = read_hdf5(whole)
    changed = {name for name, values in read_hdf5(anew).items() if (values != before[name]).any()}
    assert changed == ({"c"} if part == "captions" else {*NAMES} - {"c"})


def test_what_is_not_in_a_file_is_named(whole, tmp_path):
    for stimulus in (0, 4, 1000):
        refuses(f"stimulus {stimulus}", read_features, whole, "z", [2, stimulus])
    refuses("'block_9'.*embedding", read_features, whole, "block_9", IDS)
    short = tmp_path / "short.h5"
    short.write_bytes(whole.read_bytes()[:3000])
    refuses("short.h5", read_features, short, "z", IDS)
    refuses("none.h5", feature_spaces, tmp_path / "none.h5")
