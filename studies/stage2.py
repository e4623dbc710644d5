"""Both solvers of stage 2 beside one another: cost, time and what comes out, in one process."""

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
from minddiff_utils.evaluation.metrics import evaluate, read_reconstructions
from minddiff_utils.evaluation.pictures import stored_pictures
from minddiff_utils.evaluation.statistics import paired_difference
from minddiff_utils.io import InputError, require
from minddiff_utils.models.stable_diffusion import Generator, load_generator
from minddiff_utils.reconstruction.inputs import pictures_of
from minddiff_utils.reconstruction.results import read_pictures
from minddiff_utils.reconstruction.stage2 import picture_losses, reconstruct
from minddiff_utils.settings import Settings
from studies.betas import peak_memory
from studies.held_out import METRICS, MODELS, embeddings
from studies.stored import solver_table, store_pictures

# Of both kinds of seconds those of the processor count where other programs share the machine.
SPENT = ["seconds", "processor_seconds", "equivalents"]
RUN, WORK = Path("runs/phantom/subj01"), Path("runs/bench/stage2")


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

    handles = [unet.register_forward_pre_hook(begin), unet.register_forward_hook(end)]
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()


def solver_settings(iterations: int = 300, steps: int = 50) -> dict[str, Settings]:
    """Return the settings of each solver: the defaults, and the published ones.

    The published loop has the strength and the guidance of the default, which fit the models, and
    keeps what its way back needs: computing it again would take a third longer.
    """
    paper = Settings(
        n_steps=steps,
        solver="algorithm_1",
        structure_target="values",
        iterations=iterations,
        learning_rate=0.01,
    )
    return {"guided": Settings(), "algorithm_1": paper}


def main(
    run: Annotated[Path, typer.Option(help="Folder of a subject whose chapters 02-03 ran.")] = RUN,
    pictures: Annotated[int, typer.Option(min=2, help="The first so many test pictures.")] = 16,
    iterations: Annotated[int, typer.Option(min=0, help="Of Algorithm 1.")] = 300,
    batch: Annotated[int, typer.Option(min=1)] = 8,
    models: Annotated[str, typer.Option(help="Folder or name.")] = str(MODELS),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    work: Annotated[Path, typer.Option(help="For results; a stopped run goes on.")] = WORK,
    out: Annotated[Path | None, typer.Option(help="For the table and the pictures.")] = None,
) -> None:
    """Run both solvers on the same pictures and decoded features; print cost and quality.

    Algorithm 1's 300 iterations take hours on a processor. With --out its pictures are written
    after every batch, and those that are there, made from the same decoded features, are not made
    again: so it can go on in another sitting, or on another machine. Seconds are counted over all
    sittings.
    """
    generator = load_generator(models, device, "float32")
    truth, _, ids = read_reconstructions(require(run / "reconstructions.h5", "03_stage1"))
    decoded = read_decoded(require(run / "decoded.h5", "02_decoding"))
    if not np.array_equal(ids, decoded["stimulus_id"]):
        raise InputError(f"{run}: decoded.h5 and reconstructions.h5 hold other stimuli; run 02-03.")
    solvers = solver_settings(iterations)
    # Pictures that were stored by an earlier sitting stay, whether asked for or not.
    kept = read_stored(out, run.name, decoded, iterations)[0] if out else {}
    rows = sorted({*range(min(pictures, len(ids))), *kept})
    decoded, truth = pictures_of(decoded, rows), truth[rows]
    embed = embeddings(generator, models, device)
    folder = work / run.name
    for made, spent in run_solvers(generator, decoded, solvers, folder, batch, out):
        table = compare_solvers(generator, decoded, truth, embed, solvers, made, spent)
        if out:
            out.mkdir(parents=True, exist_ok=True)
            table.rename_axis("solver").to_csv(out / f"solvers_{run.name}.csv", float_format="%.6g")
            (out / "solvers.md").write_text(solver_table(out), encoding="utf-8")
            command = f"python -m studies stage2 --run {run} --pictures {len(rows)}"
            about = f"`{command} --iterations {iterations} --out {out}`"
            done = sorted(made["algorithm_1"])
            painted = np.stack([made["algorithm_1"][row] for row in done])
            path = out / f"algorithm_1_{run.name}.h5"
            store_pictures(path, pictures_of(decoded, done), painted, about)
    print(table.T.to_string(float_format=lambda value: f"{value:.4g}"))


Made = dict[str, dict[int, np.ndarray]]  # of each solver, row → picture, uint8 (h, w, 3)
Spent = dict[str, dict[int, pd.Series]]  # … row → seconds, passes and peak memory


