"""Stage 2 as published: Algorithm 1 of MindDiffuser (Lu et al. 2023)."""

import torch

from minddiff_utils.models.stable_diffusion import Generator
from minddiff_utils.reconstruction import Inputs
from minddiff_utils.reconstruction.losses import structure_losses
from minddiff_utils.reconstruction.results import Reconstruction, choose_iterates
from minddiff_utils.reconstruction.stage1 import generate
from minddiff_utils.settings import Settings


def algorithm_1(generator: Generator, inputs: Inputs, settings: Settings) -> Reconstruction:
    """Adjust `z` and `c` by backpropagation through the whole generation: Algorithm 1.

    Comments number the steps as the box "Algorithm 1" on the book's page of the method does.

    Parameters
    ----------
    generator : Generator
    inputs : Inputs
        `z` and `c` as decoded, and one draw of the noise, the same in every iteration.
    settings : Settings
        `iterations`, `learning_rate`, `learning_rate_decay`, `optimise` and `recompute` count here;
        the paper's loss is that of `structure_target` "values".

    Returns
    -------
    Reconstruction
        With the picture of every iteration, from stage 1's to the one after the last update.
    """
    z, c = inputs.z.detach().clone(), inputs.c.detach().clone()
    learned = [{"z": z, "c": c}[name].requires_grad_(True) for name in settings.optimise]
    adam = torch.optim.Adam(learned, lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.ExponentialLR(adam, settings.learning_rate_decay)
    losses, iterates = [], []
    for iteration in range(settings.iterations + 1):
        last = iteration == settings.iterations
        with torch.set_grad_enabled(not last):
            # 1 to 3: noise, denoise, decode.
            pictures = generate(generator, z, c, inputs.noise, settings)
            loss = structure_losses(generator, pictures, inputs.target, settings)  # 4
        losses.append(loss.detach())
        iterates.append(pictures.detach().cpu())
        if not last:
            adam.zero_grad()
            loss.sum().backward()
            adam.step()  # 5, with Adam in the place of the plain step
            schedule.step()
    return choose_iterates(iterates, losses)
