"""Stable Diffusion's own shapes, with random weights: against diffusers and transformers."""

import json
import re

import numpy as np
import pytest
import torch
from oracles import img2img, pixels_by_pillow, structure_by_hooks
from transformers import CLIPImageProcessorPil
from typer.testing import CliRunner

from minddiff_utils.io import InputError
from minddiff_utils.models.stable_diffusion import noise_like, to_rgb
from studies import architecture, sd14
from studies.__main__ import app

# Of the published models, from their repositories' files.
MILLIONS = {"unet": 859.520964, "vae": 83.653863, "text_encoder": 123.06048}


@pytest.mark.parametrize(
    "small, n_steps, strength",
    [
        (True, 50, 0.7),
        # About 6 GiB and a quarter of an hour on two cores: three steps say what 35 would.
        pytest.param(False, 50, 0.06, marks=pytest.mark.slow),
    ],
)
def test_noise_and_denoise_equal_diffusers_at_version_1s_architecture(small, n_steps, strength):
    generator = architecture.build_generator(small)
    edge = generator.unet.config.sample_size
    z = torch.randn(1, 4, edge, edge, generator=torch.Generator().manual_seed(1))
    c = generator.encode_captions([(sd14.CAPTION, "a sofa")])
    assert c.shape[1] == 15
    theirs, _ = img2img(generator, z, c, [3 * 1_000_003 + 7], n_steps, strength, 5.0)
    steps = generator.timesteps(n_steps, strength)
    with torch.no_grad():
        noised = generator.add_noise(z, noise_like(z, 3, [7]), steps[:1])
        ours = generator.denoise(noised, c, steps, 5.0)
    assert (theirs - z).norm() > 0.01 * z.norm()
    assert (ours - theirs).norm() <= 1e-4 * theirs.norm()


@pytest.mark.slow
def test_full_size_has_as_many_weights_as_published():
    pipeline = architecture.build_pipeline()
    for part, millions in MILLIONS.items():
        found = sum(each.numel() for each in getattr(pipeline, part).parameters())
        assert found == round(millions * 1e6), part


def processed(tmp_path, pictures):
    """Pixels by transformers' own processor, from the settings as the hub's file has them."""
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**architecture.PREPROCESSING, "do_convert_rgb": True}))
    processor = CLIPImageProcessorPil.from_pretrained(tmp_path)
    return processor(images=list(pictures), return_tensors="pt").pixel_values


@pytest.mark.parametrize("size, tolerance", [((224, 224), 1e-5), ((512, 512), 0.02)])
def test_structure_equals_hooks_at_clips_own_preprocessing(tmp_path, size, tolerance):
    """224 pixels and CLIP's mean and deviation; a processor that resizes rounds to 8 bits."""
    clip = architecture.build_clip(small=True)
    coarse = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    pictures = coarse.repeat(size[0] // 8, axis=1).repeat(size[1] // 8, axis=2)
    theirs = structure_by_hooks(clip.model, processed(tmp_path, pictures))
    ours = clip.structure(to_rgb(pictures, "cpu"), range(1, 7))
    mean, deviation = (architecture.PREPROCESSING[f"image_{name}"] for name in ("mean", "std"))
    exact = structure_by_hooks(clip.model, pixels_by_pillow(pictures, mean, deviation, clip))
    assert set(ours) == set(theirs) == set(exact) and ours["block_1"].shape[1] == 50
    for name, values in theirs.items():
        assert (ours[name] - values).norm() <= tolerance * values.norm(), name
        assert (ours[name] - exact[name]).norm() <= 1e-4 * values.norm(), name


@pytest.mark.parametrize("save_memory", ["", "attention,tiling,checkpointing"])
def test_bench_prints_seconds_and_memory_of_both_stages(save_memory):
    options = ["--small", "--steps", "4", "--device", "cpu", "--save-memory", save_memory]
    result = CliRunner().invoke(app, ["sd14", *options])
    assert result.exit_code == 0, result.output
    for stage in ("models", "features", "stage 1", "stage 2, 2 iterations"):
        assert re.search(rf"{stage} +[\d.]+ s +peak memory +[\d.]+ GiB", result.output), stage
    assert "3 of 4 steps, guidance 5, on cpu in float32" in result.output
    assert re.search(r"loss \S+ → \S+ → \S+; pixels moved by up to 0\.0", result.output)


def test_bench_over_its_limit_fails():
    options = ["--small", "--steps", "1", "--strength", "1", "--device", "cpu", "--limit", "0.001"]
    result = CliRunner().invoke(app, ["sd14", *options])
    assert result.exit_code == 1 and "went over 0.001 GiB" in result.output


def test_bench_names_an_unknown_option_before_it_begins():
    result = CliRunner().invoke(app, ["sd14", "--save-memory", "magic"])
    assert isinstance(result.exception, InputError) and "magic is unknown" in str(result.exception)
