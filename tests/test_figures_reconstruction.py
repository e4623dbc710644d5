"""Figures of pictures and of stage 2 show the pictures and numbers that they were given."""

import numpy as np
import pytest
from builders import refuses

from minddiff_utils.figures import reconstruction as figures


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def pictures(rng, *shape, side=16):
    return rng.integers(0, 256, (*shape, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize(("n", "columns", "bands"), [(8, 8, 1), (10, 10, 1), (20, 8, 3), (1, 5, 1)])
def test_picture_grid(rng, n, columns, bands):
    rows = {name: pictures(rng, n) for name in ("seen", "stage 1", "stage 2")}
    fig = figures.picture_grid(rows, columns, [f"#{i}" for i in range(n)])
    assert len(fig.axes) == bands
    labels = [label.get_text() for label in fig.axes[0].get_yticklabels()]
    assert labels == ["seen", "stage 1", "stage 2"]
    above = [label.get_text() for axes in fig.axes for label in axes.get_xticklabels()]
    assert above == [f"#{i}" for i in range(n)]


def test_picture_grid_shows_every_pixel_sharp(rng):
    seen, made = pictures(rng, 2, 2, side=64)
    fig = figures.picture_grid({"seen": seen, "made": made})
    shown = fig.axes[0].images[0].get_array()
    zoom = shown.shape[0] // 128
    last = shown[-64 * zoom :: zoom, -64 * zoom :: zoom]
    np.testing.assert_array_equal(shown[: 64 * zoom : zoom, : 64 * zoom : zoom], seen[0])
    np.testing.assert_array_equal(last, made[1])
    box = fig.axes[0].get_window_extent()
    assert box.height == pytest.approx(shown.shape[0])  # one screen pixel for each of the mosaic
    assert box.width == pytest.approx(shown.shape[1])


def test_picture_grid_names_rows_that_do_not_fit(rng):
    for rows in ({"seen": pictures(rng, 3), "stage 1": pictures(rng, 4)}, {}):
        refuses("same pictures", figures.picture_grid, rows)


@pytest.mark.parametrize("shape", [(64, 30), (10, 5), (1, 3)])
def test_loss_course_shows_the_median_the_spread_and_where_stage_1_was(rng, shape):
    losses = rng.uniform(1, 9, shape)
    losses[0, 1] = np.nan  # not finite at one iterate
    fig = figures.loss_course(losses, first=np.full(shape[0], 7.0))
    kept = np.isfinite(losses).any(0)
    median, stage1 = fig.axes[0].lines[-2:]
    np.testing.assert_array_equal(median.get_xdata(), np.flatnonzero(kept))
    np.testing.assert_allclose(median.get_ydata(), np.nanmedian(losses[:, kept], axis=0))
    assert set(stage1.get_ydata()) == {7.0}
    bands = fig.axes[0].collections if shape[0] > 1 else ()
    for band, share in zip(bands, (90, 50), strict=shape[0] > 1):
        low = np.nanpercentile(losses[:, kept], 50 - share / 2, axis=0)
        assert band.get_datalim(fig.axes[0].transData).y0 == pytest.approx(low.min())


def test_iterates_are_shown_with_the_truth_and_the_loss(rng):
    made, truth = pictures(rng, 2, 6, side=8), pictures(rng, 2, side=8)
    losses = rng.uniform(1, 2, (2, 6))
    fig = figures.iterate_rows(made, [0, 2, 5], losses, truth)
    titles = [axes.get_title() for axes in fig.axes[:5]]
    assert titles == ["iterate 0", "2", "5", "seen", "structure loss"]
    np.testing.assert_array_equal(fig.axes[6].images[0].get_array(), made[1, 2])
    np.testing.assert_array_equal(fig.axes[8].images[0].get_array(), truth[1])
    np.testing.assert_allclose(fig.axes[9].lines[0].get_ydata(), losses[1])
