"""The figures of chapter 01, for recordings with and without places, ceilings and sessions."""

import builders
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from minddiff_utils.datasets import Split
from minddiff_utils.datasets.miyawaki import CAPTIONS, grey_patterns
from minddiff_utils.datasets.recording import ListedStimuli
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


def test_nearest_region_hides_the_ones_behind():
    subject = make_subject(True)
    across, up, _ = figures_data.PLANES[0]
    image = figures_data._projection(subject, across, up)
    for (x, y, z), first in zip(subject.voxel_ijk, subject.roi["V1"], strict=True):
        if z == subject.voxel_ijk[(subject.voxel_ijk[:, :2] == (x, y)).all(axis=1), 2].max():
            assert image[y, x] == (0 if first else 1)
