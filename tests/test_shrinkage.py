"""Stretching decoded `z`: what is compared is stage 1, from the very `z` that was stretched."""

import numpy as np
import pytest
import torch

from minddiff_utils.generator import load_generator, noise_like, to_pictures
from minddiff_utils.metrics import evaluate
from minddiff_utils.reconstruction import stage1
from minddiff_utils.settings import Settings
from minddiff_utils.shrinkage import compare_rescaling


def test_choices_are_painted_by_stage_1_alone(tiny_models):
    generator = load_generator(tiny_models, "cpu")
    rng = np.random.default_rng(0)
    ids, true_z = np.array([3, 8]), rng.standard_normal((2, 4, 16, 16), np.float32)
    c = rng.standard_normal((2, generator.n_tokens, 128), np.float32)
    truth = rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    choices = {
        "none": {"stimulus_id": ids, "z": true_z / 2, "c": c},
        "global": {"stimulus_id": ids, "z": true_z, "c": c},
    }
    settings = Settings(n_steps=3, strength=0.7)
    table = compare_rescaling(generator, choices, true_z, truth, {}, settings, seed=4)
    assert list(table["rescale"]) == ["none", "global"]
    np.testing.assert_allclose(table["spread"], [0.5, 1], rtol=1e-5)
    assert table["error"][1] == 0 and table["error"][0] == pytest.approx(
        np.square(true_z / 2).mean() / true_z.var(0).mean(), rel=1e-5
    )
    z = torch.from_numpy(true_z)
    painted = stage1(generator, z, torch.from_numpy(c), noise_like(z, 4, ids), settings)
    values = evaluate(truth, {"made": to_pictures(painted)}, ids, {})
    wanted = values.groupby("metric").value.mean()
    assert table["pcc"][1] == pytest.approx(wanted["pcc"], abs=1e-6)
