"""Stage 2 shared out: blocks of pictures that different processes or machines compute.

A shard is the chapter `04_stage2` for some of the pictures. It takes its settings from the job of
that chapter, so that they are written in one place, and leaves one file for each run of stage 2 in
`<subject>/shards`. Before the chapter begins, `gather` puts them together as `reconstruct` would
have written them; the chapter finds its results whole and goes on.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, chdir
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from minddiff_utils.decoding.decode import read_decoded
from minddiff_utils.io import InputError, atomic_path, require
from minddiff_utils.models.stable_diffusion import Generator, load_generator
from minddiff_utils.reconstruction.stages import FILMS, ablate, describe, reconstruct
from minddiff_utils.settings import Settings
from minddiff_utils.storage import open_to_write

FOLDER = "shards"  # in a subject's folder
# Decoded arrays that have a row for each split, not for each picture.
OF_SPLITS = ("projection_", "reliability_", "variance_")
NAME = re.compile(r"(?P<run>\w+)-(?P<number>\d+)-of-(?P<count>\d+)\.h5")


@dataclass(frozen=True)
class Run:
    """One run of stage 2: the name of its file, what it begins from, how it goes."""

    name: str
    decoded: Mapping[str, np.ndarray]
    settings: Settings


def blocks(n: int, batch: int, count: int) -> list[slice]:
    """Share out `n` pictures in their order; batches stay whole, so that nothing rounds otherwise.

    Parameters
    ----------
    n : int
        Pictures.
    batch : int
        Pictures that are computed together.
    count : int
        Shards wanted.

    Returns
    -------
    list of slice
        As even as batches allow; no more than there are batches.

    Raises
    ------
    InputError
        If a number is not positive.
    """
    if min(n, batch, count) < 1:
        given = f"{n} pictures, batch={batch}, shards={count}"
        raise InputError(f"{given}: expected 1 or more of each.")
    n_batches = -(-n // batch)
    count = min(count, n_batches)
    borders = [batch * (n_batches * k // count) for k in range(count)] + [n]
    return [slice(*pair) for pair in zip(borders, borders[1:], strict=False)]


def stage2_runs(
    generator: Generator,
    decoded: Mapping[str, np.ndarray],
    control: Mapping[str, np.ndarray],
    settings: Settings,
    ablations: bool,
) -> Iterator[Run]:
    """Yield what the chapter runs stage 2 on: the result, the ablations, the control.

    Parameters
    ----------
    generator : Generator
    decoded, control : mapping of str to array
        What `read_decoded` returns, from the responses and from shuffled ones.
    settings : Settings
    ablations : bool
        Whether stage 2 also runs without `z` and without `c`.
    """
    yield Run("trace", decoded, settings)
    for part in ["z", "c"] * ablations:
        yield Run(f"trace_no_{part}", *ablate(generator, decoded, settings, part))
    yield Run("trace_shuffled", control, settings)


def compute_shard(
    parameters: Mapping[str, Any], number: int, count: int, folder: str | Path = "."
) -> list[Path]:
    """Compute every run of stage 2 for one block of pictures; go on where it was stopped.

    Parameters
    ----------
    parameters : mapping of str
        All parameters of the chapter `04_stage2`.
    number, count : int
        Which shard, from 1, of how many.
    folder : str or Path
        What relative paths among the parameters count from: that of the notebooks.

    Returns
    -------
    list of Path
        The files that were computed; a run that is whole already, or a shard without pictures,
        needs none.

    Raises
    ------
    InputError
        If there is no such shard, or an earlier chapter has not run.
    """
    if not 1 <= number <= count:
        raise InputError(f"shard {number} of {count}: expected a number from 1 to {count}.")
    with chdir(folder):
        given, batch, seed = parameters, parameters["batch"], parameters["seed"]
        out = Path(given["run_dir"]).resolve() / given["subject"]
        decoded = read_decoded(require(out / "decoded.h5", "02_decoding"))
        control = read_decoded(require(out / "decoded_shuffled.h5", "02_decoding"))
        shared = blocks(len(decoded["stimulus_id"]), batch, count)
        if number > len(shared):
            return []
        names = ("models", "device", "dtype", "n_tokens", "guide", "save_memory")
        generator = load_generator(*(given[name] for name in names))
        known = {field.name for field in fields(Settings)} & given.keys()
        settings = Settings(**{name: given[name] for name in known})
        runs = stage2_runs(generator, decoded, control, settings, given["ablations"])
        place = (number, shared)
        files = [_compute(generator, run, out, place, seed, batch) for run in runs]
    return [path for path in files if path]


def _compute(
    generator: Generator, run: Run, out: Path, place: tuple[int, list[slice]], seed: int, batch: int
) -> Path | None:
    """One run of stage 2 for one block."""
    number, shared = place
    whole = describe(generator, run.decoded, run.settings, seed)
    if _attribute(out / f"{run.name}.h5", "record") == whole:
        return None
    rows = shared[number - 1]
    path = reconstruct(
        generator,
        pictures_of(run.decoded, rows),
        run.settings,
        out / FOLDER / f"{run.name}-{number}-of-{len(shared)}.h5",
        seed=seed,
        batch=batch,
        n_films=max(0, FILMS - rows.start),
        label=run.name.replace("_", " "),
    )
    with open_to_write(path, "a") as file:
        file.attrs["whole"] = whole
    return path


def pictures_of(decoded: Mapping[str, np.ndarray], rows: slice) -> dict[str, np.ndarray]:
    """Return what was decoded for some of the pictures, and what belongs to their splits."""
    return {
        name: values if name.startswith(OF_SPLITS) else values[rows]
        for name, values in decoded.items()
    }


def _attribute(path: Path, name: str) -> str | None:
    try:
        with h5py.File(path, "r") as file:
            return file.attrs.get(name)
    except OSError:
        return None


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
    folder = Path(folder)
    sets: dict[tuple[str, int], dict[int, Path]] = {}
    for path in (folder / FOLDER).glob("*.h5"):
        if found := NAME.fullmatch(path.name):
            key = found["run"], int(found["count"])
            sets.setdefault(key, {})[int(found["number"])] = path
    written = []
    for (name, count), parts in sorted(sets.items()):
        records = {_attribute(path, "whole") for path in parts.values()}
        if len(parts) == count and len(records) == 1 and None not in records:
            ordered = [parts[number] for number in sorted(parts)]
            written.append(_join(ordered, folder / f"{name}.h5", records.pop()))
    return written


def _join(parts: list[Path], path: Path, record: str) -> Path:
    """Write one file from those of all blocks, a block at a time."""
    with ExitStack() as stack:
        pieces = [stack.enter_context(h5py.File(part, "r")) for part in parts]
        n_bytes = sum(part.stat().st_size for part in parts)
        file = open_to_write(stack.enter_context(atomic_path(path)), "w", n_bytes)
        stack.enter_context(file)
        for name, first in pieces[0].items():
            ends = np.cumsum([0] + [len(piece[name]) for piece in pieces])
            joined = file.create_dataset(name, (ends[-1], *first.shape[1:]), first.dtype)
            for piece, start, stop in zip(pieces, ends, ends[1:], strict=False):
                joined[start:stop] = piece[name][:]
        file.attrs["record"] = record
        file.attrs["done"] = len(file["stimulus_id"])
    path.with_name(path.name + ".partial").unlink(missing_ok=True)
    return path
