"""Figures of the evaluation: what they show, and that nothing is left behind."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from minddiff_utils.evaluation.leakage import Overlap
from minddiff_utils.figures import evaluation as figures
from minddiff_utils.io import InputError


@pytest.fixture(autouse=True)
def nothing_left_behind():
    yield
    assert plt.get_fignums() == []


def frame(subjects=("S1",), methods=("shuffled", "retrieval", "stage1", "stage2", "ceiling")):
    rng = np.random.default_rng(0)
    parts = []
    for subject in subjects:
        for place, method in enumerate(methods):
            for metric in ("clip_judge", "ssim"):
                value = 0.2 * place + 0.05 * rng.normal(size=12)
                parts.append(
                    pd.DataFrame({"subject": subject, "method": method, "metric": metric,
                                  "stimulus_id": np.arange(12), "value": value})
                )  # fmt: skip
    return pd.concat(parts)


def texts(fig):
    return [text.get_text() for axes in fig.axes for text in axes.texts]


@pytest.mark.parametrize("subjects", [("S1",), ("S1", "S2", "S3")])
def test_floor_to_ceiling_has_a_line_a_metric_and_subject(subjects):
    fig = figures.floor_to_ceiling(frame(subjects))
    labels = [label.get_text() for label in fig.axes[0].get_yticklabels()]
    assert len(labels) == 2 * len(subjects)
    assert ("SSIM" in labels) == (len(subjects) == 1)
    # Floor 0, full method .6, ceiling .8.
    shares = [int(text.split(" ")[0]) for text in texts(fig) if text.endswith(" %")]
    assert len(shares) == len(labels) and all(68 < share < 82 for share in shares)


def test_floor_to_ceiling_without_its_ends_says_no_share():
    fig = figures.floor_to_ceiling(frame(methods=("stage1", "stage2")))
    assert texts(fig).count("–") == 2
    with pytest.raises(InputError, match="lacks the columns"):
        figures.floor_to_ceiling(frame().drop(columns="value"))


def test_corners_are_the_pictures_that_stand_there():
    x = np.array([0, 0.1, 1, 0.9, 0, 0.1, 1, 0.9, 0.5])
    y = np.array([1, 0.9, 1, 0.9, 0, 0.1, 0, 0.1, 0.5])
    found = {name: set(places.tolist()) for name, places in figures.corner_pictures(x, y).items()}
    assert found == {"A": {0, 1}, "B": {2, 3}, "C": {4, 5}, "D": {6, 7}}
    few = figures.corner_pictures(x[:4], y[:4])
    assert sorted(np.concatenate(list(few.values())).tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize(("n", "side"), [(20, 64), (5, 425), (3, 32)])
def test_failures_ring_and_name_the_corner_pictures(n, side):
    rng = np.random.default_rng(0)
    truth, made = rng.integers(0, 256, (2, n, side, side, 3), dtype=np.uint8)
    clip, pcc = rng.random((2, n))
    labels = [f"id{i}" for i in range(n)]
    fig = figures.failures(truth, made, clip, pcc, labels)
    scatter = fig.axes[0]
    named = [text.get_text() for text in scatter.texts]
    assert len(named) == len(set(named)) == min(8, 4 * max(1, n // 4), n)
    corners = [axes for axes in fig.axes[1:] if axes.axison]
    shown = [label.get_text() for axes in corners for label in axes.get_xticklabels()]
    assert len(set(shown)) == len(named) and all(text.split(": ")[1] in labels for text in shown)
    with pytest.raises(InputError, match="as many"):
        figures.failures(truth, made, clip[:-1], pcc, labels)


def test_overlap_figure_shows_the_methods_there_are():
    rng = np.random.default_rng(0)
    distance = rng.random(12)
    found = Overlap(np.arange(12), distance, np.zeros(12, int), rng.random(30))
    values = frame().query("metric == 'clip_judge'")
    fig = figures.overlap_figure(found, values)
    assert [text.get_text() for text in fig.legends[0].get_texts()] == [
        "training pictures", "test pictures",
        "both stages, this book's solver", "nearest training picture",
    ]  # fmt: skip
    fig = figures.overlap_figure(found, values[values["method"] == "stage2"])
    assert len(fig.legends[0].get_texts()) == 3
