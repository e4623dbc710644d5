"""Stable Diffusion's own shapes, with random weights: against diffusers and transformers."""

import pytest
import torch
from builders import study
from oracles import img2img

from minddiff_utils.models.stable_diffusion import noise_like
from studies import architecture, cost

# Of the published models, from their repositories' files.
MILLIONS = {"unet": 859.520964, "vae": 83.653863, "text_encoder": 123.06048}


# About 6 GiB and a quarter of an hour on two cores: three steps say what 35 would.
FULL = pytest.param(False, 50, 0.06, marks=pytest.mark.slow)


@pytest.mark.parametrize(("small", "n_steps", "strength"), [(True, 50, 0.7), FULL])
def test_noise_and_denoise_equal_diffusers_at_version_1s_architecture(small, n_steps, strength):
    generator = architecture.build_generator(small)
    edge = generator.unet.config.sample_size
    z = torch.randn(1, 4, edge, edge, generator=torch.Generator().manual_seed(1))
    c = generator.encode_captions([(cost.CAPTION, "a sofa")])
    assert c.shape[1] == 15
    theirs, _ = img2img(generator, z, c, [3 * 1_000_003 + 7], n_steps, strength, 5.0)
    steps = generator.timesteps(n_steps, strength)
    with torch.no_grad():
        noised = generator.add_noise(z, noise_like(z, 3, [7]), steps[:1])
        ours = generator.denoise(noised, c, steps, 5.0)
    assert (theirs - z).norm() > 0.01 * z.norm()
    assert (ours - theirs).norm() <= 1e-4 * theirs.norm()


def test_full_size_has_as_many_weights_as_published():
    with torch.device("meta"):
        pipeline, clip = architecture.build_pipeline(), architecture.build_clip()
    assert sum(p.numel() for p in clip.model.parameters()) == 151_277_313
    for part, millions in MILLIONS.items():
        count = sum(p.numel() for p in getattr(pipeline, part).parameters())
        assert count == round(millions * 1e6), part


def test_both_stages_and_the_parts_are_measured():
    options = ["--small", "--device", "cpu", "--batches", "1", "--steps", "2"]
    options += ["--solver", "algorithm_1", "--save-memory", "attention,tiling,checkpointing"]
    lines = study("cost", *options).splitlines()
    assert lines[0].startswith("pictures of 128 × 128, on cpu in torch.float32")
    # Two iterations of a step under both conditions, computed again on the way back, and the last.
    passes = 2 * 2 * 4 + 2
    assert lines[2].split()[0] == "1" and float(lines[2].split()[3]) == passes
    assert "Estimated from these parts" in "".join(lines) and "894 the passes" in lines[-1]