def run_solvers(
    generator: Generator,
    decoded: Mapping[str, np.ndarray],
    solvers: Mapping[str, Settings],
    work: Path,
    batch: int = 8,
    out: Path | None = None,
) -> Iterator[tuple[Made, Spent]]:
    """Run one solver after the other on the same pictures, a batch at a time.

    Parameters
    ----------
    generator : Generator
    decoded : mapping of str to array
        As for `reconstruct`.
    solvers : mapping of name to Settings
    work : Path
        Folder of the results, named after the subject, from which a stopped run goes on.
    batch : int
    out : Path, optional
        Folder from which pictures of Algorithm 1 are taken that are there (`read_stored`).

    Yields
    ------
    made, spent : dict of name to dict of row to picture, and to what it cost
        After each batch of the last solver, at least once.
    """
    made: Made = {}
    spent: Spent = {}
    for name, settings in solvers.items():
        made[name], spent[name] = {}, {}
        if name == "algorithm_1" and out:
            kept = read_stored(out, work.name, decoded, settings.iterations)
            made[name], spent[name] = kept
        left = [row for row in range(len(decoded["stimulus_id"])) if row not in made[name]]
        for start in range(0, max(1, len(left)), batch):
            rows = left[start : start + batch]
            if rows:
                path = work / name / f"{rows[0]}.h5"
                pictures, cost = _timed_batch(generator, pictures_of(decoded, rows), settings, path)
                made[name] |= zip(rows, pictures, strict=True)
                spent[name] |= dict.fromkeys(rows, cost)
            if name == list(solvers)[-1]:
                yield made, spent


def _timed_batch(generator, decoded, settings, path: Path) -> tuple[np.ndarray, pd.Series]:
    """Reconstruct a batch; what it cost, a picture, stays in a file beside the result."""
    n, record = len(decoded["stimulus_id"]), path.with_suffix(".csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    with count_unet(generator.unet) as count:
        began, worked = time.perf_counter(), time.process_time()
        reconstruct(generator, decoded, settings, path, batch=n, n_films=0)
        taken = time.perf_counter() - began, time.process_time() - worked
    if count.forward:
        row = dict(zip(SPENT, np.divide((*taken, count.equivalents), n), strict=True))
        pd.DataFrame([row | {"peak_gib": peak_memory() / 2**30}]).to_csv(record, index=False)
    return read_pictures(path), pd.read_csv(require(record, "python -m studies stage2")).iloc[0]


def read_stored(
    out: Path, subject: str, decoded: Mapping[str, np.ndarray], iterations: int
) -> tuple[dict[int, np.ndarray], dict[int, pd.Series]]:
    """Read the pictures of Algorithm 1 that an earlier sitting has stored.

    Parameters
    ----------
    out : Path
        Folder of `algorithm_1_<subject>.h5`, which may hold some of the pictures only, and of
        `solvers_<subject>.csv`, which says what each of them cost in the mean.
    subject : str
    decoded : mapping of str to array
    iterations : int

    Returns
    -------
    pictures, spent : dict of row of `decoded` to uint8 array (h, w, 3), and to Series
        Empty if none are there, or they follow from other decoded features or iterations.
    """
    path = out / f"algorithm_1_{subject}.h5"
    if not path.exists():
        return {}, {}
    with h5py.File(path) as file:
        ids = file["stimulus_id"][:]
    known = {int(number): row for row, number in enumerate(decoded["stimulus_id"])}
    rows = [known[number] for number in ids.tolist() if number in known]
    pictures, note = stored_pictures(path, pictures_of(decoded, rows))
    if pictures is None or f"--iterations {iterations} " not in note:
        print(f"{path} is not used: {note}")
        return {}, {}
    table = pd.read_csv(require(out / f"solvers_{subject}.csv", "python -m studies stage2"))
    cost = table.set_index("solver").reindex(["algorithm_1"])[[*SPENT, "peak_gib"]].iloc[0]
    return dict(zip(rows, pictures, strict=True)), dict.fromkeys(rows, cost)


def compare_solvers(
    generator: Generator,
    decoded: Mapping[str, np.ndarray],
    truth: np.ndarray,
    embed: Mapping[str, object],
    solvers: Mapping[str, Settings],
    made: Made,
    spent: Spent,
) -> pd.DataFrame:
    """Compare the pictures that all solvers have made, and what they cost.

    Parameters
    ----------
    generator : Generator
    decoded : mapping of str to array
    truth : uint8 array, shape (n, H, W, 3)
    embed : mapping of metric to function
    solvers : mapping of name to Settings
        The first is what the others are compared with.
    made, spent : dict
        From `run_solvers`.

    Returns
    -------
    DataFrame
        A row a solver: seconds on the clock, seconds of the processor and UNet
        forward-equivalents a picture, the peak memory of the process until then in GiB, structure
        loss at the end (for all, what the first one fits), the mean of every metric, and the mean
        paired difference of the first solver to it with its 95 % interval, `<metric>_gain`, `_low`,
        `_high`.
    """
    first = next(iter(solvers))
    rows = sorted(set.intersection(*(set(pictures) for pictures in made.values())))
    decoded = pictures_of(decoded, rows)
    painted = {name: np.stack([by_row[row] for row in rows]) for name, by_row in made.items()}
    values = evaluate(truth[rows], painted, decoded["stimulus_id"], embed)
    wide = values.pivot(index="stimulus_id", columns=["method", "metric"], values="value")
    table = {}
    for name, pictures in painted.items():
        costs = pd.DataFrame([spent[name][row] for row in rows])
        row = {**costs[SPENT].mean(), "peak_gib": costs.peak_gib.max()}
        losses = picture_losses(generator, decoded, pictures, solvers[first])
        row["loss"] = float(losses.sum(1).mean())
        for metric in METRICS:
            gain = paired_difference(wide[first, metric].to_numpy(), wide[name, metric].to_numpy())
            row[metric] = wide[name, metric].mean()
            row |= {f"{metric}_gain": gain["mean"], f"{metric}_low": gain["low"]}
            row[f"{metric}_high"] = gain["high"]
        table[name] = row
    return pd.DataFrame.from_dict(table, orient="index")
