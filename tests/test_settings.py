"""Every parameter of the notebooks has a type and a range; what does not fit is named at once."""

import functools
import math
from pathlib import Path

import nbformat
import papermill
import pytest
from builders import NOTEBOOKS, ROOT, refuses
from papermill.exceptions import PapermillExecutionError

from minddiff_utils.book.plan import find_sheets, load_plan
from minddiff_utils.io import InputError
from minddiff_utils.models import stable_diffusion as generator
from minddiff_utils.settings import (
    ADVANCED,
    PARAMETERS,
    Settings,
    check,
    project_folder,
    recall,
    resolve,
    start_chapter,
)

SHEETS = find_sheets(NOTEBOOKS)
STAGES = vars(Settings())
DEFAULTS = {name: value for sheet in SHEETS for name, value in sheet.defaults.items()}


def test_every_parameter_is_known_and_its_default_fits():
    rare = {name: value for known in ADVANCED.values() for name, value in known.items()}
    declared = {name: value for name, value in DEFAULTS.items() if name != "advanced"}
    assert {*declared, *rare, "advanced"} == {*PARAMETERS}
    assert check(**declared, **{k: v for k, v in rare.items() if k not in declared})
    assert {name: value for name, value in (rare | declared).items() if name in STAGES} == STAGES
    for sheet in SHEETS:
        assert len(sheet.defaults) <= 12, sheet.name


