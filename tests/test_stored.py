"""Files of what was measured once: they hold what the project promises, and their pages."""

import numpy as np
import pandas as pd
import pytest
from dummy_project import ROOT

from minddiff_utils.book.pages import add_measured
from minddiff_utils.evaluation.pictures import DEFAULT_WAY, stored_pictures
from minddiff_utils.io import InputError
from studies import stored

MEASURED = ROOT / "book" / "results"
SUBJECTS = ["subj01", "subj02"]
METRICS = ("clip_judge", "ssim", "pcc")


@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_fast_solver_is_better_than_the_papers_at_a_three_hundredth(subject):
    table = pd.read_csv(MEASURED / f"solvers_{subject}.csv", index_col="solver")
    fast, paper = table.loc["guided"], table.loc["algorithm_1"]
    assert fast.equivalents <= 200
    assert paper.processor_seconds / fast.processor_seconds >= 300
    assert paper.equivalents > 300 * 28 * 2 * 3
    assert all(paper[f"{metric}_low"] >= -0.01 for metric in METRICS)
    assert any(paper[f"{metric}_low"] > 0 for metric in METRICS)
    assert (MEASURED / "solvers.md").read_text("utf-8") == stored.solver_table(MEASURED)


def test_the_default_gains_on_stage_1_by_every_metric():
    summary = pd.read_csv(MEASURED / "ways.csv", index_col=["way", "metric"])
    for metric in METRICS:
        assert summary.loc[(DEFAULT_WAY, metric), "low"] > 0


def test_stored_pictures_are_shown_for_the_same_decoded_features_alone(tmp_path):
    rng = np.random.default_rng(0)
    decoded = {"stimulus_id": np.arange(4), "z": rng.normal(size=(4, 2, 3, 3)),
               "c": rng.normal(size=(4, 5)), "block_1": rng.normal(size=(4, 6))}  # fmt: skip
    decoded["block_1"][:, 2] = np.nan  # was not decoded
    pictures = rng.integers(0, 256, (4, 8, 8, 3), np.uint8)
    stored.store_pictures(tmp_path / "a.h5", decoded, pictures, "by hand")
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


def test_table_of_solvers_and_pages(tmp_path):
    numbers = {"seconds": 1.0, "processor_seconds": 1.0, "equivalents": 40.0, "loss": 2.0}
    for metric in (*METRICS, "clip_guide"):
        numbers |= {metric: 0.5, **{f"{metric}_{part}": 0.1 for part in ("gain", "low", "high")}}
    paper = {name: 500 * value for name, value in numbers.items()}
    table = pd.DataFrame({"guided": numbers, "algorithm_1": paper})
    table.T.rename_axis("solver").to_csv(tmp_path / "solvers_a.csv")
    text = stored.solver_table(tmp_path)
    assert "| a | UNet passes a picture | 20,000 | 40 | 1 / 500 |" in text
    add_measured(tmp_path, MEASURED)
    assert (tmp_path / "ways.md").read_text("utf-8") == (MEASURED / "ways.md").read_text("utf-8")
    assert (tmp_path / "ways.png").stat().st_size > 10_000


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="solvers_<subject>.csv"):
        stored.solver_table(tmp_path)
