"""Stage 1 of MindDiffuser (Lu et al. 2023): a first picture, by img2img."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from minddiff_utils.models.stable_diffusion import Generator
from minddiff_utils.reconstruction import results, stage_inputs
from minddiff_utils.reconstruction.losses import Arrays, structure_losses
from minddiff_utils.settings import Settings


def generate(
    generator: Generator, z: Tensor, c: Tensor, noise: Tensor, settings: Settings
) -> Tensor:
    """Noise `z`, denoise it under `c`, decode: steps 1 to 3 of Algorithm 1, differentiable.

    Parameters
    ----------
    generator : Generator
    z : Tensor, shape (n, channels, h, w)
    c : Tensor, shape (n, tokens, width)
    noise : Tensor, shape of `z`
    settings : Settings

    Returns
    -------
    Tensor, shape (n, 3, H, W)
        Pictures, about in [-1, 1].
    """
    timesteps = generator.timesteps(settings.n_steps, settings.strength)
    z_t = generator.add_noise(z, noise, timesteps[:1])  # 1
    z_0 = generator.denoise(z_t, c, timesteps, settings.guidance_scale, settings.recompute)  # 2
    return generator.decode(z_0)  # 3


@torch.no_grad()
def stage1(generator: Generator, z: Tensor, c: Tensor, noise: Tensor, settings: Settings) -> Tensor:
    """Turn decoded `z` and `c` into a first picture (img2img); see `generate`."""
    return generate(generator, z, c, noise, settings)


def reconstruct_stage1(
    generator: Generator,
    decoded: Arrays,
    settings: Settings,
    path: str | Path,
    *,
    seed: int = 0,
    batch: int = 8,
) -> Path:
    """Run stage 1 on all decoded stimuli, a batch at a time; go on where a run stopped.

    Parameters
    ----------
    generator, decoded, settings, path, seed, batch
        As for `stage2.reconstruct`.

    Returns
    -------
    Path
        As `results.write_batches` describes it, with the structure loss of the pictures.
    """
    # Stage 1 is Algorithm 1 before its first update, and its file says so.
    settings = replace(settings, solver="algorithm_1", iterations=0)

    def compute(rows: slice) -> results.Reconstruction:
        z, c, target, noise, _ = stage_inputs(generator, decoded, rows, settings, seed)
        pictures = stage1(generator, z, c, noise, settings)
        with torch.no_grad():
            loss = structure_losses(generator, pictures, target, settings)
        return results.choose_iterates([pictures], [loss])

    record, ids = results.describe(generator, decoded, settings, seed), decoded["stimulus_id"]
    return results.write_batches(path, ids, record, compute, batch, results.KEPT, "stage 1")
