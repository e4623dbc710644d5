"""Every file of `notebooks/params` on small data, from the first chapter to the last.

`phantom` and `fast` run in `test_notebooks`.
"""

import json
import subprocess
import sys
from pathlib import Path

import h5py
import miyawaki_tree
import numpy as np
import pytest
import scipy.io
import test_kay
import test_laion
import test_own
from builders import NOTEBOOKS, ROOT

from minddiff_utils.book.plan import load_plan
from minddiff_utils.datasets.miyawaki import FIGURES
from minddiff_utils.evaluation.baselines import settings_of
from minddiff_utils.evaluation.metrics import read_metrics
from minddiff_utils.io import method_file
from minddiff_utils.settings import ADVANCED, FULL_METHODS

# Sizes alone. No decoder, solver or other choice of a file is changed, but where its comment says.
SMALL = {"n_steps": 2, "n_seeds": 1, "n_permutations": 2, "n_extra": 20, "n_curve": 0}
SMALL |= {"n_generalise": 2, "gradient_steps": 1}
# The phantom's models in the place of Stable Diffusion and its judge, which have to be downloaded.
MODELS = {"models": str(ROOT / "minddiff_utils" / "phantom" / "weights")}
# The small tree has one subject, and fewer sessions than either protocol takes.
TREE = {"subjects": ["subj01"], "protocol": None, "n_steps": 3, "ssim_size": 64, **MODELS}
# Minutes otherwise: in each fold voxels are chosen and weighed for each of 50,000 values.
FEWER = {"n_blocks": 1, "n_voxels_z": 60, "n_voxels_c": 50, "n_voxels_structure": 40, "n_folds": 2}
FEWER |= {"rois": "V1,LO"}
CHANGES = {"kay": MODELS, "miyawaki": {}, "miyawaki_full": {}, "nsd": TREE, "own": {}}
CHANGES["laion"] = {"subjects": ["sub-01"], "n_steps": 3, "ssim_size": 64, **MODELS}
CHANGES["paper"] = {**TREE, **FEWER, "judge": "", "iterations": 2}


def kay(folder: Path) -> Path:
    return test_kay.make(folder)[0]


def laion(folder: Path) -> Path:
    return test_laion.write_tree(folder / "tree", n_own=16, people=("sub-01",))


def miyawaki(folder: Path) -> Path:
    """Ten of the known figures, eight trials each, in the layout of V1_mean_figure.mat."""
    patterns = [miyawaki_tree.pattern_of(name) for name in list(FIGURES.values())[:10]]
    shown = np.tile(np.stack([pattern.T.ravel() for pattern in patterns], 1), 8)
    rng = np.random.default_rng(0)
    responses = rng.normal(size=(30, 100)) @ shown + rng.normal(size=(30, shown.shape[1]))
    scipy.io.savemat(folder / "figures.mat", {"I2": shown, "R2": responses})
    return folder / "figures.mat"


def miyawaki_full(folder: Path) -> Path:
    miyawaki_tree.write_tree(folder)
    return folder


def own(folder: Path) -> Path:
    """What the example of the page writes."""
    subprocess.run([sys.executable, "-c", test_own.example()], cwd=folder, check=True)
    return folder / "own.h5"


def test_no_parameter_file_is_left_out():
    names = {path.stem for path in (NOTEBOOKS / "params").glob("*.yaml")}
    assert names == CHANGES.keys() | {"phantom", "fast"}


@pytest.mark.parametrize("name", CHANGES)
def test_every_chapter_runs_with_the_parameter_file(name, request, run_plan, tmp_path):
    is_nsd = name in ("nsd", "paper")
    data = request.getfixturevalue("tree") if is_nsd else globals()[name](tmp_path)
    changes = {**SMALL, **CHANGES[name], "data_path": str(data), "run_dir": str(tmp_path / "run")}
    plan = load_plan(NOTEBOOKS / "params" / f"{name}.yaml", ROOT, changes)
    executed = run_plan(plan)
    assert list(executed) == [sheet.name for sheet in plan.sheets]
    (subject,) = plan.subjects
    chosen = {name: value for sheet in plan.sheets for name, value in sheet.defaults.items()}
    chosen |= {k: v for known in ADVANCED.values() for k, v in known.items()} | plan.values
    full = method_file(plan.run / subject, FULL_METHODS[chosen["solver"]])
    with h5py.File(full) as file:
        assert np.isfinite(file["losses"]).all() and not file["failed"][:].any()
    with h5py.File(plan.run / subject / "decoded.h5") as file:
        decoding = json.loads(file.attrs["settings"])
    # The device that it was fitted on is resolved, "auto" no longer.
    used = {**decoding, "device": chosen["device"], **vars(settings_of(full)[0])}
    assert used.items() >= {key: chosen[key] for key in used.keys() & chosen}.items()
    table = read_metrics(plan.run, [subject])
    assert {"stage1", full.stem, *filter(None, chosen["controls"].split(","))} <= {*table.method}
    assert np.isfinite(table["value"]).all()
