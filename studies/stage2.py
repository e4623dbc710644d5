"""Stage 2 as published, on the test pictures of a run, and what both solvers cost."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import h5py
import numpy as np
import pandas as pd
import torch
import typer

from minddiff_utils.decoding.decode import read_decoded
from minddiff_utils.evaluation.baselines import stored_pictures
from minddiff_utils.io import InputError, atomic_path, require
from minddiff_utils.models.clip import to_pictures
from minddiff_utils.models.stable_diffusion import Generator, load_generator, noise_like
from minddiff_utils.reconstruction import pictures_of, stage_inputs
from minddiff_utils.reconstruction.stage2 import stage2
from minddiff_utils.settings import Settings
from studies.betas import peak_memory
from studies.held_out import MODELS
from studies.stored import solver_table, store_pictures

RUN, OUT = Path("runs/phantom/subj01"), Path("book/results")


@dataclass
class UnetCount:
    """Passes of the UNet, one picture and one condition each; a way back counts as two."""

    forward: int = 0
    backward: int = 0

    @property
    def equivalents(self) -> int:
        """In units of one forward pass."""
        return self.forward + 2 * self.backward


@contextmanager
def count_unet(unet: torch.nn.Module) -> Iterator[UnetCount]:
    """Count the passes of a UNet; one that is computed again on the way back counts again."""
    count = UnetCount()

    def back(gradient: torch.Tensor) -> None:
        count.backward += len(gradient)

    def begin(module, given) -> None:
        # Before the pass: one that is computed again may stop before its end.
        count.forward += len(given[0])

    def end(module, given, out) -> None:
        if out.sample.requires_grad:
            out.sample.register_hook(back)

    with unet.register_forward_pre_hook(begin), unet.register_forward_hook(end):
        yield count


def solver_settings(iterations: int = 300, steps: int = 50) -> dict[str, Settings]:
    """Return the settings of each solver: the defaults, and the published ones.

    The published loop has the strength and the guidance of the default, which fit the models, and
    keeps what its way back needs: computing it again would take a third longer.
    """
    paper = Settings(
        n_steps=steps, solver="algorithm_1", structure_target="values", iterations=iterations
    )
    return {"guided": Settings(), "algorithm_1": paper}


def main(
    run: Annotated[Path, typer.Option(help="Folder of a subject whose chapter 02 ran.")] = RUN,
    seeds: Annotated[int, typer.Option(min=1, help="Draws of the noise.")] = 3,
    iterations: Annotated[int, typer.Option(min=0, help="Of Algorithm 1.")] = 300,
    batch: Annotated[int, typer.Option(min=1, help="Pictures at a time, with all draws.")] = 8,
    models: Annotated[str, typer.Option(help="Folder or name.")] = str(MODELS),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    timed: Annotated[int, typer.Option(min=0, help="Only time so many pictures.")] = 0,
    out: Annotated[Path, typer.Option(help="For the pictures, and the table.")] = OUT,
) -> None:
    """Make the pictures of Algorithm 1 as published for all test stimuli of a run, and keep them.

    They take hours on a processor and minutes on a GPU. They are written after every batch, and
    those that are there, made from the same decoded features, are not made again: so this can go on
    in another sitting, or on another machine. With --timed, the first so many pictures are made by
    both solvers, from one draw, and only what that takes is kept.
    """
    generator = load_generator(models, device, "float32")
    decoded = read_decoded(require(run / "decoded.h5", "02_decoding"))
    decoded["c"] = decoded.pop("c_unstretched", decoded["c"])  # as published
    out.mkdir(parents=True, exist_ok=True)
    if timed:
        few = pictures_of(decoded, slice(timed))
        table = time_solvers(generator, few, solver_settings(iterations))
        with atomic_path(out / "solvers.csv") as temporary:
            table.to_csv(temporary, float_format="%.6g")
        (out / "solvers.md").write_text(solver_table(out), encoding="utf-8")
        print(table.to_string(float_format=lambda value: f"{value:.4g}"))
        return
    settings = solver_settings(iterations)["algorithm_1"]
    path = out / f"algorithm_1_{run.name}.h5"
    how = f"--seeds {seeds} --iterations {iterations}"
    where = torch.cuda.get_device_name() if generator.device.type == "cuda" else "a processor"
    about = f"`python -m studies stage2 --run {run} {how}`, on {where}"
    made = read_stored(path, decoded, how)
    left = [row for row in range(len(decoded["stimulus_id"])) if row not in made]
    for start in range(0, len(left), batch):
        rows = left[start : start + batch]
        drawn = draw(generator, pictures_of(decoded, rows), settings, seeds)
        made |= zip(rows, drawn, strict=True)
        done = sorted(made)
        pictures = np.stack([made[row] for row in done])
        store_pictures(path, pictures_of(decoded, done), pictures, about)
        print(f"{path}: {len(done)} of {len(decoded['stimulus_id'])} pictures", flush=True)


def draw(
    generator: Generator, decoded: Mapping[str, np.ndarray], settings: Settings, seeds: int
) -> np.ndarray:
    """Run stage 2 on all given pictures at once, from several draws of the noise.

    Returns
    -------
    uint8 array, shape (n, seeds, h, w, 3)
        A picture and a draw do not depend on the others beyond rounding.

    Raises
    ------
    InputError
        If one failed (`Reconstruction.failed`): what is kept enters tables without a word.
    """
    ids = decoded["stimulus_id"]
    n = len(ids)
    repeated = pictures_of(decoded, np.tile(np.arange(n), seeds))
    inputs = stage_inputs(generator, repeated, slice(None), settings)
    noise = [noise_like(inputs.z[:n], seed, ids) for seed in range(seeds)]
    result = stage2(generator, inputs._replace(noise=torch.cat(noise)), settings)
    if result.failed.any():
        raise InputError(f"Some of the pictures {ids.tolist()} failed: none of them is kept.")
    pictures = to_pictures(result.pictures)
    return pictures.reshape(seeds, n, *pictures.shape[1:]).swapaxes(0, 1)


def read_stored(path: Path, decoded: Mapping[str, np.ndarray], how: str) -> dict[int, np.ndarray]:
    """Read the pictures of Algorithm 1 that an earlier sitting has stored.

    Parameters
    ----------
    path : Path
        `algorithm_1_<subject>.h5`, which may hold some of the pictures only.
    decoded : mapping of str to array
    how : str
        A part of what the file says about itself; other pictures are not taken.

    Returns
    -------
    dict of row of `decoded` to uint8 array (seeds, h, w, 3)
        Empty if none are there, or they follow from other features or were made in another way.
    """
    if not path.exists():
        return {}
    with h5py.File(path) as file:
        rows = np.flatnonzero(np.isin(decoded["stimulus_id"], file["stimulus_id"]))
    pictures, note = stored_pictures(path, pictures_of(decoded, rows))
    if pictures is None or how not in note:
        print(f"{path} is not used: {note}")
        return {}
    return dict(zip(rows.tolist(), pictures, strict=True))


def time_solvers(
    generator: Generator, decoded: Mapping[str, np.ndarray], solvers: Mapping[str, Settings]
) -> pd.DataFrame:
    """Measure what each solver takes for a picture.

    Parameters
    ----------
    generator : Generator
    decoded : mapping of str to array
        Of the pictures, worked on at once.
    solvers : mapping of name to Settings

    Returns
    -------
    DataFrame
        A row a solver: UNet forward-equivalents, seconds of the processor and on the clock, each of
        one picture, and the peak memory of the process until then in GiB. Where other programs
        share the machine, those of the processor count.
    """
    table, n = {}, len(decoded["stimulus_id"])
    for name, settings in solvers.items():
        with count_unet(generator.unet) as count:
            began, worked = time.perf_counter(), time.process_time()
            draw(generator, decoded, settings, 1)
            taken = time.process_time() - worked, time.perf_counter() - began
        table[name] = [count.equivalents / n, *(s / n for s in taken), peak_memory() / 2**30]
    columns = ["equivalents", "processor_seconds", "seconds", "peak_gib"]
    return pd.DataFrame.from_dict(table, "index", columns=columns).rename_axis("solver")
