"""Seconds of steps."""

import time

import pytest

from minddiff_utils.timing import read_seconds, timed


def test_seconds_are_noted_and_a_step_done_again_keeps_the_longer(tmp_path):
    path = tmp_path / "seconds.csv"
    assert read_seconds(path).empty
    with timed(path, "slow", 8):
        time.sleep(0.05)
    with timed(path, "other", 2):
        pass
    with timed(path, "slow", 8):
        pass
    found = read_seconds(path).set_index("step")
    assert 0.05 <= found.loc["slow", "seconds"] < 2 and found.loc["other", "seconds"] < 0.05
    with timed(path, "slow", 4):  # of other pictures: what was is no measure any more
        pass
    assert read_seconds(path).set_index("step").loc["slow", "seconds"] < 0.05


def test_a_step_that_fails_is_not_noted(tmp_path):
    with pytest.raises(KeyError), timed(tmp_path / "seconds.csv", "broken", 1):
        raise KeyError
    assert read_seconds(tmp_path / "seconds.csv").empty
