"""Training in seconds: going on after a stop, whose pictures, and the folders it leaves."""

import functools
import shutil

import numpy as np
import pytest
import torch
from builders import study
from diffusers import StableDiffusionPipeline
from transformers import CLIPModel

from minddiff_utils.phantom import world
from studies import training
from studies.model_card import FIRST_HELD_OUT_ID
from studies.training import STAGES, TrainingSet, train_stage

N_PICTURES = 260
SECONDS = 0.2


@pytest.fixture(scope="module")
def small_batches():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "BATCH", dict.fromkeys(STAGES, 8))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small_batches):
    """The folders of a whole training, by the command line: (work, out)."""
    folder = tmp_path_factory.mktemp("training")
    work, out = folder / "work", folder / "out"
    work.mkdir()
    minutes = SECONDS / 60 / min(training.SHARES.values())
    given = ["--work", work, "--out", out, "--minutes", minutes]
    study("training", *given, "--pictures", N_PICTURES, "--device", "cpu")
    return work, out


def test_exported_folders_load_with_diffusers_and_transformers(trained):
    out = trained[1]
    pipeline = StableDiffusionPipeline.from_pretrained(out / "stable_diffusion")
    pipeline.set_progress_bar_config(disable=True)
    assert len(pipeline("a blue cat at sea", num_inference_steps=2).images) == 1
    for name in ("clip_guide", "clip_judge"):
        model = CLIPModel.from_pretrained(out / name)
        assert model.dtype == torch.float32
        assert all(torch.isfinite(p).all() for p in model.parameters())


# ---------------------------------------------------------------------------------- going on again


def test_a_second_call_goes_on_and_a_third_does_nothing(trained, tmp_path, small_batches):
    work = shutil.copytree(trained[0], tmp_path / "work")
    read = functools.partial(training.read_checkpoint, work / "clip_judge.pt")
    before = read()["progress"]
    minutes = (before["seconds"] + 0.6) / 60
    train_stage("clip_judge", work, minutes, N_PICTURES, "cpu")
    kept = read()
    assert len(kept["progress"]["losses"]) > len(before["losses"])
    assert kept["progress"]["seconds"] >= 60 * minutes
    train_stage("clip_judge", work, minutes, N_PICTURES, "cpu")
    assert read()["progress"] == kept["progress"]
    torch.testing.assert_close(read()["ema"], kept["ema"], rtol=0, atol=0)


# ------------------------------------------------------------------------------------ the pieces


def test_training_pictures_are_none_of_the_experiments(trained):
    data = TrainingSet(trained[0], N_PICTURES)
    assert training.FIRST_TRAINING_ID > FIRST_HELD_OUT_ID + 256
    np.testing.assert_array_equal(data.pictures[7], world.picture(training.FIRST_TRAINING_ID + 7))
    text = training.load_tokenizer().decode(data.tokens[7, 2], skip_special_tokens=True)
    assert text == world.captions(training.FIRST_TRAINING_ID + 7)[2]
