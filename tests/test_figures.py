"""Figures: the right panels and labels, on little data, few subjects and missing values."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from minddiff_utils.figures import common as figures
from minddiff_utils.io import InputError

RNG_SEED = 0
METRICS = ["clip_judge", "clip_guide", "ssim", "pcc"]


@pytest.fixture
def rng():
    return np.random.default_rng(RNG_SEED)


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """No figure stays open in pyplot, and no setting stays changed."""
    before = dict(mpl.rcParams)
    yield
    assert plt.get_fignums() == []
    assert dict(mpl.rcParams) == before


def pictures(rng, *shape, side=16):
    return rng.integers(0, 256, (*shape, side, side, 3), dtype=np.uint8)


def metric_frame(rng, n=10, subjects=("S1",), methods=("stage1", "stage2", "no_z", "mean")):
    index = pd.MultiIndex.from_product(
        [subjects, methods, range(n), METRICS], names=["subject", "method", "stimulus_id", "metric"]
    )
    return pd.DataFrame({"value": rng.uniform(0, 1, len(index))}, index).reset_index()


def texts(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


# --- pictures ---


@pytest.mark.parametrize(
    ("n", "columns", "bands"), [(8, None, 1), (10, 10, 1), (20, 8, 3), (1, 5, 1)]
)
def test_picture_grid(rng, n, columns, bands):
    rows = {name: pictures(rng, n) for name in ("seen", "stage 1", "stage 2")}
    fig = figures.picture_grid(rows, columns, [f"#{i}" for i in range(n)])
    assert isinstance(fig, Figure)
    assert len(fig.axes) == bands
    assert texts(fig.axes[0]) == ["seen", "stage 1", "stage 2"]
    above = [label.get_text() for axes in fig.axes for label in axes.get_xticklabels()]
    assert above == [f"#{i}" for i in range(n)]


def test_picture_grid_shows_every_pixel_sharp(rng):
    seen = pictures(rng, 2, side=64)
    fig = figures.picture_grid({"seen": seen})
    shown = fig.axes[0].images[0].get_array()
    zoom = round(shown.shape[0] / 64)
    np.testing.assert_array_equal(shown[: 64 * zoom : zoom, : 64 * zoom : zoom], seen[0])
    box = fig.axes[0].get_window_extent()
    assert box.height == pytest.approx(shown.shape[0])  # one screen pixel for each of the mosaic
    assert box.width == pytest.approx(shown.shape[1])


def test_picture_grid_shrinks_large_pictures_to_the_page(rng):
    fig = figures.picture_grid({"seen": pictures(rng, 8, side=300)})
    assert fig.get_figwidth() <= figures.WIDTH * 1.05


def test_picture_grid_names_rows_that_do_not_fit(rng):
    with pytest.raises(InputError, match="same pictures"):
        figures.picture_grid({"seen": pictures(rng, 3), "stage 1": pictures(rng, 4)})
    with pytest.raises(InputError, match="same pictures"):
        figures.picture_grid({})


def test_noising_steps(rng):
    fig = figures.noising_steps(pictures(rng, 1, 3), ["decoded z", "noised", "denoised"])
    assert len(fig.axes[0].get_xticklabels()) == 3


def test_decoded_latents(rng):
    true = rng.normal(size=(2, 4, 16, 16))
    fig = figures.decoded_latents(true, true / 2, ["first", "second"])
    assert texts(fig.axes[0]) == ["first", "second"]
    assert len(fig.axes[0].get_xticklabels()) == 8
    assert fig.axes[1].get_xlabel() == "latent value (SD)"


# --- decoding ---


def accuracy_frame(rng, families=("embedding", "block_2", "block_10", "c", "z"), n=12):
    frame = pd.DataFrame({"family": np.repeat(families, n), "roi": "V1"})
    frame["correlation"] = rng.uniform(-1, 1, len(frame))
    return frame


def test_accuracy_distribution_orders_families(rng):
    frame = accuracy_frame(rng)
    frame.loc[3, "correlation"] = np.nan
    fig = figures.accuracy_distribution(frame)
    labels = [label.get_text() for label in fig.axes[0].get_xticklabels()]
    assert labels == ["z", "c", "block 2", "block 10", "embedding"]
    assert fig.axes[0].get_ylabel() == "correlation on test pictures"
    assert not fig.legends


def test_accuracy_distribution_with_control_and_odd_families(rng):
    frame = accuracy_frame(rng, ("z", "flat", "empty", "single"))
    frame.loc[frame["family"] == "flat", "correlation"] = 0.2
    frame.loc[frame["family"] == "empty", "correlation"] = np.nan
    frame = frame.drop(frame.index[frame["family"] == "single"][1:])
    frame = pd.concat([frame.assign(control=False), frame.assign(control=True)], ignore_index=True)
    fig = figures.accuracy_distribution(frame)
    assert [t.get_text() for t in fig.legends[0].get_texts()] == [
        "decoded from the brain",
        "shuffled training responses",
    ]


@pytest.mark.parametrize("rois", [["V1"], ["V1", "V2", "hV4", "LO"]])
def test_roi_accuracy(rng, rois):
    frame = pd.concat([accuracy_frame(rng).assign(roi=roi) for roi in rois])
    frame.loc[(frame["family"] == "c") & (frame["roi"] == rois[0]), "correlation"] = np.nan
    fig = figures.roi_accuracy(frame)
    assert [label.get_text() for label in fig.axes[0].get_xticklabels()] == rois
    assert texts(fig.axes[0])[:2] == ["z", "c"]
    cell = frame.query("family == 'z' and roi == @rois[0]")["correlation"].mean()
    shown = np.asarray(fig.axes[0].images[0].get_array(), dtype=float)
    assert shown[0, 0] == pytest.approx(cell)
    assert "–" in [text.get_text() for text in fig.axes[0].texts]


def test_missing_columns_are_named(rng):
    with pytest.raises(InputError, match="correlation"):
        figures.accuracy_distribution(pd.DataFrame({"family": ["z"]}))
    with pytest.raises(InputError, match="is empty"):
        figures.roi_accuracy(accuracy_frame(rng)[:0])


# --- stage 2 ---


def test_component_reliability_counts_what_is_used_and_averages_far_ranks():
    reliability = {"block_1": np.array([0.9, 0.5, 0.1, -0.2, np.nan]), "block_2": np.full(100, 0.3)}
    fig = figures.component_reliability(reliability, 0.02, 0.8)
    labels = [text.get_text() for text in fig.legends[0].get_texts()]
    assert [label.split(": ")[1] for label in labels] == ["3 of 4", "100 of 100"]
    line = fig.axes[0].get_lines()[0]
    np.testing.assert_allclose(line.get_ydata()[:2], [0.9, 0.5])
    np.testing.assert_allclose(fig.axes[0].get_lines()[1].get_ydata(), 0.3)
    with pytest.raises(InputError, match="at least one block"):
        figures.component_reliability({}, 0.02, 0.8)


def test_layer_contributions(rng):
    before, after = rng.uniform(1, 2, (10, 3)), rng.uniform(0, 1, (10, 3))
    before[0] = np.nan
    fig = figures.layer_contributions(before, after, ["block_1", "block_2", "embedding"])
    labels = [label.get_text() for label in fig.axes[0].get_xticklabels()]
    assert labels == ["block 1", "block 2", "embedding"]
    heights = [bar.get_height() for bar in fig.axes[0].patches]
    np.testing.assert_allclose(heights, [*np.nanmean(before, axis=0), *after.mean(axis=0)])
    assert figures.layer_contributions(before[1:2], after[1:2]).axes
    with pytest.raises(InputError, match="differ in shape"):
        figures.layer_contributions(before, after[:, :2])


# --- metrics ---


@pytest.mark.parametrize("n", [10, 64])
def test_metric_points(rng, n):
    frame = metric_frame(rng, n)
    frame.loc[(frame["metric"] == "pcc") & (frame["stimulus_id"] == 0), "value"] = np.nan
    fig = figures.metric_points(frame)
    assert [axes.get_title(loc="left") for axes in fig.axes] == [
        "CLIP (judge)", "CLIP (guide)", "SSIM", "PCC",
    ]  # fmt: skip
    assert texts(fig.axes[0]) == [
        "no z",
        "no stage 2",
        "both stages, this book's solver",
        "mean picture",
    ]


def test_metric_points_of_one_picture_and_one_metric(rng):
    frame = metric_frame(rng, n=1)
    fig = figures.metric_points(frame[frame["metric"] == "ssim"])
    assert len(fig.axes) == 1


def test_figures_leave_unused_panels_blank(rng):
    frame = metric_frame(rng)
    fig = figures.metric_points(frame[frame["metric"] != "pcc"])
    assert [axes.get_visible() for axes in fig.axes] == [True, True, True, False]


@pytest.mark.parametrize("subjects", [("S1",), ("subj01", "subj02"), tuple("abcdefghij")])
def test_subjects_are_told_apart(rng, subjects):
    frame = metric_frame(rng, subjects=subjects)
    for function in (figures.paired_differences, figures.subject_comparison):
        fig = function(frame)
        named = [t.get_text() for legend in fig.legends for t in legend.get_texts()]
        assert named == (list(subjects) if len(subjects) > 1 else [])
    assert "no stage 2" in texts(fig.axes[0])


def test_paired_differences_show_the_pairs_there_are(rng):
    fig = figures.paired_differences(metric_frame(rng))
    assert texts(fig.axes[0]) == ["both stages − stage 1", "both stages − no z"]
    assert figures.paired_differences(metric_frame(rng).drop(columns="subject")).axes
    with pytest.raises(InputError, match="None of the pairs"):
        figures.paired_differences(metric_frame(rng, methods=("stage1", "mean")))


def test_permutation_null_states_p(rng):
    null = rng.normal(size=999)
    fig = figures.permutation_null(null, 9.0, "mean cosine")
    assert fig.axes[0].get_title(loc="left") == "p\xa0=\xa00.001"
    assert fig.axes[0].get_xlabel() == "mean cosine"
    fig = figures.permutation_null(null, np.sort(null)[499], "mean cosine")
    assert fig.axes[0].get_title(loc="left") == "p\xa0=\xa00.501"


def test_a_figure_can_be_saved_after_its_style_has_ended(rng, tmp_path):
    path = tmp_path / "figure.png"
    figures.metric_points(metric_frame(rng)).savefig(path)
    assert plt.imread(path).shape[1] == figures.WIDTH * figures.DPI
