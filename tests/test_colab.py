"""The Colab notebook, run as a plain notebook: fetch, install, phantom, five chapters, pictures."""

import json
import os
import subprocess

import nbformat
import papermill
import pytest
from builders import ROOT

from minddiff_utils.book.plan import declared_parameters, load_plan

PATH = ROOT / "notebooks" / "colab.ipynb"
QUICK = {"n_train": 60, "n_test": 4, "repetitions": 2, "n_steps": 3}


@pytest.fixture(scope="module")
def colab():
    return nbformat.read(PATH, as_version=4)


def test_its_defaults_are_those_of_the_phantom(colab):
    given = declared_parameters(colab)
    plan = load_plan(ROOT / "notebooks/params/phantom.yaml", ROOT)
    known = {name: value for sheet in plan.sheets for name, value in sheet.defaults.items()}
    for name in ("models", "step_size", "n_steps", "subject"):
        assert given[name] == plan.values.get(name, known[name])
    assert given["n_train"] == plan.values["phantom"]["n_train"]


def test_without_a_project_it_says_what_to_set(colab):
    sources = [cell.source for cell in colab.cells]
    source = next(source for source in sources if "git" in source and "run(" in source)
    with pytest.raises(ValueError, match="Set `repository`"):
        exec(source, {"repository": ""})


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="cloning needs a git checkout")
def test_it_fetches_installs_and_shows_pictures(tmp_path, tiny_models, monkeypatch):
    site = tmp_path / "site"
    # pip puts the project there, without its dependencies: the tests' environment has them.
    for name, value in {"TARGET": str(site), "NO_DEPS": "1", "NO_BUILD_ISOLATION": "0"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("PYTHONPATH", str(site))
    given = {"repository": str(ROOT), "models": str(tiny_models), **QUICK}
    output = tmp_path / "out.ipynb"
    how = {"kernel_name": "python3", "progress_bar": False}
    papermill.execute_notebook(PATH, output, given, cwd=tmp_path, **how)
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=tmp_path / "minddiffuser")
    known = ["git", "merge-base", "--is-ancestor", commit.decode().strip(), "HEAD"]
    subprocess.run(known, cwd=ROOT, check=True)  # what was cloned is a commit of this project
    assert (site / "minddiff_utils" / "cli.py").is_file()
    shown = [out for cell in nbformat.read(output, 4).cells for out in cell.get("outputs", [])]
    assert any("image/png" in out.get("data", {}) for out in shown)
    assert "CLIP (judge)" in json.dumps(shown)
    folder = tmp_path / "minddiffuser" / "runs" / "colab" / "subj01"
    assert len(os.listdir(folder / "notebooks")) >= 5 and (folder / "metrics.csv").is_file()
