"""Pictures that went astray are named below the table."""

import h5py
import numpy as np
import pandas as pd

from minddiff_utils.results import write_results
from minddiff_utils.strays import find_strays, stray_note


def write(path, failed):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["stimulus_id"], file["failed"] = np.arange(10, 10 + len(failed)), failed


def test_flags_of_every_run_are_found(tmp_path):
    write(tmp_path / "trace.h5", [False, True, True])
    write(tmp_path / "controls" / "ceiling.h5", [False, False, False])
    assert find_strays(tmp_path) == {"stage2": [11, 12], "ceiling": []}
    note = stray_note({"a": tmp_path})
    assert note.endswith("stands: a, both stages, this book's solver: 11, 12.\n")


def test_nothing_astray_and_nothing_there(tmp_path):
    assert stray_note({"a": tmp_path}) == ""
    write(tmp_path / "trace.h5", [False])
    assert stray_note({"a": tmp_path}).endswith("stands: none.\n")


def test_the_tables_file_names_them(tmp_path):
    """The group's table looks into the folders of its subjects, a subject's own into its own."""
    rng = np.random.default_rng(0)
    rows = [
        (who, method, picture, metric, rng.normal())
        for who in ("a", "b")
        for method in ("stage1", "stage2")
        for picture in range(10, 14)
        for metric in ("clip_judge", "pcc")
    ]
    values = pd.DataFrame(rows, columns=["subject", "method", "stimulus_id", "metric", "value"])
    write(tmp_path / "a" / "trace.h5", [False] * 4)
    write(tmp_path / "b" / "trace.h5", [False, False, True, False])
    text = write_results(tmp_path, values).read_text("utf-8")
    assert "stands: b, both stages, this book's solver: 12.\n" in text
    text = write_results(tmp_path / "a", values[values.subject == "a"]).read_text("utf-8")
    assert "stands: none.\n" in text
