"""Ways to correct the structure that were tried.

What earned its place is in `guidance` and `reconstruction`, and is reached here by settings alone.
What lost is written here, short and plain, so that anyone can measure it again.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from minddiff_utils.evaluation.stored import DEFAULT_WAY
from minddiff_utils.models.stable_diffusion import Generator
from minddiff_utils.reconstruction.algorithm1 import algorithm_1
from minddiff_utils.reconstruction.guided_sampling import add_z_evidence, follow, guided_pass
from minddiff_utils.reconstruction.inputs import Inputs
from minddiff_utils.reconstruction.losses import structure_losses
from minddiff_utils.reconstruction.stage1 import generate
from minddiff_utils.reconstruction.stage2 import stage2
from minddiff_utils.settings import Settings

REFERENCE_WAY = "one look, both halves"  # of the rows that follow it
# From the inputs of `stage2` to pictures (n, 3, H, W).
Way = Callable[[Generator, Inputs, Settings], torch.Tensor]


def by_settings(generator: Generator, given: Inputs, settings: Settings) -> torch.Tensor:
    """Run stage 2 as the package has it."""
    return stage2(generator, given, settings).pictures


def walk(
    generator: Generator, given: Inputs, settings: Settings, look: str = "", sampler: str = "ddim"
) -> torch.Tensor:
    """Paint in one pass, with another gradient or another sampler than `guided_pass`.

    Parameters
    ----------
    generator : Generator
    given : Inputs
    settings : Settings
    look : {"", "step", "clean"}
        Where the gradient of the structure loss is taken: nowhere; through both halves of the
        guided step, as in `guided_pass`; or at the predicted clean latent, not through the UNet at
        all.
    sampler : {"ddim", "dpm"}
        "dpm": `dpm_step`.

    Returns
    -------
    Tensor, shape (n, 3, H, W)
    """
    z, c, target, noise, z_evidence = given
    loss_of = partial(_loss, generator, target, settings)
    timesteps = generator.timesteps(settings.n_steps, settings.strength)
    z_t, before = generator.add_noise(z, noise, timesteps[:1]), None
    for step in timesteps:
        variance = generator.noise_variance(step)
        predict = partial(_clean, generator, c, step)
        if look == "step":
            way = partial(predict, settings.guidance_scale)
            z_t = follow(generator, z_t, way, loss_of, variance, settings)[0]
        with torch.no_grad():
            z_0 = predict(settings.guidance_scale, z_t)
        if look == "clean":
            z_0 = follow(generator, z_0, torch.clone, loss_of, variance, settings)[0]
        if z_evidence is not None:
            z_0 = add_z_evidence(z_0, z_evidence, variance, settings.z_evidence_weight)
        if sampler == "dpm":
            z_t, before = dpm_step(generator, z_t, z_0, step, before), (z_0, step)
        else:
            z_t = generator.step_to(z_t, z_0, step)
    with torch.no_grad():
        return generator.decode(z_t)


def _clean(generator, c, step, guidance, z_t):
    return generator.predict_clean(z_t, c, step, guidance)


def _loss(generator, target, settings, pictures):
    return structure_losses(generator, pictures, target, settings)


def dpm_step(
    generator: Generator,
    z: torch.Tensor,
    z_0: torch.Tensor,
    step: torch.Tensor,
    before: tuple[torch.Tensor, torch.Tensor] | None,
) -> torch.Tensor:
    r"""Take a step of DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2).

    With :math:`\alpha^2 = \bar\alpha`, :math:`\sigma^2 = 1 - \bar\alpha`, :math:`\lambda =
    \log(\alpha / \sigma)`, :math:`h` the step in :math:`\lambda` and :math:`r = h_{i-1} / h_i`,

    .. math:: z_s = \frac{\sigma_s}{\sigma_t} z_t - \alpha_s (e^{-h} - 1) D, \qquad
              D = \hat z_0 + \frac{1}{2 r} (\hat z_0 - \hat z_0^{\text{before}}).

    Parameters
    ----------
    generator : Generator
        `timesteps` was called with the number of steps.
    z, z_0 : Tensor
        Noisy latent, and the clean one predicted behind it.
    step : Tensor
    before : tuple of Tensor, optional
        The clean latent predicted one step earlier, and that step; None: a step of first order.
    """
    a, b = _alphas(generator, step)
    h = _half_log_snr(b) - _half_log_snr(a)
    slope = z_0
    if before is not None:
        r = (_half_log_snr(a) - _half_log_snr(_alphas(generator, before[1])[0])) / h
        slope = z_0 + (z_0 - before[0]) / (2 * r)
    return ((1 - b) / (1 - a)) ** 0.5 * z - b**0.5 * (np.exp(-h) - 1) * slope


def _alphas(generator: Generator, step: torch.Tensor) -> tuple[float, float]:
    """Squared signal of a step and of the one that follows it."""
    alphas = generator.scheduler.alphas_cumprod
    following = int(step) - len(alphas) // generator.scheduler.num_inference_steps
    final = generator.scheduler.final_alpha_cumprod
    return float(alphas[step]), float(alphas[following] if following >= 0 else final)


def _half_log_snr(a: float) -> float:
    return 0.5 * np.log(a / (1 - a))


def truncated(
    generator: Generator, given: Inputs, settings: Settings, last: int = 1
) -> torch.Tensor:
    """Algorithm 1 with gradients through the last steps only (DRaFT-K, arXiv 2309.17400).

    `z` enters before those steps. What lies between counts as a multiplication by the share of the
    signal that is left, so that the gradient reaches `z`.

    Parameters
    ----------
    generator, given, settings
        As for `walk`; `iterations` and `learning_rate` count here, the rate does not fall.
    last : int
        Steps that the gradient runs through, at least 1.

    Returns
    -------
    Tensor, shape (n, 3, H, W)
    """
    z, c, target, noise, _ = given
    z, c = (value.clone().requires_grad_(True) for value in (z, c))
    adam = torch.optim.Adam([z, c], lr=settings.learning_rate)
    timesteps = generator.timesteps(settings.n_steps, settings.strength)
    kept = float(generator.scheduler.alphas_cumprod[timesteps[-last]]) ** 0.5
    for _ in range(settings.iterations):
        with torch.no_grad():
            z_t = generator.add_noise(z, noise, timesteps[:1])
            z_t = generator.denoise(z_t, c, timesteps[:-last], settings.guidance_scale)
        z_t = z_t + kept * (z - z.detach())
        z_0 = generator.denoise(z_t, c, timesteps[-last:], settings.guidance_scale)
        loss = _loss(generator, target, settings, generator.decode(z_0)).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    with torch.no_grad():
        return generate(generator, z, c, noise, settings)


def afterwards(
    generator: Generator, given: Inputs, settings: Settings, then: str, strength: float
) -> torch.Tensor:
    """Noise the result of the guided pass a little, and go on: see `then`.

    Parameters
    ----------
    generator, given, settings
        As for `walk`.
    then : {"stage1", "guided", "iterate"}
        Denoise it, to bring it back to where pictures are; guide it once more, from coarse to
        fine; or adjust it by Algorithm 1.
    strength : float
        Share of the schedule.

    Returns
    -------
    Tensor, shape (n, 3, H, W)
    """
    z_0 = guided_pass(generator, given, settings)[0]
    again, settings = given._replace(z=z_0), replace(settings, strength=strength)
    if then == "iterate":
        return algorithm_1(generator, again, settings).pictures
    if then == "guided":
        z_0 = guided_pass(generator, again, settings)[0]
        with torch.no_grad():
            return generator.decode(z_0)
    with torch.no_grad():
        return generate(generator, z_0, given.c, given.noise, settings)


OUTER = {"solver": "algorithm_1", "iterations": 10, "learning_rate": 0.1}
BOTH = {"gradient_through": "both"}
ONE = {"gradient_through": "both", "gradient_steps": 1}
# Name -> (way, changes of the default settings). From REFERENCE_WAY on, rows differ from that one.
WAYS: dict[str, tuple[Way, dict]] = {
    DEFAULT_WAY: (by_settings, {}),
    "stage 1 alone": (walk, {"z_evidence_weight": 0.0}),
    "gradient through both halves": (by_settings, BOTH),
    "3 looks, both halves": (by_settings, BOTH | {"gradient_steps": 3}),
    "4 looks, both halves": (by_settings, BOTH | {"gradient_steps": 4}),
    REFERENCE_WAY: (by_settings, ONE),
    "pull of z, no structure": (walk, {}),
    "structure, no pull of z": (by_settings, ONE | {"z_evidence_weight": 0.0}),
    "fits decoded values": (by_settings, ONE | {"structure_target": "values"}),
    "every second step guided": (by_settings, ONE | {"guide_every": 2}),
    "first 2 steps guided": (by_settings, ONE | {"n_guided_steps": 2}),
    "reach 0.1": (by_settings, ONE | {"step_size": 0.1}),
    "reach 0.3": (by_settings, ONE | {"step_size": 0.3}),
    "reach 0.4": (by_settings, ONE | {"step_size": 0.4}),
    "reach 0.8": (by_settings, ONE | {"step_size": 0.8}),
    "pull counted twice": (by_settings, ONE | {"z_evidence_weight": 2.0}),
    "no guidance by text": (by_settings, ONE | {"guidance_scale": 1.0}),
    "5 of 9 steps → 3 of 5": (by_settings, ONE | {"n_steps": 5}),
    "5 of 9 steps → 10 of 18": (by_settings, ONE | {"n_steps": 18}),
    "gradient through the text's half": (by_settings, {"gradient_steps": 1}),
    "gradient at the clean latent": (partial(walk, look="clean"), ONE),
    "DPM-Solver++, 5 of 9 steps": (partial(walk, look="step", sampler="dpm"), ONE),
    "DPM-Solver++, 3 of 5 steps": (partial(walk, look="step", sampler="dpm"), ONE | {"n_steps": 5}),
    "then noise and denoise": (partial(afterwards, then="stage1", strength=0.23), ONE),
    "then guide once more": (partial(afterwards, then="guided", strength=0.34), ONE),
    "then 5 iterations": (
        partial(afterwards, then="iterate", strength=0.34),
        ONE | {"iterations": 5, "learning_rate": 0.03},
    ),
    "10 iterations": (by_settings, OUTER),
    "10 iterations, gradient of the last step": (truncated, OUTER),
    "10 iterations, gradient of the last 2 steps": (partial(truncated, last=2), OUTER),
    "10 iterations, decoded values": (by_settings, OUTER | {"structure_target": "values"}),
}
