"""The benches of decoders, and of gathering voxels, in small."""

import re

from builders import refuses, study

from studies import decoders


def test_both_studies_in_small(tmp_path, monkeypatch):
    monkeypatch.setattr(decoders, "PAIR", (40, 30, 6, 9))
    monkeypatch.setattr(decoders, "NSD", (40, 50))
    options = ["--share", 0.002, "--rounds", 1, "--threads", 1, "--folder", tmp_path]
    shown = study("decoders", *options)
    assert re.search(r"this book in float32: +[\d.]+ s", shown)
    assert "pip install --target FOLDER fastl2lir" in shown
    total = sum(max(1, round(0.002 * size)) for size in decoders.SIZES.values())
    assert f"40 stimuli × 50 voxels → {total} targets" in shown
    for name in ("responses", *decoders.SIZES, "in all", "all targets, if each costs the same"):
        assert re.search(rf"{name}: +[\d.]+ s, +[\d.]+ s of the processor", shown), name
    assert not list(tmp_path.iterdir())


def test_a_program_that_fails_is_told():
    refuses("a fit failed: KeyError: 'x'", decoders.run_program, "raise KeyError('x')", [])


def test_both_speeds_stand_side_by_side(tmp_path):
    shown = study("betas", "--small", "--rounds", 1, "--folder", tmp_path, "--sessions", 2)
    assert "2 × 60 trials × 12 × 14 × 10 voxels in int16" in shown
    names = "plain reading", "gathering"
    plain, gathered = (float(re.search(rf"{k}: +([\d.]+) s", shown)[1]) for k in names)
    share = int(re.search(r"gathering has (\d+)% of the speed", shown)[1])
    assert share <= 100 * (plain + 0.005) / (gathered - 0.005) + 1
    assert int(re.search(r"memory of gathering: (\d+) MiB", shown)[1]) > 20
    assert not list(tmp_path.iterdir())
