"""Pictures that failed are counted where they arise and below every table that they enter."""

import re
from itertools import product
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
from builders import ROOT, write_hdf5
from test_reconstruction import decoded

from minddiff_utils.book.pages import front_results
from minddiff_utils.evaluation import METHODS
from minddiff_utils.evaluation.baselines import Bench, make_control
from minddiff_utils.evaluation.tables import failed_pictures, failure_note, write_results
from minddiff_utils.io import method_file
from minddiff_utils.models.stable_diffusion import load_generator
from minddiff_utils.reconstruction.results import read_pictures, write_pictures
from minddiff_utils.reconstruction.stage2 import reconstruct
from minddiff_utils.settings import Settings


def write(folder, method, failed):
    ids = np.arange(10, 10 + len(failed))
    write_hdf5(method_file(folder, method), {"stimulus_id": ids, "failed": failed})


def test_every_methods_flags_are_its_own(tmp_path):
    names = [*METHODS, "stage1_seed_1"]
    for number, name in enumerate(names):
        write(tmp_path, name, np.arange(len(names)) == number)
    assert failed_pictures(tmp_path, names) == {name: [10 + k] for k, name in enumerate(names)}
    write_pictures(method_file(tmp_path, "blur"), [1], np.zeros((1, 4, 4, 3), np.uint8))
    assert failed_pictures(tmp_path, ["stage1", "blur"]).keys() == {"stage1"}  # nothing was painted


def test_failed_pictures_are_counted_and_listed(tmp_path):
    folders, methods = {"a": tmp_path}, ["stage2", "ceiling"]
    assert failure_note(folders, methods) == ""
    write(tmp_path, "stage2", [False])
    assert failure_note(folders, methods) == "\nFailed images: none.\n"
    assert failure_note(folders, methods, quiet=True) == ""
    write(tmp_path, "stage2", [False, True, True])
    write(tmp_path, "ceiling", [True] * 12)
    for note in (failure_note(folders, methods), failure_note(folders, methods, quiet=True)):
        assert "a, both stages, this book's solver: 2 (11, 12); a, true features: 12 (10," in note
        assert note.endswith(" 19, …).\n")
    assert failure_note(folders, ["stage1"]) == ""


def test_overflow_in_half_precision_is_said(tiny_models, tmp_path):
    """In stage 1, and in peers and controls that are stage 1 alone."""
    generator = load_generator(tiny_models, "cpu", "float16")
    for values in generator.vae.decoder.conv_in.parameters():
        values.mul_(1e5)
    given = decoded(generator)
    first = Settings(3, 0.7, 2.0, solver="algorithm_1", iterations=0, structure_target="values")
    path = reconstruct(generator, given, first, method_file(tmp_path, "stage1"))
    person = SimpleNamespace(splits=())
    bench = Bench(person, generator, given, tmp_path, tmp_path, first, first, batch=2)
    for pictures in (read_pictures(path), make_control("prior", bench)):
        assert len(pictures) == 3 and not np.ptp(pictures, axis=(1, 2, 3)).any()  # grey
    note = failure_note({"S": tmp_path}, ["stage1", "prior"], quiet=True)
    for name in ("no stage 2", "no brain at all"):
        assert f"S, {name}: 3 (0, 1, 2)" in note


def test_the_tables_file_and_the_first_page_name_them(tmp_path):
    """The group's table looks into the folders of its subjects, a subject's own into its own."""
    names = ["subject", "method", "stimulus_id", "metric"]
    rows = product("ab", ["stage1", "stage2"], range(10, 14), ["clip_judge", "pcc"])
    values = pd.DataFrame(rows, columns=names)
    values["value"] = np.random.default_rng(0).normal(size=len(values))
    write(tmp_path / "a", "stage2", [False] * 4)
    write(tmp_path / "b", "stage1", [False, False, True, False])
    write(tmp_path / "b", "no_z", [True] * 4)  # has no row
    text = write_results(tmp_path, values).read_text("utf-8")
    n_tables = len(re.findall(r"^\| ---", text, flags=re.MULTILINE))
    assert n_tables > 1 and text.count(": b, no stage 2: 1 (12).\n") == n_tables
    for name, rows in values.groupby("subject"):
        rows.to_csv(tmp_path / name / "metrics.csv", index=False)
    plan = SimpleNamespace(run=tmp_path, subjects=("a", "b"), sheets=())
    assert "b, no stage 2: 1 (12)" in front_results(plan, ROOT / "book")["results"]
    text = write_results(tmp_path / "a", values[values.subject == "a"]).read_text("utf-8")
    assert text.count("Failed images: none.\n") == 1


@pytest.mark.parametrize("chapter", ["05_metrics", "06_controls", "colab"])
def test_no_table_of_a_notebook_is_without_the_note(chapter):
    cells = nbformat.read(ROOT / "notebooks" / f"{chapter}.ipynb", as_version=4).cells
    lines = [line for c in cells if c.cell_type == "code" for line in c.source.splitlines()]
    tables = [line for line in lines if "markdown_table(" in line]
    assert tables
    for line in tables:
        assert re.search(r" \+ (below|failed|failure_note\(.*\))\)?$", line), line
