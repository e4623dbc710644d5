"""Chance over many permutations of the responses, on recordings whose answer is known."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from minddiff_utils.datasets import prepare_fold
from minddiff_utils.decoding.decode import correlations, training_design
from minddiff_utils.decoding.decoders import Method, fit_decoders
from minddiff_utils.decoding.features import read_values
from minddiff_utils.evaluation.decoding import chance_accuracies, chance_interval
from minddiff_utils.evaluation.statistics import shuffled_rows

METHODS = {"ridge": Method(target_components=0)}
METHODS["paper"] = Method(decoder="voxel_selected", n_voxels_z=20, n_voxels_c=20)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_it_is_the_decoder_of_features_in_the_wrong_order(world, method):
    features, ids, subject = world
    half = np.arange(subject.responses.shape[1]) % 2 == 0
    subject = dataclasses.replace(subject, roi={"V1": half, "VO": ~half})
    found = chance_accuracies(subject, features, method, n_permutations=2)
    found = found.set_index(["feature_space", "permutation"]).correlation
    split = subject.splits[0]
    fold = prepare_fold(subject, split)
    design = training_design(subject, split, fold, method)
    rng = np.random.default_rng([0, 0])
    orders = [shuffled_rows(len(split.train), rng) for _ in range(2)]
    for space, permutation in itertools.product(("z", "c"), range(2)):
        y, true = (read_values(features, space, part) for part in (split.train, split.test))
        decoder = fit_decoders(design, y[orders[permutation]], space, method)[0]
        wanted = np.nanmean(correlations(true, decoder.predict(fold.test_x)))
        assert found[space, permutation] == pytest.approx(wanted, abs=1e-3)


def test_interval_is_students_over_permutations_for_all_feature_spaces_together():
    rng = np.random.default_rng(0)
    values = {"z": rng.standard_normal(8), "c": 5 + rng.standard_normal(8)}
    frame = pd.DataFrame(values).melt(var_name="feature_space", value_name="correlation")
    table = chance_interval(frame, {"z": 0.1, "c": 0.2})
    for name, part in values.items():
        wanted = stats.ttest_1samp(part, 0).confidence_interval(0.975)
        np.testing.assert_allclose(table.loc[name, ["low", "high"]].astype(float), wanted)
    assert table.at_chance.to_dict() == {"z": True, "c": False}
