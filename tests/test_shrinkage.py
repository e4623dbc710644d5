"""Stretching decoded `z`: both stages are compared, from the very `z` that was stretched."""

import numpy as np
import pytest
import torch
from test_decoding import recording, world  # noqa: F401
from test_reconstruction import decoded

from minddiff_utils.decoding.decode import decode_subject, read_decoded
from minddiff_utils.evaluation.metrics import evaluate
from minddiff_utils.models.stable_diffusion import load_generator, noise_like, to_pictures
from minddiff_utils.reconstruction.results import read_pictures
from minddiff_utils.reconstruction.stage1 import stage1
from minddiff_utils.reconstruction.stage2 import reconstruct
from minddiff_utils.settings import Settings
from studies.shrinkage import CHOICES, compare_rescaling, decode_choices

SETTINGS = Settings(n_steps=3, strength=0.7, structure_target="values", z_evidence_weight=0.0)


@pytest.fixture(scope="module")
def generator(tiny_models):
    return load_generator(tiny_models, "cpu")


def compared(generator, folder):
    arrays = decoded(generator, 2)
    true_z, ids = arrays["z"], arrays["stimulus_id"]
    truth = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    choices = {"none": {**arrays, "z": true_z / 2}, "global": arrays}
    table = compare_rescaling(generator, choices, true_z, truth, {}, SETTINGS, folder, seed=4)
    return table.set_index(["stage", "rescale"]), arrays, true_z, truth, ids


def test_both_stages_are_painted_from_each_choice(generator, tmp_path):
    table, arrays, true_z, truth, ids = compared(generator, tmp_path)
    assert sorted(table.index) == [
        (f"stage {i}", how) for i in (1, 2) for how in ("global", "none")
    ]
    z, c = torch.from_numpy(true_z), torch.from_numpy(arrays["c"])
    painted = {"stage 1": to_pictures(stage1(generator, z, c, noise_like(z, 4, ids), SETTINGS))}
    reconstruct(generator, arrays, SETTINGS, tmp_path / "alone.h5", seed=4, n_films=0)
    painted["stage 2"] = read_pictures(tmp_path / "alone.h5")
    wanted = evaluate(truth, painted, ids, {}).groupby(["method", "metric"]).value.mean()
    for stage in painted:
        for metric in ("pcc", "ssim"):
            found = table.loc[(stage, "global")]
            assert found[metric] == pytest.approx(wanted[stage, metric], abs=1e-6)
            gain = found[metric] - table.loc[(stage, "none"), metric]
            assert found[f"{metric}_gain"] == pytest.approx(gain)
            assert table.loc[(stage, "none"), f"{metric}_gain"] == 0


def test_spread_and_error_are_those_of_z(generator, tmp_path):
    table, _, true_z, *_ = compared(generator, tmp_path)
    none, stretched = table.loc[("stage 1", "none")], table.loc[("stage 1", "global")]
    assert none.spread == pytest.approx(0.5, rel=1e-5) and stretched.spread == pytest.approx(1)
    assert stretched.error == 0
    wanted = np.square(true_z / 2).mean() / true_z.var(0).mean()
    assert none.error == pytest.approx(wanted, rel=1e-5)


def test_the_first_choice_differs_from_itself_by_nothing(generator, tmp_path):
    table = compared(generator, tmp_path)[0]
    assert (table.xs("none", level="rescale")[["pcc_low", "pcc_high"]] == 0).all(axis=None)


def test_choices_are_what_chapter_02_decodes(world, tmp_path):  # noqa: F811
    features, _, subject = world
    found = decode_choices(subject, features, tmp_path)
    assert found.keys() == CHOICES.keys()
    for how, choice in found.items():
        path = decode_subject(subject, features, tmp_path / "a.h5", method=CHOICES[how])
        wanted = read_decoded(path)
        assert set(choice) == set(wanted)
        for name, values in wanted.items():
            np.testing.assert_allclose(choice[name], values, atol=1e-4, err_msg=name)
