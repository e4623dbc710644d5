"""The published settings, one by one, and that each says where it comes from."""

import pytest
from builders import NOTEBOOKS

from minddiff_utils.book.plan import parse_yaml
from minddiff_utils.models.hub import REVISIONS, hub_name
from minddiff_utils.settings import Settings

PATH = NOTEBOOKS / "params" / "paper.yaml"
# The table of the method's published values.
PUBLISHED = {"subjects": ["subj01", "subj02", "subj05", "subj07"], "dataset": "nsd"}
PUBLISHED |= {"rois": "kastner2015", "n_tokens": 15, "n_blocks": 6, "n_folds": 5}
PUBLISHED |= {"decoder": "voxel_selected", "alpha": 0.15, "keep_structure": 0.25}
PUBLISHED |= {"n_voxels_z": 3000, "n_voxels_c": 450, "n_voxels_structure": 850}
PUBLISHED |= {"n_steps": 50, "guidance_scale": 5.0, "iterations": 300, "learning_rate": 0.01}
PUBLISHED |= {"learning_rate_decay": 0.999, "optimise": "zc", "solver": "algorithm_1"}
PUBLISHED |= {"structure_target": "values"}
STAGES = ("n_steps", "strength", "guidance_scale", "iterations", "learning_rate")
STAGES += ("learning_rate_decay", "solver", "structure_target", "optimise", "recompute")


@pytest.fixture(scope="module")
def values():
    return parse_yaml(PATH.read_bytes(), PATH.name)


def test_settings_are_the_published_ones(values):
    assert {name: values[name] for name in PUBLISHED} == PUBLISHED
    assert round(values["strength"] * values["n_steps"]) == 35
    assert hub_name(values["models"]) == (values["models"], REVISIONS[values["models"]])
    assert Settings(**{name: values[name] for name in STAGES}).solver == "algorithm_1"
