"""Sentences about results, on several outcomes."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from minddiff_utils.evaluation import findings
from minddiff_utils.evaluation.statistics import PermutationTest
from minddiff_utils.evaluation.tables import differences


def values(gain, subjects=("subj01",), metrics=("clip_judge",), n=40):
    """Scores of stage 1, and of both stages that lie `gain` above it, by subject and metric."""
    rng, frames = np.random.default_rng(0), []
    for subject in subjects:
        for metric in metrics:
            first = rng.normal(0.5, 0.1, n)
            more = gain.get((subject, metric), gain.get(metric, 0.0)) + rng.normal(0, 0.05, n)
            parts = {"stage1": first, "stage2": first + more, "retrieval": first + 0.1}
            frame = pd.DataFrame(parts).assign(stimulus_id=range(n))
            tidy = frame.melt("stimulus_id", var_name="method")
            frames.append(tidy.assign(subject=subject, metric=metric))
    return pd.concat(frames)


PAIRS = [("stage2", "stage1"), ("stage2", "retrieval"), ("stage2", "absent")]


@pytest.mark.parametrize(("gain", "outcome"), [(0.2, "above"), (-0.2, "below"), (0.0, "open")])
def test_outcome_follows_from_interval_and_p(gain, outcome):
    frame = values({"clip_judge": gain})
    found = differences(frame, PAIRS)
    found = found.assign(outcome=findings.outcomes(found)).set_index("baseline")
    assert found.index.tolist() == ["stage1", "retrieval"]
    row = found.loc["stage1"]
    means = frame.groupby("method")["value"].mean()
    assert row["outcome"] == outcome
    assert row["after"] == pytest.approx(means["stage2"])
    assert row["before"] == pytest.approx(means["stage1"])
    assert row["after"] - row["before"] == pytest.approx(row["mean"])


def test_sentences_name_subjects_metrics_and_what_is_not_shown():
    gain = {("subj01", "ssim"): 0.3, ("subj02", "pcc"): -0.3}
    frame = values(gain, ("subj01", "subj02"), ("ssim", "pcc"))
    one, two = findings.sentences(differences(frame, PAIRS[:1])).splitlines()
    assert one.startswith("- subj01, **both stages**: above stage 1 in SSIM. It is not shown to")
    assert one.endswith("differ from stage 1 in PCC.")
    assert "not shown to differ from stage 1 in SSIM" in two and "below stage 1 in PCC" in two
    assert findings.sentences(differences(frame, PAIRS[2:])) == ""


@pytest.mark.parametrize(("slope", "said"), [(-1, "is higher"), (1, "is lower"), (0, "not shown")])
def test_nearness_follows_the_rank_correlation(slope, said):
    rng = np.random.default_rng(0)
    near = SimpleNamespace(stimulus_id=np.arange(50), distance=rng.random(50))
    rows = pd.DataFrame({"stimulus_id": range(50), "value": rng.random(50) + slope * near.distance})
    assert said in findings.nearness(near, rows.sample(frac=1, random_state=0))


def test_baselines_of_the_same_outcomes_are_told_together():
    frame = values({"ssim": 0.3, "pcc": 0.3}, ("subj01", "subj02"), ("ssim", "pcc"))
    lines = findings.sentences(differences(frame, PAIRS)).splitlines()
    said = "above stage 1, nearest training image in SSIM, PCC."
    assert lines == [f"- {who}, **both stages**: {said}" for who in ("subj01", "subj02")]
    one = findings.sentences(differences(values({"ssim": 0.1}, metrics=("ssim",)), PAIRS))
    assert one.splitlines() == [
        "- **both stages**: above stage 1 in SSIM. It is not shown to differ from nearest training "
        "image in SSIM."
    ]
    assert findings.sentences(differences(frame, PAIRS[2:])) == ""


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        (0.25, "Stage 2 raises CLIP (judge) from .* and beats the nearest training image"),
        (-0.2, "Stage 2 lowers .* and falls short of the nearest training image"),
        (0.1, "Stage 2 raises .* and is not shown to beat the nearest training image"),
        (0.0, "Stage 2 is not shown to change CLIP"),
    ],
)
def test_headline_tells_every_outcome(gain, said):
    text = findings.headline(differences(values({"clip_judge": gain}), PAIRS))
    assert pd.Series([text]).str.contains(said.replace("(", r"\(").replace(")", r"\)")).all(), text


def test_headline_of_several_subjects_names_each():
    text = findings.headline(differences(values({"clip_judge": 0.2}, ("a", "b")), PAIRS))
    assert text.count("Stage 2 raises") == 2 and " in a." in text and " in b." in text
    frame = values({"clip_judge": 0.2})
    assert findings.headline(differences(frame[frame["method"] != "stage1"], PAIRS)) == ""
    assert findings.headline(differences(frame, PAIRS), metric="pcc") == ""


@pytest.mark.parametrize(
    ("gain", "verb"), [(0.2, "raises"), (-0.2, "lowers"), (0.0, "is not shown to change")]
)
def test_a_change_is_told_by_its_interval(gain, verb):
    rng = np.random.default_rng(0)
    before = rng.uniform(0.4, 0.6, 30)
    text = findings.change("It", "the loss", before, before + gain + rng.normal(0, 0.02, 30))
    assert text.startswith(f"It {verb} the loss: from .") and "difference " in text


def test_regions_of_the_most_and_least_reliable_voxels_are_named():
    roi = {"V1": np.array([True, True, False]), "LO": np.array([False, False, True])}
    text = findings.noise_ceilings(np.array([60.0, 40.0, 10.0]), roi)
    assert "of 40 %" in text and text.endswith(
        "V1 \\(50 %\\) has the highest and LO \\(10 %\\) the lowest."
    )
    assert "unknown" in findings.noise_ceilings(np.full(3, np.nan), roi)


def test_spaces_that_are_not_above_chance_are_named():
    table = pd.DataFrame({"decoded": [0.8, 0.1], "highest": [0.1, 0.0]}, ["c", "block_1"])
    text = findings.decoded_spaces(table)
    assert "highest for `c` (0.80), lowest for `block_1` (0.10)" in text and "none." in text
    text = findings.decoded_spaces(table.assign(highest=0.1))
    assert text.endswith("Not above all permutations of the responses: block_1.")


def test_the_fewest_that_do_as_well_as_all_are_named():
    rng, all_scores = np.random.default_rng(0), np.linspace(0.4, 0.6, 30)
    scores = {1: all_scores - 0.2, 5: all_scores, 20: all_scores}
    frame = pd.DataFrame({k: v + rng.normal(0, 0.01, 30) for k, v in scores.items()})
    frame = frame.rename_axis("stimulus_id").reset_index().melt("stimulus_id", var_name="method")
    frame = frame.assign(metric="clip_judge")
    assert findings.enough(frame, "sessions").startswith(
        "With 5 of 20 sessions, CLIP (judge) is not"
    )
    fewer = frame[frame["method"] != 5]
    assert findings.enough(fewer, "sessions").startswith("No smaller number tried scores as high")


def test_methods_nearer_to_permuted_stimuli_are_named_apart():
    tests = {name: PermutationTest(0.5, np.zeros(3), p) for name, p in (("a", 0.01), ("b", 0.5))}
    assert "(p < .05): a. Not shown for: b." in findings.matched(tests)
    assert findings.matched({"b": tests["b"]}).startswith("More similar") and "none" in (
        findings.matched({"b": tests["b"]})
    )


def test_a_box_holds_every_sentence():
    text = findings.take_away("- one.\n- two.", "", "three.")
    assert text.splitlines()[2:] == ["> - one.", "> - two.", "> - three."]
