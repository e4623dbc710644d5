"""NSD-synthetic as a further test set, against a naive reader of the files."""

import numpy as np
import pandas as pd
import pytest
import scipy.io
from builders import read_hdf5, refuses, write_hdf5
from PIL import Image

from minddiff_utils.datasets import load_subject, prepare_fold
from minddiff_utils.datasets.check import check_nsd
from minddiff_utils.datasets.fetch import nsd_files
from minddiff_utils.datasets.nsd import NsdTree
from studies.betas import make_tree

N_SHARED, N_OWN, N_TRIALS, SIDE = 5, 3, 24, 8
FLAT = 2  # a word outside the middle square
KINDS = ["Noise"] * 2 + ["Single words"] * 3 + ["Chromatic noise"] * 3


@pytest.fixture
def tree(tmp_path):
    tree = NsdTree(tmp_path / "tree", "subj01")
    make_tree(tree, (7, 6, 5), 20, 60, 2)
    files, rng = tree.synthetic, np.random.default_rng(1)
    files.design.parent.mkdir(parents=True, exist_ok=True)
    shown = rng.permutation(np.repeat(np.arange(1, 9), 3))
    scipy.io.savemat(files.design, {"masterordering": shown[None], "stimpattern": 1})
    kinds = pd.DataFrame({"Image number": range(1, 9), "Image class": KINDS})
    kinds.to_csv(files.kinds, index=False)
    for path, n in ((files.pictures, N_SHARED), (files.own_pictures, N_OWN)):
        brick = rng.integers(0, 256, (n, 16, 30, 3), np.uint8)
        brick[FLAT, :, 7:23] = 127 if path == files.pictures else brick[FLAT, :, 7:23]
        write_hdf5(path, {"imgBrick": brick})
    write_hdf5(tree.pictures, {"imgBrick": rng.integers(0, 256, (9, SIDE, SIDE, 3), np.uint8)})
    betas = rng.integers(-900, 900, (N_TRIALS, 5, 6, 7), np.int16)
    betas[:, *voxel(tree, 3)] = 0
    write_hdf5(files.betas, {"betas": betas})
    return tree


def voxel(tree, number):
    return load(tree, split="").voxel_ijk[number, ::-1]


def load(tree, cache=None, split="shared, synthetic"):
    return load_subject("nsd", tree.root, "subj01", rois="nsdgeneral", split=split, cache=cache)


def naive(tree):
    """Responses in per cent, ids, and pictures, by plain slicing."""
    files, (x, y, z) = tree.synthetic, load(tree, split="").voxel_ijk.T
    betas = read_hdf5(files.betas)["betas"][:, z, y, x] / 300
    pictures = []
    for path in (files.pictures, files.own_pictures):
        for wide in read_hdf5(path)["imgBrick"]:
            looks = (np.sqrt(wide / 255) * 255).astype(np.uint8)
            square = Image.fromarray(looks).crop((7, 0, 23, 16))
            pictures.append(np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BICUBIC)))
    order = scipy.io.loadmat(files.design)["masterordering"].ravel()
    return betas, 73_000 + order.astype(int) - 1, np.stack(pictures)


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_further_test_set_of_the_same_decoders(tree, tmp_path, on_disk):
    usual = load(tree, split="")
    subject = load(tree, tmp_path / "cache" if on_disk else None)
    betas, ids, pictures = naive(tree)
    (further,) = subject.test_sets
    left = np.setdiff1d(ids, 73_000 + FLAT)
    assert further.name == "synthetic" and further.test.tolist() == left.tolist()
    np.testing.assert_array_equal(further.train, usual.splits[0].train)
    np.testing.assert_array_equal(subject.stimulus_id[-N_TRIALS:], ids)
    assert set(subject.session[-N_TRIALS:]) == {3} and subject.sessions.tolist() == [1, 2]
    np.testing.assert_allclose(subject.responses[:][-N_TRIALS:], betas, rtol=1e-6)
    # What chapters compute features of, and the main analysis, are the same as without it.
    np.testing.assert_array_equal(subject.stimulus_ids, usual.stimulus_ids)
    np.testing.assert_array_equal(subject.voxel_ijk, usual.voxel_ijk)
    mine, theirs = (prepare_fold(one, one.splits[0]) for one in (subject, usual))
    np.testing.assert_array_equal(mine.train_x, theirs.train_x)
    np.testing.assert_array_equal(mine.test_x, theirs.test_x)
    fold = prepare_fold(subject, further)
    np.testing.assert_array_equal(fold.train_x, theirs.train_x)
    known = np.isin(ids, left)
    spread = betas[known].std(axis=0)
    z = (betas - betas[known].mean(axis=0)) / np.where(spread > 0, spread, np.inf)
    means = [z[ids == one].mean(axis=0) for one in left]
    np.testing.assert_allclose(fold.test_x, means, atol=1e-5)
    assert not fold.test_x[:, 3].any() and np.isfinite(fold.test_x).all()


def test_pictures_of_both_experiments_and_their_kinds(tree):
    subject, (_, _, pictures) = load(tree), naive(tree)
    found = subject.stimuli.pictures([73_007, 4, 73_000, 73_004, 73_007])
    np.testing.assert_array_equal(found[[0, 2, 3, 4]], pictures[[7, 0, 4, 7]])
    np.testing.assert_array_equal(found[1], load(tree, split="").stimuli.pictures([4])[0])
    assert [subject.kind_of[73_000 + n] for n in range(8)] == KINDS
    assert subject.stimuli.ids[-8:].tolist() == list(range(73_000, 73_008))
    refuses("stimuli_subj01.hdf5 lacks picture 9: .* has 8", subject.stimuli.pictures, [73_008])


def test_faults_are_named(tree):
    files = tree.synthetic
    refuses("split='synthetic' is unknown; NSD has shared, and", load, tree, split="synthetic")
    write_hdf5(files.betas, {"betas": np.ones((N_TRIALS - 1, 5, 6, 7), np.int16)})
    refuses("nsdsynthetic.hdf5 has 23 trials; expected 24, as in", load, tree)
    write_hdf5(files.betas, {"betas": np.ones((N_TRIALS, 5, 6, 7), np.int16)})
    for path in files[:4]:
        path.rename(path.with_name("gone"))
        refuses(f"{path.name} is missing", load, tree)
        path.with_name("gone").rename(path)
    files.kinds.write_text("Image class\nNoise\n")
    refuses("masterordering has 1 to 8; expected 1 to 1, as", load, tree)
    files.betas.unlink()
    refuses("betas_nsdsynthetic.hdf5 is missing", load, tree)


def test_fetching_and_checking_take_its_files_too(tree):
    (tree.synthetic.kinds).unlink()
    entries = {entry.path: entry.state for entry in check_nsd(tree.root, sessions=2)}
    assert [entries[path] for path in tree.synthetic] == ["present", "missing", *["present"] * 3]
    assert set(tree.synthetic) <= set(nsd_files(tree, "V1", 2, True))
    assert not set(tree.synthetic) & set(nsd_files(tree, "V1", 2, False))
