"""Traits from captions, and which of them the misses share."""

import numpy as np
import pandas as pd
import pytest
from builders import refuses

from minddiff_utils.evaluation import leakage
from minddiff_utils.phantom import world
from minddiff_utils.settings import ADVANCED

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


def test_a_trait_needs_half_of_the_captions_and_whole_words():
    table = leakage.attribute_table(CAPTIONS, "house,cat,sun,tree", scenes="day=sunny/day")
    kind = table["kind"]
    assert kind["cat"].tolist() == [True, False, False]  # a plural counts
    assert kind["house"].tolist() == [True, False, False]  # two of three
    assert kind["tree"].tolist() == [False, True, False]  # whatever the case
    assert not kind["sun"].any()  # "sunny" is no sun, and one caption of three is too few
    assert table["scene"]["day"].tolist() == [False, False, False]
    assert table["things"].idxmax(axis=1).tolist() == ["2", "1", "0"]


def test_traits_of_the_phantom_are_what_it_drew():
    """The captions tell kind, size, scene and number of things as the world knows them."""
    ids = range(150)
    given = [ADVANCED["06_controls"][name] for name in ("kinds", "sizes", "scenes")]
    table = leakage.attribute_table([world.captions(i) for i in ids], *given)
    for i in ids:
        scene, row = world.scene(i), table.iloc[i]
        kinds = {thing.kind for thing in scene.things}
        assert set(row["kind"].index[row["kind"]]) == kinds
        assert row["things"].idxmax() == str(len(scene.things))
        assert list(row["scene"].index[row["scene"]]) == [scene.setting]
        if scene.things:
            sizes = {world.size_word(thing.size) for thing in scene.things}
            assert set(row["size"].index[row["size"]]) == sizes


def test_common_traits_finds_the_trait_that_hurts():
    rng = np.random.default_rng(0)
    n = 60
    table = pd.DataFrame(rng.random((n, 3)) < 0.4)
    table.columns = pd.MultiIndex.from_tuples([("kind", "a"), ("kind", "b"), ("size", "c")])
    rare = pd.DataFrame({("kind", "rare"): np.arange(n) < 2})
    table = pd.concat([table, rare], axis=1)
    ids = rng.permutation(n)
    bad = table["kind", "b"].to_numpy()
    value = rng.normal(0.7, 0.05, n) - 0.3 * bad
    values = pd.DataFrame({"stimulus_id": ids, "metric": "pcc", "value": value})
    found = leakage.common_traits(values.sample(frac=1, random_state=0), ids, table)
    assert set(found["trait"]) == {"a", "b", "c"}  # of the rare one nothing can be said
    worst = found.iloc[0]
    assert (worst["trait"], worst["n"]) == ("b", bad.sum())
    assert worst["difference"] == pytest.approx(value[bad].mean() - value[~bad].mean())
    assert worst["low"] < -0.3 < worst["high"] and worst["p_holm"] < 0.01
    assert (found["p_holm"].iloc[1:] > 0.05).all()
    text = leakage.traits_table(found)
    assert text.index[0] == "kind: b" and text.iloc[0]["PCC"].endswith("*")
    assert text["n"].tolist() == found["n"].astype(str).tolist()


def test_no_traits_no_table():
    table = leakage.attribute_table(CAPTIONS)
    assert table.shape == (3, 0)
    values = pd.DataFrame({"stimulus_id": [0, 1, 2], "metric": "pcc", "value": 0.5})
    text = leakage.traits_table(leakage.common_traits(values, np.arange(3), table))
    assert text.empty and "kinds" in text.attrs["note"]
