"""`python -m studies betas`: what it prints, and when it complains."""

import re

from builders import study


def test_both_speeds_stand_side_by_side(tmp_path):
    shown = study("betas", "--small", "--rounds", 1, "--folder", tmp_path, "--sessions", 2)
    assert "2 × 60 trials × 12 × 14 × 10 voxels in int16" in shown
    names = "plain reading", "gathering"
    plain, gathered = (float(re.search(rf"{k}: +([\d.]+) s", shown)[1]) for k in names)
    share = int(re.search(r"gathering has (\d+)% of the speed", shown)[1])
    assert share <= 100 * (plain + 0.005) / (gathered - 0.005) + 1
    assert int(re.search(r"memory of gathering: (\d+) MiB", shown)[1]) > 20
    assert not list(tmp_path.iterdir())
