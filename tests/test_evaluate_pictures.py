"""Pictures as people have them: forms, conversions, matching, and what cannot be read."""

import numpy as np
import pytest
import torch
from builders import refuses, write_hdf5
from PIL import Image

from minddiff_utils.datasets.nsd.design import NsdTree, read_design
from minddiff_utils.evaluation.pictures import matched, open_pictures

RNG = np.random.default_rng(0)
STACK = RNG.integers(0, 256, (12, 20, 24, 3), np.uint8)


def save(folder, stack, names=None, suffix="png"):
    folder.mkdir(exist_ok=True)
    for number, picture in enumerate(stack):
        name = names[number] if names else str(number)
        Image.fromarray(picture).save(folder / f"{name}.{suffix}", quality=95)
    return str(folder)


def write(path, values):
    if path.suffix == ".pt":
        torch.save(torch.as_tensor(values), path)
    elif path.suffix == ".npz":
        np.savez_compressed(path, values)
    elif path.suffix == ".h5":
        write_hdf5(path, {"pictures": values})
    else:
        np.save(path, values)
    return str(path)


FIRST = STACK.transpose(0, 3, 1, 2)
FORMS = {
    "uint8": (STACK, 0),
    "channels first": (FIRST, 0),
    "floats in 0 to 1": ((FIRST / 255).astype(np.float32), 0),
    "half precision": ((FIRST / 255).astype(np.float16), 1),
    "floats in 0 to 255": (STACK.astype(np.float32) + 0.3, 0),
    "overshoots": ((STACK / 255 * 1.04 - 0.02).astype(np.float32), 6),
    "64-bit whole numbers": (STACK.astype(np.int64), 0),
}


@pytest.mark.parametrize(("values", "apart"), FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".h5"])
def test_arrays_of_every_form_are_the_same_pictures(values, apart, suffix, tmp_path):
    found = open_pictures(write(tmp_path / f"a{suffix}", values))
    assert found.shape == STACK.shape and found[:].dtype == np.uint8
    assert np.abs(found[:].astype(int) - STACK).max() <= apart
    np.testing.assert_array_equal(found[[3, 1]], found[:][[3, 1]])
    assert ("floats" in " ".join(found.notes)) == (values.dtype.kind == "f")


def test_grey_and_transparent_pictures_are_shown_as_they_look(tmp_path):
    clear = np.dstack([STACK[0], np.full((20, 24), 0, np.uint8)])
    half = np.dstack([np.zeros((20, 24, 3), np.uint8), np.full((20, 24), 128, np.uint8)])
    found = open_pictures(save(tmp_path / "p", [STACK[0][..., 0], clear, half, STACK[3]]))
    np.testing.assert_array_equal(found[0], STACK[0][..., :1].repeat(3, axis=2))
    assert (found[1] == 255).all() and (found[2] == 127).all()
    assert found.notes == ("1 grey, in three equal channels", "2 with transparency, laid on white")
    grey = open_pictures(write(tmp_path / "g.npy", STACK[..., 0]))
    np.testing.assert_array_equal(grey[0], found[0])
    four = np.stack([clear, half])
    np.testing.assert_array_equal(open_pictures(write(tmp_path / "f.npy", four))[:], found[1:3])


@pytest.mark.parametrize("pattern", ["{}", "{:04d}", "recon_{:03d}", "{}_of_12", "s1_{}_seed7"])
def test_folders_are_matched_by_stem_or_number(pattern, tmp_path):
    order = RNG.permutation(12)
    truth = open_pictures(save(tmp_path / "t", STACK[order], [str(n) for n in order]))
    names = [pattern.format(n) for n in range(12)]
    made = open_pictures(save(tmp_path / "m", STACK[:, ::2, ::2], names))
    found = matched(truth, made, "m")
    assert found.shape == truth.shape and found.names == truth.names
    assert truth.names == tuple(map(str, range(12)))  # 2 before 10
    assert found.notes == ("matched by name", "resized from 10 × 12 to 20 × 24 pixels (bicubic)")
    for row in range(12):
        near = np.abs(found[row].astype(int) - STACK[row]).mean()
        assert near == min(np.abs(found[row].astype(int) - other).mean() for other in STACK)


