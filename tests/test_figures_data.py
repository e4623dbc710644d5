"""The figures of chapter 01, for recordings with and without places, ceilings and sessions."""

import dataclasses

import builders
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from minddiff_utils.datasets import Split
from minddiff_utils.datasets.miyawaki import CAPTIONS, grey_patterns
from minddiff_utils.datasets.recording import ListedStimuli
from minddiff_utils.figures import cortex
from minddiff_utils.figures import data as figures_data


def make_subject(places):
    rng = np.random.default_rng(0)
    stimulus = np.tile(np.arange(10), 4)
    n_voxels = 30
    ijk = rng.permutation(np.argwhere(np.ones((4, 5, 6))))[:n_voxels]
    known = {"voxel_ijk": ijk, "volume_shape": (4, 5, 6), "affine": np.eye(4)}
    known["ncsnr"] = rng.random(n_voxels).astype(np.float32)
    known["roi"] = {"V1": np.arange(n_voxels) < 20, "V2": np.arange(n_voxels) >= 20}
    grey = grey_patterns(rng.random((10, 10, 10)) < 0.5)
    stimuli = ListedStimuli(np.arange(10), [*CAPTIONS.values()], grey.__getitem__)
    more = {"session": np.repeat([1, 2], 20), "stimuli": stimuli, **(known if places else {})}
    split = Split("x", np.arange(9), np.arange(9, 10))
    return builders.make_subject(rng.normal(size=(40, n_voxels)), stimulus, [split], **more)


@pytest.mark.parametrize("places", [True, False])
def test_every_figure_is_drawn_and_let_go(places):
    subject = make_subject(places)
    figures = [
        figures_data.pictures_with_captions(subject, figures_data.example_ids(subject, 5)),
        figures_data.trial_raster(subject),
        figures_data.roi_voxels(subject),
        figures_data.ceiling_by_roi(subject, 4),
        figures_data.voxel_responses(subject, figures_data.clearest_voxel(subject)),
    ]
    assert all(isinstance(figure, Figure) for figure in figures)
    assert not plt.get_fignums()


@pytest.mark.parametrize("flipped", [False, True])
def test_the_back_of_the_head_is_the_middle_of_the_flat_map(flipped):
    """Whichever way the volume is stored: left stays left, what lies above stays above."""
    subject = make_subject(True)
    mirror = np.diag([-1.0, -1, 1, 1]) if flipped else np.eye(4)
    places = cortex.flat_places(dataclasses.replace(subject, affine=mirror))
    centred = (subject.voxel_ijk - [1.5, 2, 2.5]) / [2, 2.5, 3] * np.diag(mirror)[:3]
    angle = np.degrees(np.arccos(-centred[:, 1] / np.linalg.norm(centred, axis=1)))
    sides = np.sign(centred[:, 0])
    np.testing.assert_allclose(np.hypot(places[:, 0] - sides * cortex.GAP / 2, places[:, 1]), angle)
    np.testing.assert_array_equal(np.sign(places), np.sign(centred[:, [0, 2]]))


def test_flat_maps_share_a_scale_or_say_why_there_are_none():
    subject = make_subject(True)
    fig = cortex.flat_maps(subject, {"a": np.full(30, 2.0), "b": np.arange(30.0)}, "x, %")
    maps = [axes.images[0] for axes in fig.axes[:2]]
    assert maps[0].get_clim() == maps[1].get_clim() and maps[1].get_clim()[0] == 0
    assert {*np.unique(maps[0].get_array().compressed())} == {2.0}
    assert fig.axes[2].get_ylabel() == "x, %"
    named = [text.get_text() for text in fig.axes[0].texts]
    assert {"V1", "V2", "left hemisphere", "right hemisphere"} == {*named}
    nothing = cortex.flat_maps(make_subject(False), {"a": np.arange(30.0)}, "x")
    assert "Not known" in nothing.axes[0].texts[0].get_text()
