"""Kinds of thing, told from captions."""

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
