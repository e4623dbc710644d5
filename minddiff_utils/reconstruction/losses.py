"""How far a picture's structure is from what was decoded: the paper's loss, and this book's."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch

# Weights of the six blocks relative to one another in the authors' code.
BLOCK_WEIGHTS = (1.5, 1.2, 1.0, 1.0, 1.0, 1.0)


def structure_weights(target: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weight each block by the inverse length of its target, normalised to sum 1.

    As in the authors' code, times [1.5, 1.2, 1, 1, 1, 1] for blocks 1 to 6.

    Parameters
    ----------
    target : mapping of str to Tensor, shape (n, …)
        Decoded structure; NaN where a value was not decoded.

    Returns
    -------
    dict of str to Tensor, shape (n,)
    """
    names = block_order(target)
    inverse = [1 / torch.nan_to_num(target[name]).flatten(1).norm(dim=1) for name in names]
    total = torch.stack(inverse).sum(0)
    extra = [*BLOCK_WEIGHTS, *[1.0] * len(names)]
    return {
        name: factor * value / total
        for name, value, factor in zip(names, inverse, extra, strict=False)
    }


def structure_loss(
    found: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Return the weighted squared error of every block, over the values that were decoded.

    .. math:: L_i = w_i \\, \\frac{1}{|M_i|} \\sum_{m \\in M_i} (CLIP_i(Y)_m - \\hat Z_{i,m})^2

    Parameters
    ----------
    found, target : mappings of str to Tensor, shape (n, …)
        Of the generated picture and decoded from the brain; NaN in `target`: not decoded.

    Returns
    -------
    Tensor, shape (n, n_blocks)
        Their sum over blocks is the loss of a picture.
    """
    weights = structure_weights(target)
    losses = []
    for name, weight in weights.items():
        decoded = torch.isfinite(target[name])
        error = torch.where(decoded, found[name] - torch.nan_to_num(target[name]), 0.0)
        n = decoded.flatten(1).sum(1).clamp(min=1)
        losses.append(weight * error.square().flatten(1).sum(1) / n)
    return torch.stack(losses, dim=1)


class Evidence(NamedTuple):
    """What the responses say about one block of some pictures; see `components.evidence`.

    Parameters
    ----------
    value : Tensor, shape (n, n_components)
    projection : Tensor, shape (n_splits, n_values, n_components)
    split : Tensor of int64, shape (n,)
        The split each picture is a test picture of.
    """

    value: torch.Tensor
    projection: torch.Tensor
    split: torch.Tensor


class Belief(NamedTuple):
    """What the responses say about the latent `z` of some pictures, component by component.

    Parameters
    ----------
    value : Tensor, shape (n, n_components)
        Most likely score of each component, :math:`\\hat s / R^2` above the projected mean.
    basis : Tensor, shape (n_splits, n_values, n_components)
        Orthonormal; columns that say nothing are zero.
    variance : Tensor, shape (n_splits, n_components)
        Of the score given the responses alone; infinite where they say nothing.
    spread : Tensor, shape (n_splits, n_components)
        Variance of the score over the training pictures.
    split : Tensor of int64, shape (n,)
    """

    value: torch.Tensor
    basis: torch.Tensor
    variance: torch.Tensor
    spread: torch.Tensor
    split: torch.Tensor


def belief_from(evidence: Evidence, spread: torch.Tensor) -> Belief:
    """Undo the scaling of `components.evidence`, which made a mean of squares a plain sum.

    Parameters
    ----------
    evidence : Evidence
        About `z`. A column of its projection has the length :math:`1 / \\sqrt{K v_k}`.
    spread : Tensor, shape (n_splits, n_components)
        Variance of each score over the training pictures.

    Returns
    -------
    Belief
    """
    length = evidence.projection.norm(dim=1)
    told = length > 0
    n = told.sum(1, keepdim=True)
    variance = torch.where(told, 1 / (n * length.square()), torch.inf)
    safe = torch.where(told, length, 1.0)
    basis = evidence.projection / safe[:, None]
    return Belief(evidence.value / safe[evidence.split], basis, variance, spread, evidence.split)


def evidence_loss(
    found: Mapping[str, torch.Tensor], target: Mapping[str, Evidence]
) -> torch.Tensor:
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
    names = block_order(target)
    losses = []
    for name, weight in zip(names, _block_weights(len(names)), strict=True):
        value, projection, split = target[name]
        structure = found[name].flatten(1).to(value.dtype)
        loss = structure.new_zeros(len(structure))
        for number in split.unique():
            rows = torch.nonzero(split == number).flatten()
            error = structure[rows] @ projection[number] - value[rows]
            loss = loss.index_put((rows,), error.square().sum(1))
        losses.append(weight * loss)
    return torch.stack(losses, dim=1)


def block_order(names: Iterable[str]) -> list[str]:
    """Sort "block_1", "block_2", … by number."""
    return sorted(names, key=lambda name: int(name.removeprefix("block_")))


def _block_weights(n: int) -> list[float]:
    weights = [*BLOCK_WEIGHTS, *[1.0] * n][:n]
    return [weight / sum(weights) for weight in weights]