COUNTS = ("batch", "n_shown", "guide_every", "n_voxels_z")
REFUSED = {
    **dict.fromkeys(COUNTS, (0, 1.5, True, None, "many")),
    **dict.fromkeys(("seed", "iterations", "n_holdouts"), (-1, 0.5, math.nan, math.inf, [1])),
    "n_steps": (0, 1001, 2.5),
    "n_tokens": (-1, 1, 2, 15.5),
    "ssim_size": (-1, 1, 10),
    "strength": (0, 1.01, math.nan, True, "all"),
    "guidance_scale": (-0.1, 101, math.inf),
    "dataset": ("nds", 1, None),
    "controls": ("ceiling,floor", 3),
    "protocol": (981, "x"),
    "sessions": (0, 2.5, True, [0]),
    "subject": (1, None, "a b", "_a", "html"),
    "recompute": (5, "maybe"),
    "run_dir": (3, None),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_named(name):
    for value in REFUSED[name]:
        refuses(f"{name}=.* should be ", check, **{name: value})


def test_values_are_taken_as_they_are_meant():
    given = {"seed": 1.0, "n_tokens": 0.0, "ssim_size": 11.0, "sessions": 2.0, "guidance_scale": 3}
    found = check(**given)
    assert found == given and [type(value) for value in found.values()] == [*[int] * 4, float]
    assert type(Settings(n_steps=9.0).n_steps) is int
    refuses("gradient_steps=1.5", Settings, gradient_steps=1.5)


def test_tokens_fit_the_text_encoder(tiny_models):
    load = functools.partial(generator.load_generator, tiny_models, "cpu")
    assert load(n_tokens=32).encode_captions([("a red tree",)]).shape[1] == 32
    refuses("n_tokens=33: .* places for 32 tokens", load, n_tokens=33)


# --- paths, and what a run remembers --------------------------------------------------------------


def test_paths_count_from_the_project_wherever_one_stands(tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.setenv("HOME", "/home/me")
    for folder in (NOTEBOOKS, NOTEBOOKS.parent, tmp_path):
        monkeypatch.chdir(folder)
        assert project_folder() == NOTEBOOKS.parent
        assert resolve("runs/mine") == NOTEBOOKS.parent / "runs/mine"
        assert str(resolve("~/out")) == "/home/me/out"
        assert str(resolve("${SCRATCH}/a")) == "/scratch/me/a"
    for text in ("$NOT_SET/out", "~nobody_here/out", "a/${NOT_SET}"):
        refuses("stands for nothing here", resolve, text)


def given(tmp_path, **changes):
    return {"In": [], "run_dir": str(tmp_path / "run"), "subject": "s", **changes}


def test_later_chapters_are_told_what_earlier_ones_were_given(tmp_path):
    with pytest.raises(InputError, match="is missing. Run 01_data"):
        start_chapter("03_stage1", given(tmp_path, strength=0.5))
    start_chapter("01_data", given(tmp_path, data_path="x.h5", rois="V1"))
    notebook = given(tmp_path, strength=0.7, seed=3.0)
    start_chapter("03_stage1", notebook)
    assert type(notebook["seed"]) is int
    later = start_chapter("04_stage2", given(tmp_path, advanced={"optimise": "z"}))
    assert (later.strength, later.seed, later.rois, later.optimise) == (0.7, 3, "V1", "z")
    assert later.folder == tmp_path / "run" / "s" and Settings.of(later).strength == 0.7
    start_chapter("03_stage1", given(tmp_path, strength=0.9))  # by hand, once more
    assert recall(later.folder).strength == 0.9 and recall(later.folder).optimise == "z"
    assert Path(recall(later.folder).data_path).is_absolute()


# --- what papermill was given ---------------------------------------------------------------------


@pytest.mark.parametrize("sheet", SHEETS, ids=[sheet.name for sheet in SHEETS])
def test_every_notebook_checks_what_it_was_given_first(sheet, tmp_path):
    notebook = nbformat.read(sheet.path, as_version=4)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert f'\nchapter = start_chapter("{sheet.name}", globals())\n' in cells[1]
    wrong = "# Parameters\nrun_dri = 'x'\nseed = 1\n"
    start = functools.partial(start_chapter, sheet.name)
    inputs = {"In": ["", cells[0], wrong, cells[1]]}
    refuses("no parameter `run_dri`. Did you mean `run_dir`", start, inputs)
    for value, said in (
        ({"nothing": 1}, "advanced: There is no parameter `nothing`"),
        ("{}", "advanced='{}' should be a dictionary"),
    ):
        refuses(said, start, given(tmp_path, advanced=value))


def test_papermill_stops_there(tmp_path):
    how = {"kernel_name": "python3", "cwd": NOTEBOOKS, "progress_bar": False}
    with pytest.raises(PapermillExecutionError, match="no parameter `subjct`. Did you mean"):
        source, changes = NOTEBOOKS / "01_data.ipynb", {"subjct": "subj02"}
        papermill.execute_notebook(source, tmp_path / "out.ipynb", changes, **how)


# --- parameter files ------------------------------------------------------------------------------

WRONG = [("n_curve", -1), ("batch", 0), ("batch", None), ("seed", -1), ("panel", "x")]
WRONG += [("controls", "ceiling,floor"), ("pages", None), ("pages", "method"), ("title", ["a"])]
WRONG += [("phantom", {"n_train": 20.5}), ("phantom", {"n_trian": 20}), ("phantom", 5)]
WRONG += [("advanced", "n_blocks: 4")]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_run_is_refused_before_it_begins(name, value):
    refuses(name, load_plan, NOTEBOOKS / "params" / "phantom.yaml", ROOT, {name: value})


@pytest.fixture
def plan(tmp_path):
    """Read a copy of `own.yaml` with more lines, in any encoding."""

    def read(lines, encoding="utf-8"):
        text = (NOTEBOOKS / "params" / "own.yaml").read_text() + lines
        path = tmp_path / "mine.yaml"
        path.write_bytes(text.encode(encoding))
        return load_plan(path, NOTEBOOKS.parent)

    return read


MEANT = {
    "alpha: 1e-3": 1e-3,
    "batch: 010": 10,
    "batch: 8.0": 8,
    "sessions: 1:10": "1:10",
    "ablations: yes": True,
}


@pytest.mark.parametrize("line", MEANT)
def test_yaml_means_what_most_people_expect(plan, line):
    found = plan(line).values[line.split(":")[0]]
    assert found == MEANT[line] and type(found) is type(MEANT[line])


def test_rare_parameters_may_stand_in_a_mapping(plan):
    found = plan("advanced: {n_blocks: 4}").values
    assert found["n_blocks"] == 4 and "advanced" not in found


NONSENSE = {
    "batch: 2\nbatch: 3\n": 'found duplicate key "batch"',
    "3: 4\n": "expected a name and its value",
    "alpha: .nan\n": "alpha=nan should be a finite number",
}


@pytest.mark.parametrize("lines", NONSENSE)
def test_yaml_that_means_nothing_is_one_sentence(plan, lines):
    assert "\n" not in refuses(NONSENSE[lines], plan, lines)


def test_encodings_and_an_empty_title(plan):
    path = NOTEBOOKS / "params" / "phantom.yaml"
    empty = load_plan(path, NOTEBOOKS.parent, {"title": None, "about": None})
    assert (empty.values["title"], empty.values["about"]) == (None, None)
    refuses("mine.yaml is not valid YAML, as text in UTF-8", plan, "judge: été\n", "latin-1")
