"""Stage 2 shared out: blocks of pictures that different processes or machines compute.

A shard is the chapter `04_stage2` for some of the pictures: it takes its settings from the
parameters of that chapter, and leaves one file for each run of stage 2 in `<subject>/shards`.
Before the chapter begins, `gather` puts them together as `reconstruct` would have written them; the
chapter finds its results whole and goes on.
"""

from collections.abc import Mapping
from contextlib import ExitStack, chdir
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from minddiff_utils.decoding.decode import read_decoded
from minddiff_utils.io import InputError, atomic_path, require
from minddiff_utils.models.stable_diffusion import load_generator
from minddiff_utils.reconstruction.inputs import ablate, pictures_of
from minddiff_utils.reconstruction.results import FILMS, describe, write_batches
from minddiff_utils.reconstruction.stage2 import stage2_rows
from minddiff_utils.settings import Settings
from minddiff_utils.storage import open_to_write, row_dataset


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
        raise InputError(f"shard {number} of {count}: expected a number from 1 to {count}.")
    batch, seed = parameters["batch"], parameters["seed"]
    with chdir(folder):
        out = Path(parameters["run_dir"]).resolve() / parameters["subject"]
        decoded = read_decoded(require(out / "decoded.h5", "02_decoding"))
        control = read_decoded(require(out / "decoded_shuffled.h5", "02_decoding"))
        starts = np.arange(0, len(decoded["stimulus_id"]), batch)
        count = min(count, len(starts))
        if number > count:
            return []
        names = ("models", "device", "dtype", "n_tokens", "guide", "save_memory")
        generator = load_generator(*(parameters[name] for name in names))
    known = {field.name for field in fields(Settings)} & parameters.keys()
    settings = Settings(**{name: parameters[name] for name in known})
    runs = {"trace": (decoded, settings), "trace_shuffled": (control, settings)}
    if parameters["ablations"]:
        parts = {f"trace_no_{part}": part for part in "zc"}
        runs |= {name: ablate(generator, decoded, settings, part) for name, part in parts.items()}
    block = np.array_split(starts, count)[number - 1]
    rows = slice(block[0], block[-1] + batch)
    files = []
    for name, (given, chosen) in runs.items():
        part, path = pictures_of(given, rows), out / "shards" / f"{name}-{number}-of-{count}.h5"
        compute = partial(stage2_rows, generator, part, chosen, seed)
        record, ids = describe(generator, given, chosen, seed), part["stimulus_id"]
        n_films, label = max(0, FILMS - rows.start), name.replace("_", " ")
        files.append(write_batches(path, ids, record, compute, batch, n_films, label))
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
            written += _join(parts, Path(folder) / f"{name}.h5")
    return written


def _join(parts: list[Path], path: Path) -> list[Path]:
    """Write one file from those of all blocks, a block at a time, if they belong together."""
    with ExitStack() as stack:
        pieces = [stack.enter_context(h5py.File(part, "r")) for part in parts]
        records = {piece.attrs["record"] for piece in pieces}
        if len(records) > 1:
            return []
        n_bytes = sum(part.stat().st_size for part in parts)
        temporary = stack.enter_context(atomic_path(path))
        file = stack.enter_context(open_to_write(temporary, "w", n_bytes))
        for name, first in pieces[0].items():
            ends = np.cumsum([0] + [len(piece[name]) for piece in pieces])
            joined = row_dataset(file, name, (int(ends[-1]), *first.shape[1:]), first.dtype)
            for piece, start, stop in zip(pieces, ends, ends[1:], strict=False):
                joined[start:stop] = piece[name][:]
        file.attrs["record"], file.attrs["done"] = records.pop(), len(file["stimulus_id"])
    return [path]
