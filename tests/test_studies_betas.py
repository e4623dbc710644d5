"""`python -m studies betas`: what it prints, and when it complains."""

import os
import re

import pytest
from typer.testing import CliRunner

from minddiff_utils.io import InputError
from studies import betas
from studies.__main__ import app


def call(*arguments):
    return CliRunner().invoke(app, ["betas", "--small", "--rounds", "1", *arguments])


def test_both_speeds_stand_side_by_side(tmp_path):
    shown = call("--folder", str(tmp_path), "--sessions", "2")
    assert shown.exit_code == 0, shown.output
    assert "2 × 60 trials × 12 × 14 × 10 voxels in int16" in shown.output
    plain, gathered = (
        float(re.search(rf"{name}: +([\d.]+) s", shown.output)[1])
        for name in ("plain reading", "gathering")
    )
    share = int(re.search(r"gathering has (\d+)% of the speed", shown.output)[1])
    assert share <= 100 * (plain + 0.005) / (gathered - 0.005) + 1
    assert int(re.search(r"memory of gathering: (\d+) MiB", shown.output)[1]) > 20
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there(tmp_path):
    shown = call("--folder", str(tmp_path / "none"))
    assert isinstance(shown.exception, InputError) and "GB free" in str(shown.exception)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system cannot forget files")
def test_files_are_forgotten_before_each_reading(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *given: asked.append(given[1:]))
    (tmp_path / "file").write_bytes(b"0" * 99)
    betas._forget([tmp_path / "file"])
    assert asked == [(0, 0, os.POSIX_FADV_DONTNEED)]
