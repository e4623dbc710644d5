"""The published settings, one by one, and that each says where it comes from."""

import re

import pytest
import yaml
from builders import NOTEBOOKS

from minddiff_utils.models.hub import REVISIONS, hub_name
from minddiff_utils.reconstruction.losses import BLOCK_WEIGHTS
from minddiff_utils.settings import Settings

PATH = NOTEBOOKS / "params" / "paper.yaml"
# The table of the method's published values.
PUBLISHED = {
    "subjects": ["subj01", "subj02", "subj05", "subj07"],
    "dataset": "nsd",
    "rois": "kastner2015",
    "n_tokens": 15,
    "n_blocks": 6,
    "keep_structure": 0.25,
    "n_folds": 5,
    "decoder": "voxel_selected",
    "n_voxels_z": 3000,
    "n_voxels_c": 450,
    "n_voxels_structure": 850,
    "alpha": 0.15,
    "select_by": "correlation",
    "n_steps": 50,
    "guidance_scale": 5.0,
    "iterations": 300,
    "learning_rate": 0.01,
    "learning_rate_decay": 0.999,
    "optimise": "zc",
    "solver": "algorithm_1",
    "structure_target": "values",
}
STAGES = ("n_steps", "strength", "guidance_scale", "iterations", "learning_rate")
STAGES += ("learning_rate_decay", "solver", "structure_target", "optimise", "recompute")


@pytest.fixture(scope="module")
def values():
    return yaml.safe_load(PATH.read_text(encoding="utf-8"))


def test_settings_are_the_published_ones(values):
    assert {name: values[name] for name in PUBLISHED} == PUBLISHED
    assert round(values["strength"] * values["n_steps"]) == 35
    assert hub_name(values["models"]) == (values["models"], REVISIONS[values["models"]])
    assert Settings(**{name: values[name] for name in STAGES}).solver == "algorithm_1"


def test_what_has_no_parameter_is_told_too():
    """Of the published table: what the models and the code fix."""
    text = PATH.read_text(encoding="utf-8")
    told = " ".join(line.split("#", 1)[-1].strip() for line in text.splitlines())
    assert f"times {', '.join(f'{w:g}' for w in BLOCK_WEIGHTS)}" in told
    for words in ("betas_fithrf_GLMdenoise_RR", "func1pt8mm", "eta 0", "0.18215", "Adam"):
        assert words in told, words
    assert "trials of a picture averaged" in told and "last layer enters with weight 0" in told


def test_every_setting_says_where_it_comes_from():
    """A comment on its line, or in the paragraph of the file that it stands in."""
    book = {"title", "about", "pages", "data_path", "run_dir"}
    for paragraph in PATH.read_text(encoding="utf-8").split("\n\n"):
        lines = paragraph.splitlines()
        shared = " ".join(line for line in lines if line.startswith("#"))
        for line in lines:
            found = re.match(r"(\w+):", line)
            if found and found[1] not in book:
                said = f"{line.partition('#')[2] or shared}".lower()
                assert re.search(r"paper|code|field", said), line
