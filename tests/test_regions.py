"""Decoding from single regions, and from all but one, against decoders fitted to those voxels."""

import dataclasses

import numpy as np
import pytest

from minddiff_utils.datasets import Split, prepare_fold
from minddiff_utils.datasets.subject import EARLY_AREAS, HIGHER_AREAS, describe_areas, is_early
from minddiff_utils.decoding.decode import correlations, training_folds, voxel_weights
from minddiff_utils.decoding.features import read_values
from minddiff_utils.decoding.ridge import CrossValidatedRidge
from minddiff_utils.evaluation import decoding
from minddiff_utils.evaluation.decoding import area_contrasts, decode_regions, region_accuracies


def test_regions_tell_which_one_knows(world, monkeypatch):
    monkeypatch.setattr(decoding, "N_VALUES", 10)
    monkeypatch.setattr(decoding, "CONTRASTS", (("z", "c"), ("block_8", "block_9")))
    features, _, subject = world
    found = decode_regions(subject, features)
    table = region_accuracies(found)
    assert len(table) == 2 * 10 * 5  # feature spaces that are there, values, sets of voxels
    means = table.groupby(["feature_space", "voxels", "roi"]).correlation.mean()
    assert means["z", "alone", "A"] > 0.8 and means["z", "without", "B"] > 0.8
    assert means["z", "all", ""] > 0.8
    nothing = [("z", "alone", "B"), ("z", "without", "A"), ("c", "alone", "A"), ("c", "all", "")]
    assert max(abs(means[key]) for key in nothing) < 0.2


@pytest.mark.parametrize("repetitions", ["average", "keep"])
def test_they_are_decoders_fitted_to_those_voxels(world, repetitions):
    features, ids, subject = world
    split = Split("main", ids[:29:-1], ids[:30])
    subject = dataclasses.replace(subject, splits=(split,), repetitions=repetitions)
    table = region_accuracies(decode_regions(subject, features))
    found = table[table.feature_space == "z"].set_index(["voxels", "roi"]).correlation
    fold, weights = prepare_fold(subject, split), voxel_weights(subject, split)
    y, true = (read_values(features, "z", part) for part in (split.train, split.test))
    stimulus = [np.flatnonzero(split.train == one)[0] for one in fold.train_id]
    for voxels, roi, mask in (("alone", "A", slice(50)), ("without", "A", slice(50, 100))):
        x = fold.train_x[:, mask] * weights[mask]
        x, test = x - x.mean(0), fold.test_x[:, mask] * weights[mask] - x.mean(0)
        penalties = np.square(weights[mask]).sum() * decoding.COARSE
        folds = training_folds(subject, split.train, decoding.N_FOLDS)
        ridge = CrossValidatedRidge(penalties, folds, np.array(stimulus)).fit(x, y)
        wanted = correlations(true, ridge.predict(test))
        np.testing.assert_allclose(found[voxels, roi], wanted, atol=1e-3)


# --- early and higher areas -----------------------------------------------------------------------

FIRST = "V1 V2v v3d VP early ROI_V1 lh.V1 L_V1_ROI V1_exvivo LHEarlyVis RHV2 streams:early right-V3"
NEXT = "V3A V3ab hV4 V4 V4v lh.V3B L_V4_ROI ROI_V4"
LATER = "V10 V4t L_V3CD_ROI L_V6_ROI VO1 ROI_LOC LO2 IPS0 MT RHLOC FFA midventral nsdgeneral VPL a"


def test_areas_are_known_by_the_names_that_atlases_give_them():
    assert all(is_early(name, narrow=True) for name in [*FIRST.split(), "laion-EVC"])
    assert all(is_early(name) and not is_early(name, narrow=True) for name in NEXT.split())
    assert not any(is_early(name) for name in [*LATER.split(), "laion-lateral"])
    told = describe_areas(dict.fromkeys(["lh.V1", "LO", "V4"]))
    assert told == "early areas: lh.V1, V4; higher areas: LO"


def known(noise, n=300, seed=0):
    """Two values, and what two areas of each kind make of them: truth with the given noise."""
    rng = np.random.default_rng(seed)
    true = rng.standard_normal((n, 2))
    decoded = {k: true + loud * rng.standard_normal((n, 2)) for k, loud in noise.items()}
    names, areas = np.array(["z", "c"]), ("V1", "hV4", "LO", "IPS")
    return decoding.RegionDecoding(true, names, np.zeros(2, int), areas, decoded)


EARLY_NOISE, HIGHER_NOISE = (0.2, 2.0), (2.0, 0.2)
LAYOUT = {
    ("", "all"): (0.2, 0.2),
    **dict.fromkeys([("V1", "alone"), ("hV4", "alone"), (EARLY_AREAS, "alone")], EARLY_NOISE),
    **dict.fromkeys([("LO", "alone"), ("IPS", "alone"), (HIGHER_AREAS, "alone")], HIGHER_NOISE),
    **dict.fromkeys([("V1", "without"), ("hV4", "without")], (0.5, 0.2)),
    **dict.fromkeys([("LO", "without"), ("IPS", "without")], (0.2, 0.5)),
    (EARLY_AREAS, "without"): HIGHER_NOISE,
    (HIGHER_AREAS, "without"): EARLY_NOISE,
}


def test_contrast_finds_what_each_kind_of_area_knows():
    table = area_contrasts(known(LAYOUT), 100)
    assert list(table.index) == [(m, "z - c") for m in ("alone", "without", "without all")]
    assert table.holds.all() and (table.low < table.difference).all()
    r = 1 / np.sqrt(1 + np.square([0.2, 2.0]))
    np.testing.assert_allclose(table.early["alone", "z - c"], r[0] - r[1], atol=0.08)
    np.testing.assert_allclose(table.higher["alone", "z - c"], r[1] - r[0], atol=0.08)


def test_contrast_does_not_hold_where_areas_know_the_same():
    table = area_contrasts(known(dict.fromkeys(LAYOUT, (1.0, 1.0))), 100)
    assert not table.holds.any() and (table.low < 0).all() and (table.high > 0).all()


def test_contrast_needs_both_kinds_of_areas(world):
    features, _, subject = world
    assert area_contrasts(decode_regions(subject, features)).empty
