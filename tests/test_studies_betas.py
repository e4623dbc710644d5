"""`python -m studies betas`: what it prints, and when it complains."""

import re

from typer.testing import CliRunner

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
