"""The notebooks: how they are written, and that they run as a reader runs them."""

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import time

import nbformat
import numpy as np
import pandas as pd
import pytest
from builders import NOTEBOOKS, ROOT, read_hdf5
from conftest import SMALL_TREE
from papermill.exceptions import PapermillExecutionError

from minddiff_utils.book.plan import find_sheets, load_plan
from minddiff_utils.book.record import read_record
from minddiff_utils.book.run import SHARDED
from minddiff_utils.evaluation.metrics import read_metrics
from minddiff_utils.io import claim_run, lock_file, method_file
from minddiff_utils.reconstruction import stage2
from minddiff_utils.settings import CONTROLS, recall

SHEETS = find_sheets(NOTEBOOKS)
CHAPTERS = [sheet for sheet in SHEETS if not sheet.group]
PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
PARAMS = sorted((NOTEBOOKS / "params").glob("*.yaml"))
QUICK = {"n_steps": 3, "batch": 2, "n_seeds": 2}
SUBJECT = "subj01"


def by_name(sheets):
    return {"argvalues": sheets, "ids": [sheet.name for sheet in sheets]}


# --- how they are written -------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_notebook_is_clean_short_and_imports_what_is_there(path):
    """The Colab notebook, too, which stands outside the order and runs among the slow tests."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type != "code":
            continue
        assert not cell.outputs and cell.execution_count is None
        is_given = "parameters" in cell.metadata.get("tags", [])
        assert is_given or len(cell.source.splitlines()) <= 12, f"cell {number}"
        for node in ast.walk(ast.parse(cell.source)):
            kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
            assert not isinstance(node, kinds), f"cell {number} defines {node.name}"
            if isinstance(node, ast.ImportFrom) and node.module.startswith("minddiff_utils"):
                module = importlib.import_module(node.module)
                absent = [name.name for name in node.names if not hasattr(module, name.name)]
                assert not absent, f"{node.module} has no {absent}"


@pytest.mark.parametrize("sheet", **by_name(SHEETS))
def test_parameters_have_comments(sheet):
    notebook = nbformat.read(sheet.path, as_version=4)
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    for line in cell.source.splitlines():
        assert not line or line.startswith("#") or "  # " in line, line
    assert "run_dir" in sheet.defaults


def test_figures_have_captions_names_and_alternative_texts():
    """A caption stands below its figure, where JupyterLab shows it too."""
    names = []
    for sheet in SHEETS:
        cells = nbformat.read(sheet.path, as_version=4).cells
        for cell, below in zip(cells, cells[1:], strict=False):
            settings = cell.metadata.get("mystnb", {})
            assert ("figure" in settings) == ("caption" in below.metadata.get("tags", []))
            if "figure" in settings:
                names.append(settings["figure"]["name"])
                assert len(below.source) > 20, names[-1]
                assert len(settings["image"]["alt"]) > 20, names[-1]
    assert len(set(names)) == len(names)


def invitation(sheet):
    """The cell of a chapter that invites a change: `name = value  # try another, or one more`."""
    cells = nbformat.read(sheet.path, as_version=4).cells
    return [cell for cell in cells if "try" in cell.metadata.get("tags", [])]


INVITING = [sheet for sheet in CHAPTERS if invitation(sheet)]
TRY = re.compile(r"^(\w+) = (.+?)  # try (.+?), or (.+)$", flags=re.MULTILINE)


def test_chapters_invite_to_change_one_thing():
    assert [sheet.name[:2] for sheet in INVITING] == ["01", "02", "03", "04", "06"]
    for sheet in INVITING:
        (cell,) = invitation(sheet)
        assert len(TRY.findall(cell.source)) == 1, sheet.name


@pytest.mark.parametrize("path", PARAMS, ids=[path.stem for path in PARAMS])
def test_parameter_files_fit_the_notebooks(path):
    plan = load_plan(path, ROOT)
    assert plan.run == ROOT / "runs" / path.stem
    for page in plan.values["pages"]:
        assert (ROOT / "book" / f"{page}.md").is_file()


def test_defaults_are_those_of_the_phantom():
    assert [sheet.name[:2] for sheet in SHEETS] == [f"{number:02d}" for number in range(1, 8)]
    """A notebook opened in JupyterLab does what the phantom's book does, in a run of its own."""
    plan = load_plan(NOTEBOOKS / "params" / "phantom.yaml", ROOT)
    for sheet in SHEETS:
        given = plan.given(sheet, "" if sheet.group else plan.subjects[0])
        assert {"run_dir": "runs/phantom"}.items() <= given.items() and len(given) == 2
        assert sheet.defaults["run_dir"] == "runs/mine"


