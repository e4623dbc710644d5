"""Training in seconds: going on after a stop, whose pictures, and the folders it leaves."""

import functools
import shutil

import numpy as np
import pytest
import torch
from builders import study
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from transformers import CLIPModel

from minddiff_utils.phantom import world
from studies import training
from studies.model_card import FIRST_HELD_OUT_ID
from studies.training import STAGES, TrainingSet, train_stage

N_PICTURES = 260
SECONDS = 0.5


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


def test_export_keeps_the_running_mean_in_half_precision(trained):
    work, out = trained
    kept = training.read_checkpoint(work / "clip_guide.pt")["ema"]
    with safe_open(out / "clip_guide/model.safetensors", "pt") as file:
        for name in file.keys():
            tensor = file.get_tensor(name)
            if tensor.is_floating_point():
                assert tensor.dtype == torch.float16
                torch.testing.assert_close(tensor, kept[name].half())


# ---------------------------------------------------------------------------------- going on again


def test_a_second_call_goes_on_and_a_third_does_nothing(trained, tmp_path, small_batches):
    work = shutil.copytree(trained[0], tmp_path / "work")
    read = functools.partial(training.read_checkpoint, work / "clip_judge.pt")
    before = read()["progress"]
    minutes = (before["seconds"] + 0.6) / 60
    train_stage("clip_judge", work, minutes, N_PICTURES, "cpu")
    kept = read()
    assert kept["progress"]["step"] > before["step"]
    assert kept["progress"]["seconds"] >= 60 * minutes
    train_stage("clip_judge", work, minutes, N_PICTURES, "cpu")
    assert read()["progress"]["step"] == kept["progress"]["step"]
    torch.testing.assert_close(read()["ema"], kept["ema"], rtol=0, atol=0)


def steps(model, optimiser, ema, n, seed):
    """A few optimiser steps on fixed random pictures, as the loop makes them."""
    source = torch.Generator().manual_seed(seed)
    for _ in range(n):
        for group in optimiser.param_groups:
            group["lr"] = 1e-3
        rgb = torch.rand(2, 3, 64, 64, generator=source) * 2 - 1
        training.update(model, ema, optimiser, (model(rgb).sample - rgb).square().mean(), 100)


def fresh():
    """As in training: with another order in memory, Adam's moments would be those of others."""
    torch.manual_seed(0)
    model = training.untrained("vae").to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), fused=True)
    return model, optimiser, {k: v.clone() for k, v in model.state_dict().items()}


def test_a_checkpoint_restores_weights_moments_and_mean_exactly(tmp_path):
    model, optimiser, ema = fresh()
    steps(model, optimiser, ema, 3, seed=1)
    path = tmp_path / "checkpoint.pt"
    training.save_checkpoint(path, model, ema, optimiser, {"step": 3, "seconds": 1.5})
    steps(model, optimiser, ema, 2, seed=2)

    again, its_optimiser, _ = fresh()
    its_ema, progress = training.load_checkpoint(path, again, its_optimiser)
    assert progress == {"step": 3, "seconds": 1.5}
    steps(again, its_optimiser, its_ema, 2, seed=2)

    moments = optimiser.state_dict()["state"]
    for index, state in its_optimiser.state_dict()["state"].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(moments[index][name]))
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
        assert torch.equal(its_ema[name], ema[name]), name


# ------------------------------------------------------------------------------------ the pieces


def test_training_pictures_are_none_of_the_experiments(trained):
    data = TrainingSet(trained[0], N_PICTURES)
    assert training.FIRST_TRAINING_ID > FIRST_HELD_OUT_ID + 256
    np.testing.assert_array_equal(data.pictures[7], world.picture(training.FIRST_TRAINING_ID + 7))
    text = training.load_tokenizer().decode(data.tokens[7, 2], skip_special_tokens=True)
    assert text == world.captions(training.FIRST_TRAINING_ID + 7)[2]


def test_pictures_and_captions_of_a_batch_belong_together(trained):
    """Rows are sorted for the picture file: the captions must follow."""
    data, seen = TrainingSet(trained[0], N_PICTURES), {}

    class Spy(torch.nn.Module):
        config = CLIPModel.from_pretrained(trained[1] / "clip_guide").config

        def forward(self, input_ids, pixel_values):
            seen.update(tokens=input_ids, pixels=pixel_values)
            output = torch.zeros(len(input_ids), len(input_ids))
            return type("Output", (), {"logits_per_image": output})

    training.clip_loss(Spy(), data, np.array([9, 2, 5]), "cpu")
    for place, row in enumerate((2, 5, 9)):
        rgb = training.clip_normalise(training.to_rgb(data.pictures[row : row + 1], "cpu"), 64)
        torch.testing.assert_close(seen["pixels"][place : place + 1], rgb)
        assert (data.tokens[row] == seen["tokens"][place]).all(1).any()
