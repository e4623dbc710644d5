"""Files of what was measured once: they hold what the project promises, and their pages."""

import numpy as np
import pandas as pd
import pytest
from dummy_project import ROOT

from minddiff_utils.book.pages import add_measured
from minddiff_utils.evaluation.stored import (
    DEFAULT_WAY,
    read_solvers,
    read_summary,
    read_ways,
    solver_table,
    store_pictures,
    stored_pictures,
    ways_summary,
    ways_table,
    write_summary,
)
from minddiff_utils.io import InputError

MEASURED = ROOT / "book" / "results"
SUBJECTS = ["subj01", "subj02"]
METRICS = ("clip_judge", "ssim", "pcc")


@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_fast_solver_is_better_than_the_papers_at_a_three_hundredth(subject):
    table = read_solvers(MEASURED)[subject]
    fast, paper = table.loc["guided"], table.loc["algorithm_1"]
    assert fast.equivalents <= 200
    assert paper.processor_seconds / fast.processor_seconds >= 300
    assert paper.equivalents > 300 * 28 * 2 * 3
    assert all(paper[f"{metric}_low"] >= -0.01 for metric in METRICS)
    assert any(paper[f"{metric}_low"] > 0 for metric in METRICS)


def test_every_way_is_measured_on_the_same_pictures():
    ways = read_ways(MEASURED)
    assert sorted(ways.subject.unique()) == SUBJECTS
    assert set(ways.way) == set(read_summary(MEASURED).way)
    seen = ways.groupby(["subject", "way"]).stimulus_id.agg(lambda ids: tuple(sorted(set(ids))))
    assert seen.groupby("subject").nunique().eq(1).all()
    assert seen.map(len).eq(48).all()


def test_the_default_gains_on_stage_1_by_every_metric():
    found = ways_summary(read_ways(MEASURED))
    pd.testing.assert_frame_equal(read_summary(MEASURED), found, atol=1e-4)
    summary = found.set_index(["way", "metric"])
    for metric in METRICS:
        assert summary.loc[(DEFAULT_WAY, metric), "low"] > 0


def test_stored_pictures_are_shown_for_the_same_decoded_features_alone(tmp_path):
    rng = np.random.default_rng(0)
    decoded = {"stimulus_id": np.arange(4), "z": rng.normal(size=(4, 2, 3, 3)),
               "c": rng.normal(size=(4, 5)), "block_1": rng.normal(size=(4, 6))}  # fmt: skip
    decoded["block_1"][:, 2] = np.nan  # was not decoded
    pictures = rng.integers(0, 256, (4, 8, 8, 3), np.uint8)
    store_pictures(tmp_path / "a.h5", decoded, pictures, "by hand")
    found, note = stored_pictures(
        tmp_path / "a.h5",
        {k: v.astype("f4") if k != "stimulus_id" else v for k, v in decoded.items()},
    )
    np.testing.assert_array_equal(found, pictures)
    assert note.endswith("by hand")
    changes = (
        {"stimulus_id": np.arange(4)[::-1]},
        {"c": 1.05 * decoded["c"]},
        {"block_2": np.ones((4, 2))},
    )
    for change in changes:
        assert stored_pictures(tmp_path / "a.h5", decoded | change)[0] is None
    assert stored_pictures(tmp_path / "b.h5", decoded)[0] is None


def made_ways():
    rng = np.random.default_rng(0)
    rows = [
        (way, passes, 0.1, picture, metric, rng.normal(level))
        for way, passes, level in [("stage 1 alone", 10.0, 0), ("guided pass", 40.0, 5)]
        for picture in range(6)
        for metric in ("clip_judge", "clip_guide", "ssim", "pcc")
    ]
    return pd.DataFrame(
        rows, columns=["way", "equivalents", "seconds", "stimulus_id", "metric", "value"]
    )


def test_gain_is_the_mean_paired_difference():
    ways = made_ways().assign(subject="a")
    found = ways_summary(ways).set_index(["way", "metric"]).loc[("guided pass", "pcc")]
    wide = ways[ways.metric == "pcc"].pivot(index="stimulus_id", columns="way", values="value")
    gain = (wide["guided pass"] - wide["stage 1 alone"]).mean()
    assert found.gain == pytest.approx(gain) and found.low < gain < found.high
    assert found.equivalents == 40
    lines = ways_table(ways_summary(ways)).splitlines()
    assert lines[2].startswith("| 1 | stage 1 alone | 10 |")


def test_pages_are_made_from_any_folder(tmp_path):
    made_ways().to_csv(tmp_path / "variants_a.csv", index=False)
    numbers = {"seconds": 1.0, "processor_seconds": 1.0, "equivalents": 40.0, "loss": 2.0}
    for metric in (*METRICS, "clip_guide"):
        numbers |= {metric: 0.5, **{f"{metric}_{part}": 0.1 for part in ("gain", "low", "high")}}
    table = pd.DataFrame(
        {"guided": numbers, "algorithm_1": {k: 500 * v for k, v in numbers.items()}}
    ).T
    table.rename_axis("solver").to_csv(tmp_path / "solvers_a.csv")
    text = solver_table(tmp_path)
    assert "| a | UNet passes a picture | 20,000 | 40 | 1 / 500 |" in text
    write_summary(tmp_path)
    add_measured(tmp_path, tmp_path)
    assert (tmp_path / "solvers.md").read_text("utf-8") == text
    assert (tmp_path / "ways.png").stat().st_size > 10_000


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="solvers_<subject>.csv"):
        solver_table(tmp_path)
