"""Figures of chapter 02 show the numbers that they were given."""

import dataclasses

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from test_figures_data import make_subject

from minddiff_utils.figures import decoding as figures


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def accuracy_frame(rng, spaces=("embedding", "block_2", "block_10", "c", "z"), n=12):
    frame = pd.DataFrame({"feature_space": np.repeat(spaces, n), "roi": "V1"})
    return frame.assign(correlation=rng.uniform(-1, 1, len(frame)), control=False)


def y_labels(fig):
    return [label.get_text() for label in fig.axes[0].get_yticklabels()]


def test_accuracy_orders_feature_spaces_and_draws_their_median_reliability(rng):
    frame = accuracy_frame(rng)
    frame.loc[3, "correlation"] = np.nan
    fig = figures.accuracy_and_reliability(frame, {"z": np.full(16, np.nan), "c": [0.5, 0.9]})
    axes = fig.axes[0]
    assert y_labels(fig) == ["z", "c", "block 2", "block 10", "embedding"]
    assert axes.get_xlabel() == "correlation on test images"
    (line,) = [line for line in axes.lines if line.get_label() == figures.RELIABILITY]
    np.testing.assert_allclose([*line.get_xdata(), line.get_ydata().mean()], [0.7, 0.7, 1])


@pytest.mark.parametrize("rois", [["V1"], ["V1", "V2", "hV4", "LO"]])
def test_roi_accuracy(rng, rois):
    frame = pd.concat([accuracy_frame(rng).assign(roi=roi) for roi in rois])
    frame.loc[(frame["feature_space"] == "c") & (frame["roi"] == rois[0]), "correlation"] = np.nan
    fig = figures.roi_accuracy(frame)
    assert [label.get_text() for label in fig.axes[0].get_xticklabels()] == rois
    assert y_labels(fig)[:2] == ["z", "c"]
    cell = frame.query("feature_space == 'z' and roi == @rois[0]")["correlation"].mean()
    shown = fig.axes[0].collections[0].get_array()
    assert shown[0, 0] == pytest.approx(cell) and shown.mask[1, 0]


def test_patterns_are_drawn_or_it_is_said_why_not(tmp_path):
    rows = [("z", "V1", 1), ("c", "V1", 2), ("z", "V2", 3), ("c", "V2", 4)]
    table = pd.DataFrame(rows, columns=["feature_space", "roi", "density"])
    fig = figures.pattern_density(table)
    assert y_labels(fig) == ["V1", "V2"]
    assert [line.get_xdata().tolist() for line in fig.axes[0].lines[:2]] == [[1, 3], [2, 4]]
    subject = make_subject(places=True)
    share = {"z": np.linspace(0, 0.02, 30), "c": np.full(30, 0.01)}
    assert len(figures.pattern_maps(subject, share).axes) == 3  # two maps and their scale
    nib.save(nib.Nifti1Image(np.ones((4, 5, 6), np.float32), np.eye(4)), tmp_path / "t1.nii")
    fig = figures.pattern_maps(subject, share, tmp_path / "t1.nii")
    assert len([axes for axes in fig.axes if axes.images]) > 4  # slices
    subject = dataclasses.replace(subject, voxel_ijk=None)
    assert "Not known" in figures.pattern_maps(subject, share).axes[0].texts[0].get_text()
