"""Every number of the notebooks has a range, and a value outside is named in one line."""

import math
from pathlib import Path

import pytest

from minddiff_utils import controls, decoders, generator, runs, settings
from minddiff_utils.files import InputError
from minddiff_utils.parameters import CHOICES, RANGES, WORDS, check

NOTEBOOKS = Path(runs.__file__).resolve().parent.parent / "notebooks"
SHEETS = runs.find_sheets(NOTEBOOKS)
DEFAULTS = {name: value for sheet in SHEETS for name, value in sheet.defaults.items()}


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def test_every_number_of_the_notebooks_has_a_range():
    assert {name for name, value in DEFAULTS.items() if is_number(value)} <= RANGES.keys()


def test_defaults_are_inside():
    check(**DEFAULTS)


@pytest.mark.parametrize("name", sorted(RANGES))
def test_values_outside_are_named(name):
    low, high = RANGES[name]
    check(**{name: low})
    for value in (low - 1, math.nan, "many", True, None):
        with pytest.raises(InputError, match=f"{name}=.*expected .*{low:g}"):
            check(**{name: value})
    if high < math.inf:
        check(**{name: high})
        with pytest.raises(InputError, match=f"{name}=.*to {high:g}".replace("+", r"\+")):
            check(**{name: 2 * high + 1})


@pytest.mark.parametrize("name", sorted(CHOICES))
def test_unknown_choices_are_named(name):
    for value in CHOICES[name]:
        check(**{name: value})
    with pytest.raises(InputError, match=f'{name}=.*expected "{CHOICES[name][0]}" or'):
        check(**{name: "nonsense"})


def test_choices_are_those_of_the_functions_that_take_them():
    assert CHOICES["decoder"] == decoders.KINDS
    assert CHOICES["select_by"] == decoders.SELECT_BY
    assert CHOICES["rescale_z"] == decoders.RESCALE
    assert settings.CHOICES.items() <= CHOICES.items()
    assert WORDS["controls"] == controls.CONTROLS
    assert WORDS["save_memory"] == generator.SAVINGS


@pytest.mark.parametrize("name", sorted(WORDS))
def test_unknown_words_are_named(name):
    first, *_, last = WORDS[name]
    for text in ("", first, f"{first}, {last}"):
        check(**{name: text})
    with pytest.raises(InputError, match=f"{name}=.*expected any of {first}, .*{last}"):
        check(**{name: f"{first},nonsense"})


CHANGES = (
    {"n_gallery": 0},
    {"batch": 0},
    {"seed": -1},
    {"panel": "x"},
    {"controls": "ceiling,floor"},
    {"pages": None},
    {"pages": "method"},
    {"phantom": {"n_train": 20.5}},
    {"phantom": {"n_trian": 20}},
    {"phantom": 5},
)


@pytest.mark.parametrize("changes", CHANGES)
def test_a_run_is_refused_before_it_begins(changes):
    with pytest.raises(InputError, match=next(iter(changes))):
        runs.load_plan(NOTEBOOKS / "params" / "phantom.yaml", NOTEBOOKS, changes)


def test_nothing_is_no_number():
    """`null` is for parameters that may be left open."""
    path = NOTEBOOKS / "params" / "phantom.yaml"
    assert runs.load_plan(path, NOTEBOOKS, {"sessions": None}).parameters["sessions"] is None
    with pytest.raises(InputError, match="`batch` is None; expected a whole number"):
        runs.load_plan(path, NOTEBOOKS, {"batch": None})
