"""Both solvers of stage 2 beside one another: cost, time and what comes out, in one process."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import pandas as pd
import typer

from minddiff_utils.io import InputError, atomic_path, require

if TYPE_CHECKING:
    import torch

# Of both kinds of seconds those of the processor count where other programs share the machine.
SPENT = ("seconds", "processor_seconds", "equivalents")
METRICS = ("clip_judge", "clip_guide", "ssim", "pcc")
MODELS = Path(__file__).parents[1] / "minddiff_utils" / "phantom" / "weights"


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
def count_unet(unet: "torch.nn.Module") -> Iterator[UnetCount]:
    """Count the passes of a UNet; one that is computed again on the way back counts again."""
    count = UnetCount()

    def back(gradient: "torch.Tensor") -> None:
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


def solver_settings(iterations: int, steps: int) -> dict:
    """Return the settings of each solver: the defaults, and the published ones.

    The published loop has the strength and the guidance of the default, which fit the models, and
    keeps what its way back needs: computing it again would take a third longer.
    """
    from minddiff_utils.settings import Settings

    paper = Settings(
        n_steps=steps,
        solver="algorithm_1",
        structure_target="values",
        iterations=iterations,
        learning_rate=0.01,
    )
    return {"guided": Settings(), "algorithm_1": paper}


def main(
    size: Annotated[
        str, typer.Option(help="phantom: cost and quality; sd14: cost at 512 × 512 pixels.")
    ] = "phantom",
    run: Annotated[Path, typer.Option(help="Folder of a subject whose chapters 02-03 ran.")] = Path(
        "runs/phantom/subj01"
    ),
    pictures: Annotated[int, typer.Option(min=2, help="The first so many test pictures.")] = 16,
    iterations: Annotated[int, typer.Option(min=0, help="Of Algorithm 1.")] = 300,
    steps: Annotated[int, typer.Option(min=1, help="Of the paper's whole schedule.")] = 50,
    batch: Annotated[int, typer.Option(min=1)] = 8,
    models: Annotated[str, typer.Option(help="Folder or name.")] = str(MODELS),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16.")] = "float32",
    work: Annotated[Path, typer.Option(help="For results; a stopped run goes on.")] = Path(
        "runs/bench/stage2"
    ),
    out: Annotated[
        Path | None, typer.Option(help="Folder for a small table and the published pictures.")
    ] = None,
    batches: Annotated[str, typer.Option(help="Of sd14 on a GPU, with commas.")] = "1,2,4,8",
    small: Annotated[bool, typer.Option(help="Of sd14: a miniature, to see it run.")] = False,
) -> None:
    """Run both solvers on the same pictures and decoded features; print cost and quality.

    Algorithm 1's 300 iterations take hours on a processor. Seconds are counted over all sittings.
    `--size sd14`: what both cost with Stable Diffusion, with random weights, no quality.
    """
    if size not in ("phantom", "sd14"):
        raise InputError(f"--size {size}: expected phantom or sd14.")
    if size == "sd14":
        from studies.stage2_cost import print_cost

        print_cost(device, dtype, [int(n) for n in batches.split(",")], small)
        return
    from minddiff_utils.decoding.decode import read_decoded
    from minddiff_utils.evaluation.metrics import read_reconstructions
    from minddiff_utils.models.hub import clip_name
    from minddiff_utils.models.stable_diffusion import load_clip, load_generator
    from minddiff_utils.reconstruction.results import read_pictures
    from minddiff_utils.reconstruction.shards import pictures_of
    from studies.stored import solver_table, store_pictures

    generator = load_generator(models, device, dtype)
    judge = load_clip(clip_name(models, "judge"), device, dtype)
    truth, _, ids = read_reconstructions(require(run / "reconstructions.h5", "03_stage1"))
    decoded = read_decoded(require(run / "decoded.h5", "02_decoding"))
    if not np.array_equal(ids, decoded["stimulus_id"]):
        raise InputError(f"{run}: decoded.h5 and reconstructions.h5 hold other stimuli; run 02-03.")
    embed = {"clip_judge": judge.embed, "clip_guide": generator.guide.embed}
    decoded = pictures_of(decoded, slice(pictures))
    table = compare_solvers(
        generator,
        decoded,
        truth[:pictures],
        embed,
        solver_settings(iterations, steps),
        work / run.name,
        batch,
    )
    print(table.T.to_string(float_format=lambda value: f"{value:.4g}"))
    ratio = table.loc["algorithm_1"] / table.loc["guided"]
    seconds, cost = ratio["seconds"], ratio["equivalents"]
    print(f"paper / fast: {seconds:.0f} times the seconds, {cost:.0f} times the passes")
    if out:
        out.mkdir(parents=True, exist_ok=True)
        table.rename_axis("solver").to_csv(out / f"solvers_{run.name}.csv", float_format="%.6g")
        (out / "solvers.md").write_text(solver_table(out), encoding="utf-8")
        command = f"python -m studies stage2 --run {run} --pictures {len(truth[:pictures])}"
        about = f"`{command} --iterations {iterations} --steps {steps} --out {out}`"
        made = read_pictures(work / run.name / "paper.h5")
        store_pictures(out / f"algorithm_1_{run.name}.h5", decoded, made, about)


def compare_solvers(
    generator,
    decoded: dict[str, np.ndarray],
    truth: np.ndarray,
    embed: dict,
    solvers: dict,
    work: Path,
    batch: int = 8,
) -> pd.DataFrame:
    """Run every solver on the same pictures.

    Parameters
    ----------
    generator : Generator
    decoded : mapping of str to array
        As for `reconstruct`.
    truth : uint8 array, shape (n, H, W, 3)
    embed : mapping of metric to function
    solvers : mapping of name to Settings
        The first is what the others are compared with.
    work : Path
        Folder of the results, from which a stopped run goes on; `values.csv` holds every picture.
    batch : int

    Returns
    -------
    DataFrame
        A row a solver: seconds on the clock, seconds of the processor and UNet
        forward-equivalents a picture, the peak memory of the process until then in GiB, structure
        loss at the end, the mean of every metric, and the mean paired difference of the first
        solver to it with its 95 % interval, `<metric>_gain`, `_low`, `_high`.
    """
    from minddiff_utils.evaluation.metrics import evaluate
    from minddiff_utils.evaluation.statistics import paired_difference
    from minddiff_utils.reconstruction.results import read_pictures
    from studies.betas import peak_memory

    rows, made, first = {}, {}, next(iter(solvers))
    for name, settings in solvers.items():
        spent = _timed_run(generator, decoded, settings, work / f"{name}.h5", batch)
        rows[name] = {key: spent[key] / len(truth) for key in SPENT}
        rows[name]["peak_gib"] = peak_memory() / 2**30
        made[name] = read_pictures(work / f"{name}.h5")
        rows[name]["loss"] = _loss(generator, decoded, made[name], solvers[first])
    values = evaluate(truth, made, decoded["stimulus_id"], embed)
    with atomic_path(work / "values.csv") as temporary:
        values.to_csv(temporary, index=False)
    wide = values.pivot(index="stimulus_id", columns=["method", "metric"], values="value")
    for name, row in rows.items():
        for metric in METRICS:
            gain = paired_difference(wide[first, metric].to_numpy(), wide[name, metric].to_numpy())
            row[metric] = wide[name, metric].mean()
            row |= {f"{metric}_gain": gain["mean"], f"{metric}_low": gain["low"]}
            row[f"{metric}_high"] = gain["high"]
    return pd.DataFrame.from_dict(rows, orient="index")


def _loss(generator, decoded, pictures, settings) -> float:
    """Both solvers' pictures are held against what the first one fits."""
    from minddiff_utils.reconstruction.stage2 import picture_losses

    return float(picture_losses(generator, decoded, pictures, settings).sum(1).mean())


