"""JupyterLab's *Run All* and papermill's command line, with the defaults as they stand."""

import os
import shutil
import subprocess
import sys

import nbformat
import pytest
from conftest import NOTEBOOKS, SMALL_TREE
from nbclient import NotebookClient

from minddiff_utils.book.plan import find_sheets
from minddiff_utils.phantom.nsd_writer import write_tree

ROOT = NOTEBOOKS.parent
SHEETS = find_sheets(NOTEBOOKS)
SKIPPED = shutil.ignore_patterns("weights", "__pycache__", ".ipynb_checkpoints")


@pytest.fixture(scope="module")
def project(brains, tmp_path_factory):
    """A fresh clone, with a small phantom in the place where the default parameters look."""
    folder = tmp_path_factory.mktemp("clone") / "project"
    for name in ("notebooks", "minddiff_utils"):
        shutil.copytree(ROOT / name, folder / name, ignore=SKIPPED)
    weights = "minddiff_utils/phantom/weights"
    (folder / weights).symlink_to(ROOT / weights)
    (folder / "book").mkdir()
    (folder / "book/results").symlink_to(ROOT / "book/results")
    tree = folder / "runs/phantom/tree"
    write_tree(tree, subjects=["subj01", "subj02"], progress=False, **SMALL_TREE)
    return folder


@pytest.fixture(scope="module")
def environment(project):
    return {**os.environ, "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}


def test_run_all_from_the_first_chapter_to_the_last(project, environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for sheet in SHEETS:
        page = nbformat.read(project / "notebooks" / sheet.path.name, as_version=4)
        place = {"metadata": {"path": str(project / "notebooks")}}
        NotebookClient(page, timeout=600, startup_timeout=600, resources=place).execute()
        outputs = [out for cell in page.cells for out in cell.get("outputs", [])]
        red = [out["text"] for out in outputs if out.get("name") == "stderr"]
        assert not red, f"{sheet.name} shows a red block: {red}"
        for out in outputs:  # a result is shown as people read it, not as Python writes it
            data = out.get("data", {})
            text = "" if "text/html" in data else data.get("text/plain", "")
            assert not text.startswith(("{", "Settings(", "Method(", "namespace(")), text
    made = project / "runs/mine"
    assert (made / "subj01/results.md").is_file() and (made / "overview.png").is_file()
    assert not list((project / "runs/phantom").glob("subj*"))  # a book's folder: never touched


@pytest.mark.parametrize("place", ["project", "elsewhere"])
def test_papermill_runs_a_subject_from_any_folder(project, environment, place, tmp_path):
    folder = project if place == "project" else tmp_path
    given = ["-p", "subject", "subj02", "-p", "run_dir", f"runs/{place}"]
    for sheet in SHEETS[:2]:
        source = project / "notebooks" / sheet.path.name
        command = [sys.executable, "-m", "papermill", str(source), str(tmp_path / "out.ipynb")]
        done = subprocess.run([*command, *given], cwd=folder, env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()[-3000:]
    assert (project / f"runs/{place}/subj02/decoded.h5").is_file()
