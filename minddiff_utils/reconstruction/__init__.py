"""From decoded features to a picture: stage 1, stage 2, and their losses.

`stage1` paints a first picture; `stage2` corrects its structure, by `guided_sampling` or as the
paper does by `algorithm1`. `losses` says how far a picture is from what was decoded, `results`
writes and reads the files. Below, decoded features are turned into what both stages are given.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minddiff_utils.io import InputError
from minddiff_utils.models.stable_diffusion import Generator, noise_like
from minddiff_utils.reconstruction.losses import Arrays, Evidence, Target, block_order
from minddiff_utils.settings import Settings

# Decoded arrays that have a row for each split, not for each picture.
OF_SPLITS = ("projection_", "reliability_", "variance_")


class Inputs(NamedTuple):
    """What both stages are given of some pictures.

    Parameters
    ----------
    z : Tensor, shape (n, channels, h, w)
        Decoded latents.
    c : Tensor, shape (n, tokens, width)
        Decoded text condition.
    target : mapping of str to Evidence, or to Tensor, shape (n, tokens, width)
        For each block, "block_1" …: what the responses say about it, or where
        `settings.structure_target` is "values" its decoded values; NaN: not decoded.
    noise : Tensor, shape of `z`
        Fixed for each picture, so that stage 2 minimises one objective.
    z_evidence : Evidence, optional
        What the responses say about `z`, for the guided solver.
    """

    z: Tensor
    c: Tensor
    target: Target
    noise: Tensor
    z_evidence: Evidence | None = None


def stage_inputs(
    generator: Generator, decoded: Arrays, rows: slice, settings: Settings, seed: int = 0
) -> Inputs:
    """Return what the stages are given for some of the decoded stimuli.

    Parameters
    ----------
    generator : Generator
    decoded : mapping of str to array
        As for `reconstruct`. Where nothing says `c`, it is that of the empty caption.
    rows : slice
    settings : Settings
    seed : int
        Of the diffusion noise.

    Returns
    -------
    Inputs

    Raises
    ------
    InputError
        If there is no evidence that the settings ask for.
    """

    def tensor(values: np.ndarray) -> Tensor:
        values = np.asarray(values, np.float32)
        return torch.as_tensor(values, dtype=generator.dtype, device=generator.device)

    z = tensor(decoded["z"][rows])
    empty = generator.empty.to(z).repeat(len(z), 1, 1)
    c = tensor(decoded["c"][rows]) if "c" in decoded else empty

    def evidence(name: str, choice: str) -> Evidence:
        if f"evidence_{name}" not in decoded:
            raise InputError(
                f"There is no evidence_{name}: run 02_decoding again, or set {choice} instead."
            )
        value, projection = decoded[f"evidence_{name}"][rows], decoded[f"projection_{name}"]
        split = torch.as_tensor(decoded["split"][rows], device=generator.device)
        spread = tensor(decoded[f"variance_{name}"])
        return Evidence(tensor(value), tensor(projection), split, spread)

    blocks = block_order(name for name in decoded if name.startswith("block_"))
    if settings.structure_target == "values":
        target = {name: tensor(decoded[name][rows]) for name in blocks}
    else:
        choice = "structure_target='values'"
        target = {name: evidence(name.removeprefix("block_"), choice) for name in blocks}
    hears_z = settings.solver == "guided" and settings.z_evidence_weight > 0
    z_evidence = evidence("z", "z_evidence_weight=0") if hears_z else None
    return Inputs(z, c, target, noise_like(z, seed, decoded["stimulus_id"][rows]), z_evidence)


def pictures_of(decoded: Arrays, rows: slice | np.ndarray) -> dict[str, np.ndarray]:
    """Return what was decoded for some of the pictures, and what belongs to their splits."""
    return {k: v if k.startswith(OF_SPLITS) else v[rows] for k, v in decoded.items()}


def ablate(
    generator: Generator, decoded: Arrays, settings: Settings, part: str
) -> tuple[dict[str, np.ndarray], Settings]:
    """Take one decoded input away, as the paper's ablations do.

    Parameters
    ----------
    generator : Generator
    decoded : mapping of str to array
    settings : Settings
    part : {"z", "c"}
        Without `z` the picture begins from pure noise and passes as many steps as before (or the
        next fewer that span the schedule), and nothing moves its latent towards a decoded one.
        Without `c` nothing says it, and the condition is that of an empty caption.

    Returns
    -------
    decoded, settings
        To call `reconstruct` with.
    """
    if part == "c":
        return {name: values for name, values in decoded.items() if name != "c"}, settings
    before = len(generator.timesteps(settings.n_steps, settings.strength))
    steps = generator.spanning_steps(before)
    whole = replace(settings, n_steps=steps, strength=1.0, z_evidence_weight=0.0)
    return {**decoded, "z": np.zeros_like(decoded["z"])}, whole
