"""The published settings, one by one, and that each says where it comes from."""

import pytest
import yaml
from builders import NOTEBOOKS

from minddiff_utils.models.hub import REVISIONS, hub_name
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
