r"""Stage 2 in one pass: the structure is corrected while the picture is being painted.

At every denoising step the network predicts the clean latent behind the noisy one. The picture of
that prediction is compared with the decoded structure, and the noisy latent moves against the
gradient: back through CLIP, the autoencoder and this one step, not through all that follow. (As in
DPS, 2209.14687, and TFG, 2409.15761.)
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from minddiff_utils.models.stable_diffusion import Generator
from minddiff_utils.reconstruction import Inputs
from minddiff_utils.reconstruction.losses import Evidence, Loss, structure_losses
from minddiff_utils.settings import Settings

# Steps with less noise than this, as variance around the clean latent, are not guided unless it is
# asked for: little is left open, and held-out training images are made no worse without.
LEAST_NOISE = 0.2


def guided_pass(
    generator: Generator, inputs: Inputs, settings: Settings
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Noise `z`, denoise it under `c`, and correct it at the steps on the way.

    Parameters
    ----------
    generator : Generator
    inputs : Inputs
    settings : Settings

    Returns
    -------
    z_0 : Tensor, shape (n, channels, h, w)
        The last latent.
    iterates : list of Tensor, shape (n, 3, H, W)
        The picture predicted at each guided step, before it is corrected there, as
        `settings.gradient_decoder` paints it; with `settings.gradient_through` "text", under the
        text condition alone.
    losses : list of Tensor, shape (n, n_blocks)
        Of these pictures.
    """
    z, c, target, noise, z_evidence = inputs
    loss_of = partial(structure_losses, generator, target=target, settings=settings)
    timesteps = generator.timesteps(settings.n_steps, settings.strength)
    noisy = sum(generator.noise_variance(step) > LEAST_NOISE for step in timesteps)
    guided = timesteps[: settings.n_guided_steps or max(1, noisy) : settings.guide_every].tolist()
    # Without guidance by text only the half under the text is computed.
    through = 1.0 if settings.gradient_through == "text" else settings.guidance_scale
    z_t = generator.add_noise(z, noise, timesteps[:1])
    iterates, losses = [], []
    for step in timesteps:
        variance = generator.noise_variance(step)
        if int(step) in guided:
            predict = partial(generator.predict_clean, c=c, step=step, guidance_scale=through)
            z_t, picture, loss = follow(generator, z_t, predict, loss_of, variance, settings)
            iterates.append(picture)
            losses.append(loss)
        with torch.no_grad():
            z_0 = generator.predict_clean(z_t, c, step, settings.guidance_scale)
        if int(step) in guided and z_evidence is not None:
            z_0 = add_z_evidence(z_0, z_evidence, variance, settings.z_evidence_weight)
        z_t = generator.step_to(z_t, z_0, step)
    return z_t, iterates, losses


def follow(
    generator: Generator,
    z_t: Tensor,
    predict: Callable[[Tensor], Tensor],
    loss_of: Loss,
    variance: float,
    settings: Settings,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Move noisy latents down the gradient of the structure loss of what they predict.

    With the noise variance :math:`\sigma_t^2 = (1 - \bar\alpha_t) / \bar\alpha_t`, a latent of unit
    variance is known up to :math:`r_t^2 = \sigma_t^2 / (1 + \sigma_t^2)`. In each of the
    `gradient_steps` it moves against the gradient :math:`g` by

    .. math:: \Delta \mathbf{z}_t = -\frac{\text{step size}}{\text{gradient steps}}\, r_t\,
              \frac{g}{\operatorname{rms}(g)}, \qquad
              g = \nabla_{\mathbf{z}_t} L(D(\hat{\mathbf{z}}_0(\mathbf{z}_t))),

    the root mean square being that of one picture's latent: what the noise has left open may move,
    and early steps, which settle the layout, move most.

    Returns
    -------
    z_t : Tensor
        A picture whose gradient is not finite stays where it is.
    picture, loss : Tensor
        Before the first move; the loss is NaN where a loss or gradient was not finite.
    """
    length = settings.step_size / settings.gradient_steps * (variance / (1 + variance)) ** 0.5
    pictures, losses, finite = [], [], z_t.new_ones(len(z_t), dtype=torch.bool)
    for _ in range(settings.gradient_steps):
        z_t = z_t.detach().requires_grad_(True)
        picture = generator.decode(predict(z_t), settings.gradient_decoder)
        loss = loss_of(picture)
        (gradient,) = torch.autograd.grad(loss.sum(), z_t)
        size = gradient.square().mean((1, 2, 3), keepdim=True).sqrt()
        move = length * gradient / size.clamp(min=1e-20)
        usable = torch.isfinite(move).flatten(1).all(1)
        z_t = torch.where(usable.view(-1, 1, 1, 1), z_t.detach() - move, z_t.detach())
        pictures.append(picture.detach())
        losses.append(loss.detach())
        finite = finite & usable & torch.isfinite(loss).all(1)
    return z_t, pictures[0], torch.where(finite[:, None], losses[0], torch.nan)


def add_z_evidence(z_0: Tensor, evidence: Evidence, variance: float, weight: float) -> Tensor:
    r"""Move clean latents towards what the responses say about them.

    Before the responses are heard, component :math:`k` of the predicted latent is known up to
    :math:`q_k^2 = \sigma_t^2 \lambda_k / (\sigma_t^2 + \lambda_k)`, from the noise and the spread
    :math:`\lambda_k` of the component over pictures. The responses say :math:`y_k` with variance
    :math:`v_k`, and two Gaussians make

    .. math:: s_k \leftarrow s_k + \frac{q_k^2}{q_k^2 + v_k / \text{weight}}\,(y_k - s_k).

    The columns of the evidence's projection have the length :math:`1 / \sqrt{K v_k}`.

    Returns
    -------
    Tensor, shape of `z_0`
    """
    out = z_0.detach().flatten(1).clone()
    for number in evidence.split.unique():
        rows = torch.nonzero(evidence.split == number).flatten()
        projection, spread = evidence.projection[number], evidence.spread[number]
        length = projection.norm(dim=0)
        informative = length > 0
        uncertainty = torch.where(informative, 1 / (informative.sum() * length.square()), torch.inf)
        length = torch.where(informative, length, 1.0)
        basis, value = projection / length, evidence.value[rows] / length
        known = variance * spread / (variance + spread)
        share = known / (known + uncertainty / weight)
        towards = value - out[rows].to(basis.dtype) @ basis
        out[rows] += ((share * towards) @ basis.T).to(out.dtype)
    return out.view_as(z_0)