# --- that they run --------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def given(tree, tiny_models):
    """Parameters of a quick run on a small phantom with untrained models."""
    return {"data_path": str(tree), "models": str(tiny_models), "subjects": SUBJECT, **QUICK}


def plan_of(run_dir, given, **changes):
    values = {**given, "run_dir": str(run_dir), "phantom": SMALL_TREE, **changes}
    return load_plan(NOTEBOOKS / "params" / "fast.yaml", ROOT, values)


@pytest.fixture(scope="session")
def chain(given, run_plan, tmp_path_factory):
    """Folder of a run of all notebooks as `fast.yaml` says, and the notebooks as executed."""
    run_dir = tmp_path_factory.mktemp("chain") / "run"
    return run_dir, run_plan(plan_of(run_dir, given))


@pytest.mark.parametrize("sheet", **by_name(SHEETS))
def test_notebook_runs_and_shows_something(chain, sheet):
    _, executed = chain
    cells = [cell for cell in executed[sheet.name].cells if cell.cell_type == "code"]
    shown = [output for cell in cells for output in cell.outputs]
    assert any({"image/png", "image/svg+xml"} & {*output.get("data", {})} for output in shown)
    text = json.dumps(shown)
    assert "vnd.jupyter.widget" not in text and "Traceback" not in text


def same_pictures(one, two):
    """Assert that two subjects' folders hold the same reconstructions."""
    names = [path.name for path in sorted(one.glob("reconstructions/*.h5"))]
    assert names == [path.name for path in sorted(two.glob("reconstructions/*.h5"))]
    for name in names:
        a, b = (read_hdf5(folder / "reconstructions" / name) for folder in (one, two))
        np.testing.assert_array_equal(a["pictures"], b["pictures"], err_msg=name)


def test_chain_leaves_its_files(chain):
    folder = chain[0] / SUBJECT
    features = read_hdf5(folder / "features.h5")
    assert {"z", "c", "stimulus_id"} <= set(features)
    assert len(features["z"]) == len(features["stimulus_id"])
    assert list((folder / "decoders").rglob("*.safetensors"))
    stages = {"stage1", "stage2", "no_z", "no_c"}
    shown = {"truth", "shuffled", *stages, *CONTROLS}
    draws = {f"{name}_seed_1" for name in ("stage1", "stage2")}
    found = {path.stem: read_hdf5(path) for path in folder.glob("reconstructions/*.h5")}
    assert found.keys() >= shown | draws
    shape = found["truth"]["pictures"].shape
    assert shape[0] == SMALL_TREE["n_test"] and shape[3] == 3
    for name in shown | draws:
        np.testing.assert_array_equal(found[name]["stimulus_id"], found["truth"]["stimulus_id"])
        pictures = found[name]["pictures"]
        assert pictures.shape == shape and pictures.dtype == np.uint8, name
    for file, methods in (("metrics.csv", stages), ("controls.csv", {"shuffled", *CONTROLS})):
        metrics = pd.read_csv(folder / file)
        assert list(metrics) == ["subject", "method", "stimulus_id", "metric", "value"]
        assert {"clip_judge", "clip_guide", "ssim", "pcc"} <= set(metrics.metric)
        assert set(metrics.method) == methods and metrics.value.notna().all()
    assert (chain[0] / "overview.png").is_file()


def test_the_table_of_the_book_is_the_file(chain):
    """`results.md` is what the page shows, and `results.csv` has the same rows."""
    folder, executed = chain
    text = (folder / "results.md").read_text(encoding="utf-8")
    shown = [
        output["data"]["text/markdown"]
        for cell in executed["07_subjects"].cells
        for output in cell.get("outputs", [])
        if "text/markdown" in output.get("data", {})
    ]
    assert text in shown
    values = read_metrics(folder, [SUBJECT])
    assert set(pd.read_csv(folder / "results.csv")["method"]) == {*values["method"]} >= {*CONTROLS}


