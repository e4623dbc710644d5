"""The bench of decoders, in small."""

import re

import pytest
from typer.testing import CliRunner

from minddiff_utils.io import InputError
from studies import decoders
from studies.__main__ import app


def test_both_studies_in_small(tmp_path, monkeypatch):
    monkeypatch.setattr(decoders, "PAIR", (40, 30, 6, 9))
    monkeypatch.setattr(decoders, "NSD", (40, 50))
    monkeypatch.setattr(decoders, "has_fastl2lir", lambda folder: False)
    options = ["--share", "0.002", "--rounds", "1", "--threads", "1", "--folder", str(tmp_path)]
    shown = CliRunner().invoke(app, ["decoders", *options])
    assert shown.exit_code == 0, shown.output + repr(shown.exception)
    assert re.search(r"this book in float32: +[\d.]+ s", shown.output)
    assert "pip install --target FOLDER fastl2lir" in shown.output
    total = sum(max(1, round(0.002 * size)) for size in decoders.SIZES.values())
    assert f"40 stimuli × 50 voxels → {total} targets" in shown.output
    for name in ("responses", *decoders.SIZES, "in all", "all targets, if each costs the same"):
        assert re.search(rf"{name}: +[\d.]+ s, +[\d.]+ s of the processor", shown.output), name
    assert not list(tmp_path.iterdir())


def test_a_program_that_fails_is_told():
    with pytest.raises(InputError, match="a fit failed: KeyError: 'x'"):
        decoders.run_program("raise KeyError('x')", [])
