"""Figures of the evaluation: what they show, and that nothing is left behind."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from builders import refuses

from minddiff_utils.evaluation.tables import differences, summary
from minddiff_utils.figures import evaluation as figures
from minddiff_utils.figures import style

METRICS = ["clip_judge", "clip_guide", "ssim", "pcc"]


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """No figure stays open in pyplot, and no setting stays changed."""
    before = dict(mpl.rcParams)
    yield
    assert plt.get_fignums() == []
    assert dict(mpl.rcParams) == before


def frame(subjects=("S1",), methods=("stage1", "stage2", "no_z", "mean"), metrics=METRICS, n=12):
    names = ["subject", "method", "stimulus_id", "metric"]
    index = pd.MultiIndex.from_product([subjects, methods, range(n), metrics], names=names)
    values = 0.05 * np.random.default_rng(0).normal(size=len(index))
    values += 0.2 * index.get_level_values("method").map(methods.index)
    return pd.DataFrame({"value": values}, index).reset_index()


def texts(fig):
    return [text.get_text() for axes in fig.axes for text in axes.texts]


def rows_of(axes):
    return [label.get_text().replace("\n", " ") for label in axes.get_yticklabels()]


def drawn(axes):
    """The means of a panel, and the intervals, from its first row on."""
    dots = [line for line in axes.lines if line.get_linestyle() == "None"]
    bars = [line.get_xdata() for line in axes.lines if line.get_linestyle() != "None"]
    return dots[0].get_xdata(), [ends for ends in bars if ends[0] != ends[1]]


def test_metric_points_draw_the_means_and_intervals_of_the_table():
    values = frame()
    values.loc[(values["metric"] == "pcc") & (values["stimulus_id"] == 0), "value"] = np.nan
    fig = figures.metric_points(values)
    titles = [axes.get_title(loc="left") for axes in fig.axes]
    assert titles == ["CLIP (judge)", "CLIP (guide)", "SSIM", "PCC"]
    methods = ["no_z", "stage1", "stage2", "mean"]
    solver = "both stages, this book's solver"
    assert rows_of(fig.axes[0]) == ["no z", "no stage 2", solver, "mean image"]
    assert fig.axes[2].get_xlabel().split() == "value, with mean and interval".split()
    table = summary(values).set_index(["metric", "method"])
    for metric, axes in zip(METRICS, fig.axes, strict=True):
        expected = table.loc[[(metric, name) for name in methods]]
        means, intervals = drawn(axes)
        np.testing.assert_allclose(means, expected["mean"])
        np.testing.assert_allclose(intervals, expected[["low", "high"]])


@pytest.mark.parametrize("subjects", [("S1",), ("subj01", "subj02"), tuple("abcdefgh")])
@pytest.mark.parametrize("function", [figures.paired_differences, figures.metric_points])
def test_subjects_are_told_apart(function, subjects):
    fig = function(frame(subjects, metrics=["ssim", "pcc", "clip_judge"]))
    named = [t.get_text() for legend in fig.legends for t in legend.get_texts()]
    assert named == (list(subjects) if len(subjects) > 1 else [])
    assert fig.get_figwidth() == style.WIDTH and len(fig.axes) == 3


def test_paired_differences_draw_the_pairs_there_are_as_the_table_has_them():
    values = frame()
    fig = figures.paired_differences(values)
    assert rows_of(fig.axes[0]) == ["both stages − stage 1", "both stages − no z"]
    table = differences(values).query("metric == 'ssim'")
    means, intervals = drawn(fig.axes[2])
    np.testing.assert_allclose(means, table["mean"])
    np.testing.assert_allclose(intervals, table[["low", "high"]])
    published = figures.paired_differences(frame(methods=("stage1", "algorithm_1")))
    assert rows_of(published.axes[0]) == ["Algorithm 1 − stage 1"]
    refuses("None of the pairs", figures.paired_differences, frame(methods=("stage1", "mean")))


@pytest.mark.parametrize("subjects", [("S1",), ("S1", "S2", "S3")])
def test_floor_to_ceiling_has_a_line_a_metric_and_subject(subjects):
    methods = ("shuffled", "retrieval", "stage1", "stage2", "ceiling")
    fig = figures.floor_to_ceiling(frame(subjects, methods, ["clip_judge", "ssim"]))
    labels = rows_of(fig.axes[0])
    assert len(labels) == 2 * len(subjects)
    assert ("SSIM" in labels) == (len(subjects) == 1)
    # Floor 0, full method .6, ceiling .8.
    shares = [int(text.split(" ")[0]) for text in texts(fig) if text.endswith(" %")]
    assert len(shares) == len(labels) and all(68 < share < 82 for share in shares)


def test_floor_to_ceiling_without_its_ends_says_no_share():
    fig = figures.floor_to_ceiling(frame(metrics=["ssim", "pcc"]).query("method != 'mean'"))
    assert texts(fig).count("–") == 2


def test_score_curves_draw_means_intervals_floor_and_ceiling():
    run = frame(methods=("mean", "prior", "ceiling", "stage1"), metrics=["pcc", "ssim"])
    sizes = {"mean": 1, "prior": 10, "stage1": 500, "ceiling": 0}
    curve = run.assign(method=run["method"].map(sizes)).query("stimulus_id % 2 == 0 and method > 0")
    fig = figures.score_curves(curve, run, "components (count)")
    same = run[run["stimulus_id"] % 2 == 0].groupby(["metric", "method"])["value"].mean()
    table = summary(curve).set_index(["metric", "method"])
    for metric, axes in zip(["ssim", "pcc"], fig.axes, strict=True):
        expected = table.loc[metric]
        drawn_means = axes.lines[0].get_xydata()
        np.testing.assert_allclose(drawn_means, expected.reset_index()[["method", "mean"]])
        bars = np.array([ends[:, 1] for ends in axes.collections[0].get_segments()])
        np.testing.assert_allclose(bars, expected[["low", "high"]])
        levels = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"]
        np.testing.assert_allclose(levels, same[metric][["prior", "ceiling"]])
        assert axes.get_xscale() == "log"
        assert [t.get_text() for t in axes.get_xticklabels()] == ["1", "10", "all\n500"]
    assert [len(legend.get_texts()) for legend in fig.legends] == [2]
    alone = figures.score_curves(curve, run[run["method"] == "stage1"], "components (count)")
    assert alone.legends == [] or not alone.legends[0].get_texts()


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
    (scatter,) = [axes for axes in fig.axes if axes.texts]
    named = [text.get_text() for text in scatter.texts]
    assert len(named) == len(set(named)) == min(8, 4 * max(1, n // 4), n)
    corners = [axes for axes in fig.axes if axes.images]
    shown = [label.get_text() for axes in corners for label in axes.get_xticklabels()]
    assert len(set(shown)) == len(named) and all(text.split(": ")[1] in labels for text in shown)
