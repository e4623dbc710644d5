"""Distances to the training pictures, what depends on them, and kinds never trained on."""

from types import SimpleNamespace

import numpy as np
import pytest
from builders import refuses, write_hdf5

from minddiff_utils.datasets import Split
from minddiff_utils.evaluation import leakage
from minddiff_utils.evaluation.leakage import count_copies, hold_out, picture_groups
from minddiff_utils.phantom import world
from minddiff_utils.settings import ADVANCED


def test_split_overlap_keeps_to_their_training_pictures(tmp_path):
    rng = np.random.default_rng(0)
    rows, ids = rng.normal(size=(12, 6)), np.arange(12) * 2
    write_hdf5(tmp_path / "features.h5", {"stimulus_id": ids, "embedding": rows})
    splits = (Split("a", ids[4:], ids[:2]), Split("b", ids[:8], ids[10:]))
    found = leakage.split_overlap(splits, tmp_path / "features.h5")
    assert found.stimulus_id.tolist() == [0, 2, 20, 22]
    for place, (own, train) in enumerate([(0, range(4, 12)), (1, range(4, 12)), (10, range(8))]):
        length = np.linalg.norm(rows, axis=1)
        cosines = [rows[own] @ rows[k] / length[own] / length[k] for k in train]
        assert found.distance[place] == pytest.approx(1 - max(cosines), abs=1e-6)
    assert found.among_training.shape == (8,)
    assert (found.among_training > 1e-6).all()  # none is its own neighbour


@pytest.mark.parametrize("side", [40, 64])
def test_copies_and_near_twins_by_pixels(side):
    """Patterns differ from picture 0 in so many whole patches; photographs are all different."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (9, side, side, 3), np.uint8)
    grey = rng.integers(0, 2, (10, 10), np.uint8)
    size = side // 10
    for place, (changed, by) in enumerate([(0, 107), (0, 107), (4, 107), (12, 107), (100, 9)]):
        pattern = 128 + 90 * grey
        pattern.flat[:changed] = np.where(grey.flat[:changed], 218 - by, 128 + by)
        drawn = pattern.astype(np.uint8).repeat(size, 0).repeat(size, 1)
        pictures[place] = 128
        pictures[place, : 10 * size, : 10 * size] = drawn[..., None]
    pictures[8] = pictures[7]
    stimuli = SimpleNamespace(pictures=lambda ids: pictures[np.asarray(ids)])
    copies = count_copies(stimuli, [Split("a", np.arange(1, 8), np.array([0, 8]))])
    assert copies["stimulus_id"].tolist() == [0, 8]
    assert copies["exact"].tolist() == [1, 1]
    assert copies["near"].tolist() == [2, 0]  # four patches; all, but hardly
    assert (copies["exact"] + copies["near"] > 0).all()
    apart = count_copies(stimuli, [Split("a", np.array([3, 5]), np.array([0, 7]))])
    assert not apart[["exact", "near"]].any(axis=None)


@pytest.fixture
def split():
    return Split("only", np.arange(20, 90), np.arange(20))


def test_without_has_none_of_the_group_and_matched_as_many(split):
    rng = np.random.default_rng(0)
    groups = {
        "few": np.array([0, 1, 30]),  # two test pictures are too few
        "most": np.arange(0, 90, 4),
        "a bit less": np.arange(1, 90, 5),
        "nearly all": rng.permutation(90)[:80],
    }
    found = hold_out(split, groups, 5)
    assert list(found) == ["most", "a bit less"]
    for name, (without, matched) in found.items():
        inside = np.isin(split.test, groups[name])
        np.testing.assert_array_equal(without.test, split.test[inside])
        np.testing.assert_array_equal(matched.test, without.test)
        assert not np.isin(without.train, groups[name]).any()
        assert len(matched.train) == len(without.train) < len(split.train)
        assert np.isin(matched.train, groups[name]).any()
        assert np.isin(matched.train, split.train).all()
    assert found["a bit less"][0].name == "without_a_bit_less"
    assert list(hold_out(split, groups, 1)) == ["most"]
    assert hold_out(split, groups, 0) == {}


def test_groups_are_kinds_or_else_clusters(tmp_path, monkeypatch):
    monkeypatch.setattr(leakage, "N_CLUSTERS", 3)
    shown = {"cat": np.array([True, False, True])}
    found = picture_groups(tmp_path / "none.h5", [4, 5, 9], shown)
    assert {name: ids.tolist() for name, ids in found.items()} == {"cat": [4, 9]}
    # Three clouds in the text condition are found again.
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 30)
    c = np.eye(3)[label][:, None].repeat(4, axis=1) + 0.05 * rng.normal(size=(30, 4, 3))
    path = write_hdf5(tmp_path / "features.h5", {"stimulus_id": np.arange(30), "c": c})
    found = picture_groups(path, range(30), {})
    expected = sorted(np.flatnonzero(label == k).tolist() for k in range(3))
    assert sorted(ids.tolist() for ids in found.values()) == expected


# --- kinds of thing, told from captions ---

CAPTIONS = [
    ("a red house on the left and a small cat", "two cats and a house", "a cat"),
    ("sunny day with a tree", "A TREE", "the sun going down"),
    ("nothing at all",),
]


def test_words_of_a_parameter():
    found = leakage.read_words(" tree, night = dark / night ,,Sun")
    assert found == {"tree": ("tree",), "night": ("dark", "night"), "Sun": ("sun",)}
    assert leakage.read_words("") == {}
    for wrong in ("tree,tree", "=a", "night=dark/"):
        refuses("expected different names", leakage.read_words, wrong)


def test_a_kind_needs_half_of_the_captions_and_whole_words():
    found = leakage.kinds_shown(CAPTIONS, "house,cat,sun,tree")
    assert found["cat"].tolist() == [True, False, False]  # a plural counts
    assert found["house"].tolist() == [True, False, False]  # two of three
    assert found["tree"].tolist() == [False, True, False]  # whatever the case
    assert not found["sun"].any()  # "sunny" is no sun, and one caption of three is too few
    assert leakage.kinds_shown(CAPTIONS, "") == {}


def test_kinds_of_the_phantom_are_what_it_drew():
    ids = range(150)
    captions = [world.captions(i) for i in ids]
    found = leakage.kinds_shown(captions, ADVANCED["06_controls"]["kinds"])
    for i in ids:
        drawn = {thing.kind for thing in world.scene(i).things}
        assert {kind for kind, shown in found.items() if shown[i]} == drawn
