"""Stage 2 of MindDiffuser (Lu et al. 2023): correct the structure, of one batch, of all, in shards.

A shard is the chapter `04_stage2` for some of the pictures, which one process or machine computes:
it takes its settings from the parameters of that chapter, and leaves one file for each run of stage
2 in `<subject>/shards`. Before the chapter begins, `gather` puts them together as `reconstruct`
would have written them; the chapter finds its results whole and goes on.
"""

from collections.abc import Mapping
from contextlib import ExitStack, chdir
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import torch

from minddiff_utils import io
from minddiff_utils.decoding.decode import read_decoded
from minddiff_utils.models.stable_diffusion import Generator, load_generator
from minddiff_utils.reconstruction import Inputs, ablate, pictures_of, results, stage_inputs
from minddiff_utils.reconstruction.algorithm1 import algorithm_1
from minddiff_utils.reconstruction.guided_sampling import guided_pass
from minddiff_utils.reconstruction.losses import Arrays, structure_losses
from minddiff_utils.settings import FULL_METHODS, Settings


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
    n_kept: int = results.KEPT,
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
    n_kept : int
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
    record = results.describe(generator, decoded, settings, seed, n_kept)
    ids = decoded["stimulus_id"]
    return results.write_batches(path, ids, record, compute, batch, n_kept, label)


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


# --- shards --------------------------------------------------------------------------------


def compute_shard(
    parameters: Mapping[str, Any], number: int, count: int, folder: str | Path = "."
) -> list[Path]:
    """Compute every run of stage 2 for one block of pictures; go on where it was stopped.

    Parameters
    ----------
    parameters : mapping of str
        All parameters of the chapter `04_stage2`.
    number, count : int
        Which shard, from 1, of how many. Batches stay whole, so that nothing rounds otherwise.
    folder : str or Path
        What relative paths among the parameters count from: that of the notebooks.

    Returns
    -------
    list of Path
        The files of the shard; none where there are fewer batches than shards.

    Raises
    ------
    InputError
        If there is no such shard, or an earlier chapter has not run.
    """
    if not 1 <= number <= count:
        raise io.InputError(f"shard {number} of {count}: expected a number from 1 to {count}.")
    batch, seed = parameters["batch"], parameters["seed"]
    with chdir(folder):
        out = Path(parameters["run_dir"]).resolve() / parameters["subject"]
        decoded = read_decoded(io.require(out / "decoded.h5", "02_decoding"))
        control = read_decoded(io.require(out / "decoded_shuffled.h5", "02_decoding"))
        starts = np.arange(0, len(decoded["stimulus_id"]), batch)
        count = min(count, len(starts))
        if number > count:
            return []
        names = ("models", "device", "dtype", "n_tokens", "guide", "save_memory")
        generator = load_generator(*(parameters[name] for name in names))
    settings = Settings.of(SimpleNamespace(**parameters))
    full = FULL_METHODS[settings.solver]
    runs = {full: (decoded, settings, seed), "shuffled": (control, settings, seed)}
    for other in range(seed + 1, seed + parameters["n_seeds"]):
        runs[f"{full}_seed_{other}"] = (decoded, settings, other)
    for part in "zc" if parameters["ablations"] else "":
        runs[f"no_{part}"] = (*ablate(generator, decoded, settings, part), seed)
    block = np.array_split(starts, count)[number - 1]
    rows = slice(block[0], block[-1] + batch)
    files = []
    for name, (given, chosen, noise) in runs.items():
        part, path = pictures_of(given, rows), out / "shards" / f"{name}-{number}-of-{count}.h5"
        compute = partial(stage2_rows, generator, part, chosen, noise)
        record, ids = results.describe(generator, given, chosen, noise), part["stimulus_id"]
        n_kept, label = max(0, results.KEPT - rows.start), name.replace("_", " ")
        files.append(results.write_batches(path, ids, record, compute, batch, n_kept, label))
    return files


def gather(folder: str | Path) -> list[Path]:
    """Put the shards of a subject together, as `reconstruct` would have written them.

    Parameters
    ----------
    folder : str or Path
        The subject's. Of each run of stage 2 whose shards are all there and were made from the
        same inputs, models and settings, the file is written; the shards stay.

    Returns
    -------
    list of Path
        The files that were written.
    """
    written = []
    for first in sorted(Path(folder).glob("shards/*-1-of-*.h5")):
        name, _, _, count = first.stem.split("-")
        parts = [first.with_name(f"{name}-{k + 1}-of-{count}.h5") for k in range(int(count))]
        if all(part.exists() for part in parts):
            written += _join(parts, io.method_file(folder, name))
    return written


def _join(parts: list[Path], path: Path) -> list[Path]:
    """Write one file from those of all blocks, a block at a time, if they belong together."""
    with ExitStack() as stack:
        pieces = [stack.enter_context(h5py.File(part, "r")) for part in parts]
        records = {piece.attrs["record"] for piece in pieces}
        if len(records) > 1:
            return []
        n_bytes = sum(part.stat().st_size for part in parts)
        temporary = stack.enter_context(io.atomic_path(path))
        file = stack.enter_context(io.open_to_write(temporary, "w", n_bytes))
        for name, first in pieces[0].items():
            ends = np.cumsum([0] + [len(piece[name]) for piece in pieces])
            joined = io.row_dataset(file, name, (int(ends[-1]), *first.shape[1:]), first.dtype)
            for piece, start, stop in zip(pieces, ends, ends[1:], strict=False):
                joined[start:stop] = piece[name][:]
        file.attrs["record"], file.attrs["done"] = records.pop(), len(file["stimulus_id"])
    return [path]
