"""How far a picture's structure is from what was decoded: the paper's loss, and this book's."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from minddiff_utils.models.stable_diffusion import Generator
from minddiff_utils.settings import Settings

# From pictures (n, 3, H, W) to the loss of each block, (n, n_blocks).
Loss = Callable[[Tensor], Tensor]
Arrays = Mapping[str, np.ndarray]  # as `read_decoded` returns them
# Weights of the six blocks relative to one another in the authors' code.
BLOCK_WEIGHTS = (1.5, 1.2, 1.0, 1.0, 1.0, 1.0)


class Evidence(NamedTuple):
    """What the responses say about one block, or `z`, of some pictures; see `components.evidence`.

    Parameters
    ----------
    value : Tensor, shape (n, n_components)
    projection : Tensor, shape (n_splits, n_values, n_components)
        Orthogonal columns, those that say nothing zero.
    split : Tensor of int64, shape (n,)
        The split each picture is a test picture of.
    spread : Tensor, shape (n_splits, n_components)
        Variance of each component's score over the training pictures.
    """

    value: Tensor
    projection: Tensor
    split: Tensor
    spread: Tensor


# What stage 2 fits of each block, "block_1" …: decoded values, or evidence about components.
Target = Mapping[str, Any]  # of Tensor, or of Evidence


def structure_losses(
    generator: Generator, rgb: Tensor, target: Target, settings: Settings
) -> Tensor:
    """Return the loss of each block, (n, n_blocks), that stage 2 makes small; differentiable."""
    blocks = [int(name.removeprefix("block_")) for name in block_order(target)]
    loss = evidence_loss if settings.structure_target == "components" else structure_loss
    return loss(generator.guide.structure(rgb, blocks), target)


def structure_loss(found: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Tensor:
    """Return the weighted squared error of every block, over the values that were decoded.

    .. math:: L_i = w_i \\, \\frac{1}{|M_i|} \\sum_{m \\in M_i} (CLIP_i(Y)_m - \\hat Z_{i,m})^2

    The weights are those of the authors' code: the inverse lengths of the targets, normalised to
    sum 1, times [1.5, 1.2, 1, 1, 1, 1] for blocks 1 to 6.

    Parameters
    ----------
    found, target : mappings of str to Tensor, shape (n, …)
        Of the generated picture and decoded from the brain; NaN in `target`: not decoded.

    Returns
    -------
    Tensor, shape (n, n_blocks)
        Their sum over blocks is the loss of a picture.
    """
    names = block_order(target)
    inverse = [1 / torch.nan_to_num(target[name]).flatten(1).norm(dim=1) for name in names]
    total = torch.stack(inverse).sum(0)
    losses = []
    for name, factor, weight in zip(names, _factors(len(names)), inverse, strict=True):
        decoded = torch.isfinite(target[name])
        error = torch.where(decoded, found[name] - torch.nan_to_num(target[name]), 0.0)
        n = decoded.flatten(1).sum(1).clamp(min=1)
        losses.append(factor * weight / total * error.square().flatten(1).sum(1) / n)
    return torch.stack(losses, dim=1)


def evidence_loss(found: Mapping[str, Tensor], target: Mapping[str, Evidence]) -> Tensor:
    """Return how far each block is from what the responses say, in units of their uncertainty.

    .. math:: L_i = w_i \\, \\frac{1}{K_i} \\sum_{k=1}^{K_i}
              \\frac{(u_{ik}^T (CLIP_i(Y) - m_i) - \\hat s_{ik} / R^2_{ik})^2}
              {\\lambda_{ik} (1 - R^2_{ik}) / R^2_{ik}}

    with the authors' weights 1.5, 1.2, 1, 1, 1, 1, here normalised to sum 1: the sum over blocks
    is about one for the picture that was seen.

    Parameters
    ----------
    found : mapping of str to Tensor, shape (n, tokens, width)
    target : mapping of str to Evidence

    Returns
    -------
    Tensor, shape (n, n_blocks)
    """
    factors = _factors(len(target))
    losses = []
    for name, factor in zip(block_order(target), factors, strict=True):
        value, projection, split, _ = target[name]
        structure = found[name].flatten(1).to(value.dtype)
        loss = structure.new_zeros(len(structure))
        for number in split.unique():
            rows = torch.nonzero(split == number).flatten()
            error = structure[rows] @ projection[number] - value[rows]
            loss = loss.index_put((rows,), error.square().sum(1))
        losses.append(factor / sum(factors) * loss)
    return torch.stack(losses, dim=1)


def block_order(names: Iterable[str]) -> list[str]:
    """Sort "block_1", "block_2", … by number."""
    return sorted(names, key=lambda name: int(name.removeprefix("block_")))


def _factors(n: int) -> list[float]:
    return [*BLOCK_WEIGHTS, *[1.0] * n][:n]
