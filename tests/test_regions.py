"""Decoding from single regions, and from all but one, against decoders fitted to those voxels."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from test_decoding import recording, world  # noqa: F401

from minddiff_utils.datasets import Split
from minddiff_utils.decoding import correlations, prepare_fold, voxel_weights
from minddiff_utils.features import read_features
from minddiff_utils.figures_decoding import region_loss
from minddiff_utils.regions import COARSE, region_accuracies
from minddiff_utils.ridge import RidgePath


def test_regions_tell_which_one_knows(world):  # noqa: F811
    features, _, subject = world
    table = region_accuracies(subject, features, names=("z", "c", "block_9"), n_targets=10)
    assert len(table) == 2 * 10 * (2 + 2 + 1)  # families that are there, values, sets of voxels
    means = table.groupby(["family", "voxels", "roi"]).correlation.mean()
    assert means["z", "alone", "A"] > 0.8 and means["z", "without", "B"] > 0.8
    assert means["z", "all", ""] > 0.8
    nothing = [("z", "alone", "B"), ("z", "without", "A"), ("c", "alone", "A"), ("c", "all", "")]
    assert max(abs(means[key]) for key in nothing) < 0.2


@pytest.mark.parametrize("repetitions", ["average", "keep"])
def test_they_are_decoders_fitted_to_those_voxels(world, repetitions):  # noqa: F811
    features, ids, subject = world
    split = Split("main", ids[:29:-1], ids[:30])
    subject = dataclasses.replace(subject, splits=(split,), repetitions=repetitions)
    table = region_accuracies(subject, features, names=("z",), n_targets=16)
    found = table.set_index(["voxels", "roi"]).correlation
    fold, weights = prepare_fold(subject, split), voxel_weights(subject, split)
    y, true = (
        read_features(features, "z", part).reshape(len(part), -1)
        for part in (split.train, split.test)
    )
    y = y - y.mean(0)
    stimulus = [np.flatnonzero(split.train == one)[0] for one in fold.train_id]
    for voxels, roi, mask in (("alone", "A", slice(50)), ("without", "A", slice(50, 100))):
        x = fold.train_x[:, mask] * weights[mask]
        x, test = x - x.mean(0), fold.test_x[:, mask] * weights[mask] - x.mean(0)
        penalties = np.square(weights[mask]).sum() * COARSE
        path = RidgePath(x, penalties, 3, np.array(stimulus))
        dual = path.dual(y, path.scores(y)[0].argmax(0))
        wanted = correlations(true, test @ x.T @ dual)
        np.testing.assert_allclose(found[voxels, roi], wanted, atol=1e-3)


def test_one_region_alone_gives_a_sentence_for_a_figure():
    frame = pd.DataFrame(
        {"family": ["z"], "roi": ["V1"], "voxels": ["alone"], "value": [0], "correlation": [0.5]}
    )
    fig = region_loss(frame)
    assert not fig.axes and "one region only" in fig.texts[0].get_text()