def test_arrays_are_matched_by_place_and_hdf5_by_stimulus(tmp_path):
    stacks = {"truth": STACK, "mine": STACK[::-1], "stimulus_id": np.arange(100, 112)}
    path = write_hdf5(tmp_path / "r.h5", stacks)
    truth = open_pictures(f"{path}:truth")
    assert matched(truth, open_pictures(f"{path}:mine"), "m").notes == ("matched by name",)
    by_place = matched(truth, open_pictures(write(tmp_path / "a.npy", STACK)), "m")
    assert by_place.notes == ("matched by place, for there are no names to go by",)
    other = open_pictures(save(tmp_path / "m", STACK, [chr(97 + n) for n in range(12)]))
    assert "names differ (100 …, a …)" in matched(truth, other, "m").notes[0]


def test_a_tree_of_nsd_is_its_shared_pictures(tree):
    ids, shared = read_design(NsdTree(tree, "subj01"))
    test, train = open_pictures(str(tree)), open_pictures(str(tree), train=True)
    assert test.names == tuple(map(str, np.unique(ids[shared])))
    assert set(train.names) == set(map(str, ids[~shared])) and train[0].shape == (64, 64, 3)
    few = write(tree.parent / "few.npy", STACK)
    refuses("pictures, not the 982 of the protocol", open_pictures, few, protocol=982)


def faults(tmp_path):
    """What was given -> what is said."""
    bad = np.where(np.arange(12)[:, None, None, None] == 5, np.nan, STACK / 255)
    cut = tmp_path / "cut"
    save(cut, STACK)
    whole = (cut / "7.png").read_bytes()
    (cut / "7.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "none").mkdir()
    pickled = tmp_path / "p.npy"
    np.save(pickled, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    deep = tmp_path / "deep"
    deep.mkdir()
    Image.fromarray(np.full((20, 24), 4000, np.uint16)).save(deep / "0.png")
    return {
        write(tmp_path / "a.npy", bad): "picture 5 (counted from 0) holds values that are no numb",
        write(tmp_path / "b.npy", STACK / 127.5 - 1): "values from -1 to 1; expected 0 to 255, or",
        write(tmp_path / "c.npy", STACK // 128): "holds values from 0 to 1; expected 0 to 255",
        write(tmp_path / "d.npy", STACK[..., :2]): "shape (12, 20, 24, 2); expected (n, h, w)",
        write(tmp_path / "e.pt", STACK)[:-2] + "gif": "no such picture file or folder; expected a",
        f"{write(tmp_path / 'f.h5', STACK)}:mine": "f.h5 has no 'mine'; give",
        str(pickled): "p.npy is truncated, damaged or no NumPy file",
        str(tmp_path / "none"): "holds no picture",
        str(tmp_path / "gone.h5:truth"): "gone.h5 is missing. Run `make book`",
        str(cut): "7.png is truncated, damaged or no PNG or JPEG picture",
        str(deep): "0.png has I;16 values; expected 8 bits a channel",
    }


def test_what_cannot_be_read_is_told_in_one_sentence(tmp_path):
    for path, said in faults(tmp_path).items():
        found = refuses("", lambda path: open_pictures(path)[:], path)
        assert said in found and "\n" not in found


def test_wrong_counts_name_the_likely_protocol(tmp_path):
    truth = open_pictures(write(tmp_path / "t.npy", np.arange(1000 * 4).reshape(-1, 2, 2) % 256))
    made = open_pictures(write(tmp_path / "m.npy", np.arange(982 * 4).reshape(-1, 2, 2) % 256))
    said = refuses("", matched, truth, made, "mine")
    assert "mine has 982 pictures (NSD, shared pictures of 37 sessions)" in said
    assert "the truth 1000 pictures (NSD, shared pictures of all 40" in said
    names = [str(n) for n in range(12)]
    truth = open_pictures(save(tmp_path / "t", STACK, names))
    made = open_pictures(save(tmp_path / "m", STACK, [*names[:-1], "12"]))
    refuses("has no picture for 11 of the truth", matched, truth, made, "mine")