def _timed_run(generator, decoded, settings, path: Path, batch: int) -> dict[str, float]:
    """Reconstruct batch after batch; what each cost stays in a file beside the result."""
    from minddiff_utils.reconstruction.shards import pictures_of
    from minddiff_utils.reconstruction.stage2 import reconstruct

    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    n, spent = len(decoded["stimulus_id"]), []
    for start in range(0, n, batch):
        part = pictures_of(decoded, slice(start, start + batch))
        record = folder / f"{start}.csv"
        with count_unet(generator.unet) as count:
            began, worked = time.perf_counter(), time.process_time()
            reconstruct(generator, part, settings, folder / f"{start}.h5", batch=batch, n_films=0)
            taken = time.perf_counter() - began, time.process_time() - worked
        if count.forward:
            row = dict(zip(SPENT, (*taken, count.equivalents), strict=True))
            pd.DataFrame([row]).to_csv(record, index=False)
        spent.append(pd.read_csv(require(record, "python -m studies stage2")))
    _join([folder / f"{start}.h5" for start in range(0, n, batch)], path)
    return pd.concat(spent).sum().to_dict()


def _join(parts: list[Path], path: Path) -> None:
    import h5py

    from minddiff_utils.reconstruction.results import read_pictures

    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file["pictures"] = np.concatenate([read_pictures(part) for part in parts])
