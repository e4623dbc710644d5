"""The held-out bars and the model card, on models with random weights."""

import json
import shutil

import numpy as np
import pytest

from minddiff_utils.settings import Settings
from studies.model_card import evaluate, write_model_card


@pytest.fixture(scope="module")
def results(tiny_models):
    return evaluate(tiny_models, "cpu", 4, Settings(n_steps=2))


def test_every_bar_of_random_models_is_known_and_finite(results):
    keys = ["psnr", "psnr_pooled", "retrieval_guide", "retrieval_judge", "caption_to_picture"]
    assert list(results) == [*keys, "img2img_ssim", "img2img_judge"]
    assert all(np.isfinite(bar.value) for bar in results.values())
    assert results["psnr"].verdict == "below" and results["psnr"].value < 20


def test_card_says_what_is_met_and_how_it_was_trained(tiny_models, tmp_path, results):
    weights = shutil.copytree(tiny_models, tmp_path / "weights")
    known = {"pictures": 48000, "batch": 16, "learning_rate": 1.5e-3, "seed": 0, "device": "abacus"}
    settings = {"autoencoder": {**known, "steps": 12345, "minutes": 67.8}}
    (weights / "training.json").write_text(json.dumps(settings))
    (weights / "curves.csv").write_text("stage,step,minutes,loss\nautoencoder,50,1,0.5\n")
    card = write_model_card(weights, results).read_text(encoding="utf-8")
    for bar in results.values():
        assert f"| {bar.name} |" in card
    n_below = sum(bar.verdict == "below" for bar in results.values())
    assert "| `autoencoder` | 48,000 | 16 | 0.0015 | 12,345 | 67.8 | 0 | abacus |" in card
    assert n_below and f"Aims not met: {n_below}" in card and "$" not in card
    met = {key: bar._replace(value=99.0) for key, bar in results.items()}
    assert "All aims are met." in write_model_card(weights, met).read_text(encoding="utf-8")