def test_killed_in_stage_2_the_book_goes_on_to_the_same_pictures(chain, given, run_plan, tmp_path):
    """Begun where `chain` had come to stage 2, in processes of its own, and killed inside it."""
    plan = plan_of(tmp_path / "run", given)
    folder = shutil.copytree(chain[0] / SUBJECT, claim_run(plan.run) / SUBJECT)
    for name in read_record(folder)[SHARDED]["outputs"].keys() - {"run.json"}:
        (folder / name).unlink()
    changes = {**given, "run_dir": plan.run, "phantom": json.dumps(SMALL_TREE)}
    sets = [word for name, value in changes.items() for word in ("--set", f"{name}={value}")]
    book = [sys.executable, "-m", "minddiff_utils.cli", "book", "fast", "--cores", "1", *sets]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(book, env={**os.environ, "PYTHONPATH": str(ROOT)}, **quiet)
    half = folder / "reconstructions" / "stage2.h5.partial"
    while not (half.exists() and half.stat().st_size > 20_000):  # the first batch is there
        assert process.poll() is None, "the book ended before it could be killed"
        time.sleep(0.02)
    process.kill()
    process.wait()
    with open(plan.state / "lock", "a") as lock:
        while not lock_file(lock):  # until the last of what it has started is gone
            time.sleep(0.02)
    assert half.exists()
    run_plan(plan, SHARDED)
    same_pictures(chain[0] / SUBJECT, folder)


@pytest.mark.parametrize("sheet", **by_name(INVITING))
def test_invitation_works_with_the_values_that_it_names(sheet, chain, given, tmp_path, monkeypatch):
    """The cells up to the invitation run here as they stand; then it, with both values."""
    import matplotlib

    matplotlib.use("agg")
    monkeypatch.chdir(NOTEBOOKS)
    shutil.copytree(chain[0] / SUBJECT, claim_run(tmp_path / "run") / SUBJECT)
    (invited,) = invitation(sheet)
    names = {}
    for cell in nbformat.read(sheet.path, as_version=4).cells:
        if cell.id == invited.id:
            break
        if cell.cell_type == "code":
            exec(cell.source, names)
        if "parameters" in cell.metadata.get("tags", []):
            changes = {**given, "run_dir": str(tmp_path / "run")}
            names |= {name: value for name, value in changes.items() if name in sheet.defaults}
    for choice in (3, 4):
        source = TRY.sub(lambda found: f"{found[1]} = {found[choice]}", invited.source)  # noqa: B023
        assert source != invited.source
        *steps, last = ast.parse(source).body
        exec(compile(ast.Module(steps, []), "invitation", "exec"), names)
        assert eval(compile(ast.Expression(last.value), "invitation", "eval"), names).axes


def test_stage_2_takes_what_shards_computed(chain, given, run_plan, tmp_path, one_thread):
    """Settings are those of the notebook: it computes nothing again and leaves the same numbers."""
    plan = plan_of(tmp_path / "run", given)
    folder = shutil.copytree(chain[0] / SUBJECT, claim_run(plan.run) / SUBJECT)
    painted = ("stage2", "stage2_seed_1", "no_z", "no_c", "shuffled")
    for name in painted:
        method_file(folder, name).unlink()
    for number in (1, 2):
        stage2.compute_shard(vars(recall(folder)) | {"run_dir": str(plan.run)}, number, 2)
    gathered = stage2.gather(folder)
    assert {path.stem for path in gathered} == set(painted)
    stamps = [path.stat().st_mtime_ns for path in gathered]
    run_plan(plan, SHARDED)
    assert [path.stat().st_mtime_ns for path in gathered] == stamps
    same_pictures(chain[0] / SUBJECT, folder)


BAD = [(sheet.name, {}, "is missing.*Run 0") for sheet in CHAPTERS[2:]]
BAD += [("01_data", {"subjects": "subj09"}, "subj09")]
BAD += [("01_data", {"data_path": "/no/such/folder"}, "/no/such/folder")]


@pytest.mark.parametrize(("name", "changes", "said"), BAD)
def test_missing_files_and_bad_input_are_named(name, changes, said, given, run_plan, tmp_path):
    """Files with the notebook that writes them."""
    with pytest.raises(PapermillExecutionError, match=said) as error:
        run_plan(plan_of(tmp_path / "run", given, **changes), name)
    assert error.value.ename == "InputError"
