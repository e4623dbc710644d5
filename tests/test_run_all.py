"""JupyterLab's *Run All* and papermill's command line, with the defaults as they stand.

Minutes: `make test TESTS="-m slow tests/test_run_all.py"`, which `.ci/run` calls.
"""

import os
import shutil
import subprocess
import sys

import nbformat
import pytest
from builders import NOTEBOOKS, ROOT
from conftest import SMALL_TREE
from nbclient import NotebookClient

from minddiff_utils.book.plan import find_sheets
from minddiff_utils.phantom.nsd_writer import write_tree

pytestmark = pytest.mark.slow
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
    write_tree(tree, subjects=["subj01", "subj02"], **SMALL_TREE)
    return folder


def test_run_all_from_the_first_chapter_to_the_last(project, monkeypatch):
    """Each in a kernel of its own, as JupyterLab starts them."""
    monkeypatch.setenv("PYTHONPATH", str(project))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
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


def test_papermill_runs_a_subject_from_any_folder(project, tmp_path):
    """The second chapter finds what the first has left, though it is started elsewhere."""
    environment = {**os.environ, "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}
    for sheet, folder in zip(SHEETS, (project, tmp_path), strict=False):
        command = [sys.executable, "-m", "papermill", project / "notebooks" / sheet.path.name]
        command += [tmp_path / "out.ipynb", "-p", "subject", "subj02", "-p", "run_dir", "runs/two"]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()[-3000:]
    assert (project / "runs/two/subj02/decoded.h5").is_file()
