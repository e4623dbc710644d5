"""Stage 2 of MindDiffuser (Lu et al. 2023): correct the structure, of one batch and of all."""

from functools import partial
from pathlib import Path

import numpy as np
import torch

from minddiff_utils.models.stable_diffusion import Generator
from minddiff_utils.reconstruction import results
from minddiff_utils.reconstruction.algorithm1 import algorithm_1
from minddiff_utils.reconstruction.guided_sampling import guided_pass
from minddiff_utils.reconstruction.inputs import Inputs, stage_inputs
from minddiff_utils.reconstruction.losses import Arrays, structure_losses
from minddiff_utils.settings import Settings


def stage2(generator: Generator, inputs: Inputs, settings: Settings) -> results.Reconstruction:
    """Correct pictures until their structure matches the decoded one.

    Parameters
    ----------
    generator : Generator
    inputs : Inputs
        From `stage_inputs`.
    settings : Settings
        Its `solver` is "guided" (`guided_sampling.guided_pass`) or "algorithm_1"
        (`algorithm1.algorithm_1`).

    Returns
    -------
    Reconstruction
        Every picture's result depends on its own row alone.
    """
    if settings.solver == "algorithm_1":
        return algorithm_1(generator, inputs, settings)
    z_0, iterates, losses = guided_pass(generator, inputs, settings)
    with torch.no_grad():
        picture = generator.decode(z_0)
        loss = structure_losses(generator, picture, inputs.target, settings)
    return results.choose_iterates([*iterates, picture], [*losses, loss])


def reconstruct(
    generator: Generator,
    decoded: Arrays,
    settings: Settings,
    path: str | Path,
    *,
    seed: int = 0,
    batch: int = 8,
    n_films: int = results.FILMS,
    label: str = "stage 2",
) -> Path:
    """Run stage 2 on all decoded stimuli, a batch at a time; go on where a run stopped.

    Parameters
    ----------
    generator : Generator
    decoded : mapping of str to array, shape (n, …)
        What `read_decoded` returns: `stimulus_id`, `z`, `c`, and the structure: "block_1" … with
        NaN where a value was not decoded, or "evidence_1", "projection_1" … and "split".
    settings : Settings
    path : str or Path
        HDF5 file of the results, as `results.write_batches` describes it; one that is whole and
        was made from the same inputs, models and settings is left as it is.
    seed : int
        Of the diffusion noise.
    batch : int
        Pictures at a time; the result does not depend on it beyond rounding.
    n_films : int
        Of the first so many pictures every iterate is kept.
    label : str
        Name of the progress bar.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        If there is no room on the disk.
    """
    compute = partial(stage2_rows, generator, decoded, settings, seed)
    record = results.describe(generator, decoded, settings, seed, n_films)
    ids = decoded["stimulus_id"]
    return results.write_batches(path, ids, record, compute, batch, n_films, label)


def stage2_rows(
    generator: Generator, decoded: Arrays, settings: Settings, seed: int, rows: slice
) -> results.Reconstruction:
    """Run stage 2 on some of the decoded stimuli; parameters as for `stage_inputs`."""
    return stage2(generator, stage_inputs(generator, decoded, rows, settings, seed), settings)


@torch.no_grad()
def picture_losses(
    generator: Generator, decoded: Arrays, pictures: np.ndarray, settings: Settings, batch: int = 8
) -> np.ndarray:
    """Return the structure loss of pictures that something else made.

    Parameters
    ----------
    generator : Generator
    decoded : mapping of str to array
        As for `reconstruct`.
    pictures : uint8 array, shape (n, H, W, 3)
    settings : Settings
    batch : int

    Returns
    -------
    float32 array, shape (n, n_blocks)
    """
    found = []
    for start in range(0, len(pictures), batch):
        rows = slice(start, start + batch)
        target = stage_inputs(generator, decoded, rows, settings).target
        rgb = generator.prepare(pictures[rows])
        found.append(structure_losses(generator, rgb, target, settings))
    return torch.cat(found).float().cpu().numpy()
