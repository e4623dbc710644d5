"""Figures of chapter 04 show the numbers that they were given."""

import numpy as np
import pytest

from minddiff_utils.figures.reconstruction import film, loss_course
from minddiff_utils.io import InputError


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(64, 30), (10, 5), (1, 3), (2, 1)])
def test_loss_course_shows_the_median_and_where_stage_1_was(rng, shape):
    losses = rng.uniform(1, 9, shape)
    losses[0, 1:2] = np.nan  # not finite at one iterate
    fig = loss_course(losses, first=np.full(shape[0], 7.0))
    (median, stage1) = fig.axes[0].lines
    kept = np.isfinite(losses).any(0)
    np.testing.assert_array_equal(median.get_xdata(), np.flatnonzero(kept))
    np.testing.assert_allclose(median.get_ydata(), np.nanmedian(losses[:, kept], axis=0))
    assert set(stage1.get_ydata()) == {7.0}


def test_loss_course_needs_a_finite_loss():
    with pytest.raises(InputError, match="no loss is finite"):
        loss_course(np.full((3, 4), np.nan))


def test_film_shows_iterates_the_truth_and_the_loss(rng):
    pictures = rng.integers(0, 256, (2, 6, 8, 8, 3), dtype=np.uint8)
    truth = rng.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    losses = rng.uniform(1, 2, (2, 6))
    fig = film(pictures, [0, 2, 5], losses, truth)
    assert len(fig.axes) == 2 * 5
    titles = [axes.get_title() for axes in fig.axes[:5]]
    assert titles == ["iterate 0", "2", "5", "seen", "structure loss"]
    np.testing.assert_array_equal(fig.axes[6].images[0].get_array(), pictures[1, 2])
    np.testing.assert_array_equal(fig.axes[8].images[0].get_array(), truth[1])
    np.testing.assert_allclose(fig.axes[9].lines[0].get_ydata(), losses[1])
