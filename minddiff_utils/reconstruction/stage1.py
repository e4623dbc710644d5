"""Stage 1 of MindDiffuser (Lu et al. 2023): a first picture, by img2img."""

import torch
from torch import Tensor

from minddiff_utils.models.stable_diffusion import Generator
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
