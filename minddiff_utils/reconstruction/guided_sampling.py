r"""Stage 2 in one pass: the structure is corrected while the picture is being painted.

At every denoising step the network predicts the clean latent behind the noisy one. The picture of
that prediction is compared with the decoded structure, and the noisy latent moves against the
gradient: back through CLIP, the autoencoder and this one step, not through all that follow. (As in
DPS, 2209.14687, and TFG, 2409.15761.)
"""

from collections.abc import Callable
from functools import partial

import torch

from minddiff_utils.models.stable_diffusion import Generator
from minddiff_utils.reconstruction.losses import Belief
from minddiff_utils.settings import Settings

Loss = Callable[[torch.Tensor], torch.Tensor]


def guided_pass(
    generator: Generator,
    z: torch.Tensor,
    c: torch.Tensor,
    loss_of: Loss,
    belief: Belief | None,
    noise: torch.Tensor,
    settings: Settings,
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """Noise `z`, denoise it under `c`, and correct it at the steps on the way.

    Parameters
    ----------
    generator : Generator
    z : Tensor, shape (n, channels, h, w)
    c : Tensor, shape (n, tokens, width)
    loss_of : callable
        Turns pictures (n, 3, H, W) into the structure loss of each block, (n, n_blocks).
    belief : Belief or None
        What the responses say about `z`; None: nothing.
    noise : Tensor, shape of `z`
    settings : Settings

    Returns
    -------
    z_0 : Tensor, shape of `z`
        The last latent.
    iterates : list of Tensor, shape (n, 3, H, W)
        The picture predicted at each guided step, before it is corrected there; with
        `settings.gradient_through` "text", under the text condition alone.
    losses : list of Tensor, shape (n, n_blocks)
        Of these pictures.
    """
    timesteps = generator.timesteps(settings.n_steps, settings.strength)
    empty = generator.empty_condition().to(c).expand(len(c), -1, -1)
    z_t = generator.add_noise(z, noise, timesteps[:1])
    iterates, losses = [], []
    for number, step in enumerate(timesteps):

        def predict(
            z_t: torch.Tensor,
            step: torch.Tensor = step,
            guidance_scale: float = settings.guidance_scale,
        ) -> torch.Tensor:
            return generator.predict_clean(z_t, c, empty, step, guidance_scale)

        # Without guidance only the half under the text is computed.
        look = (
            partial(predict, guidance_scale=1.0) if settings.gradient_through == "text" else predict
        )

        variance = generator.noise_variance(step)
        last = settings.n_guided_steps or len(timesteps)
        guided = number % settings.guide_every == 0 and number < last
        if guided:
            z_t, picture, loss = follow(generator, z_t, look, loss_of, variance, settings)
            iterates.append(picture)
            losses.append(loss)
        with torch.no_grad():
            z_0 = predict(z_t)
        if guided and belief is not None and settings.z_evidence_weight > 0:
            z_0 = add_z_evidence(z_0, belief, variance, settings.z_evidence_weight)
        z_t = generator.step_to(z_t, z_0, step)
    return z_t, iterates, losses


def follow(
    generator: Generator,
    z_t: torch.Tensor,
    predict: Callable[[torch.Tensor], torch.Tensor],
    loss_of: Loss,
    variance: float,
    settings: Settings,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    r"""Move noisy latents down the gradient of the structure loss of what they predict.

    With the noise variance :math:`\sigma_t^2 = (1 - \bar\alpha_t) / \bar\alpha_t`, a latent of unit
    variance is known up to :math:`r_t^2 = \sigma_t^2 / (1 + \sigma_t^2)`. In each of `looks` looks
    it moves against the gradient :math:`g` by

    .. math:: \Delta \mathbf{z}_t = -\frac{\text{reach}}{\text{looks}}\, r_t\,
              \frac{g}{\operatorname{rms}(g)}, \qquad
              g = \nabla_{\mathbf{z}_t} L(D(\hat{\mathbf{z}}_0(\mathbf{z}_t))),

    the root mean square being that of one picture's latent: what the noise has left open may move,
    and early steps, which settle the layout, move most.

    Returns
    -------
    z_t : Tensor
        A picture whose gradient is not finite stays where it is.
    picture, loss : Tensor
        Before the first move; the loss is NaN where a gradient was not finite.
    """
    length = settings.step_size / settings.gradient_steps * (variance / (1 + variance)) ** 0.5
    pictures, losses = [], []
    for _ in range(settings.gradient_steps):
        z_t = z_t.detach().requires_grad_(True)
        picture = generator.decode(predict(z_t))
        loss = loss_of(picture)
        (gradient,) = torch.autograd.grad(loss.sum(), z_t)
        size = gradient.square().mean((1, 2, 3), keepdim=True).sqrt()
        move = length * gradient / size.clamp(min=1e-20)
        usable = torch.isfinite(move).flatten(1).all(1)
        z_t = torch.where(usable.view(-1, 1, 1, 1), z_t.detach() - move, z_t.detach())
        pictures.append(picture.detach())
        losses.append(torch.where(usable[:, None], loss.detach(), torch.nan))
    # Adding zeros carries the NaN of any look into the first.
    return z_t, pictures[0], losses[0] + 0 * sum(losses)


def add_z_evidence(
    z_0: torch.Tensor, belief: Belief, variance: float, times: float
) -> torch.Tensor:
    r"""Move clean latents towards what the responses say about them.

    Before the responses are heard, component :math:`k` of the predicted latent is known up to
    :math:`q_k^2 = \sigma_t^2 \lambda_k / (\sigma_t^2 + \lambda_k)`, from the noise and the spread
    :math:`\lambda_k` of the component over pictures. The responses say :math:`y_k` with variance
    :math:`v_k`, and two Gaussians make

    .. math:: s_k \leftarrow s_k + \frac{q_k^2}{q_k^2 + v_k / \text{times}}\,(y_k - s_k).

    Returns
    -------
    Tensor, shape of `z_0`
    """
    out = z_0.detach().flatten(1).clone()
    for number in belief.split.unique():
        rows = torch.nonzero(belief.split == number).flatten()
        basis, spread = belief.basis[number], belief.spread[number]
        known = variance * spread / (variance + spread)
        share = known / (known + belief.variance[number] / times)
        towards = belief.value[rows] - out[rows].to(basis.dtype) @ basis
        out[rows] += ((share * towards) @ basis.T).to(out.dtype)
    return out.view_as(z_0)
