"""What both stages cost at Stable Diffusion's full size: time and memory, with random weights."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer

from minddiff_utils.io import InputError
from minddiff_utils.models.clip import resolve_device, resolve_dtype
from minddiff_utils.models.stable_diffusion import Generator, noise_like
from minddiff_utils.reconstruction import Inputs
from minddiff_utils.reconstruction.guided_sampling import follow
from minddiff_utils.reconstruction.losses import structure_losses
from minddiff_utils.reconstruction.stage1 import stage1
from minddiff_utils.reconstruction.stage2 import stage2
from minddiff_utils.settings import Settings
from studies import betas
from studies.architecture import build_generator
from studies.needs import PASSES
from studies.stage2 import count_unet

GIB = 2**30
PICTURE = 425  # px, side of the pictures of NSD
CAPTION = "a dog lies on a red sofa beside a window"
# As notebooks/params/nsd.yaml and paper.yaml have them.
STEPS, GUIDED_STEPS, GRADIENT_STEPS = 14, 11, Settings.gradient_steps
USUAL = Settings(strength=0.7, guidance_scale=5.0, structure_target="values", recompute=True)
PAPER_STEPS, PAPER_ITERATIONS = 35, 300


def main(
    batches: Annotated[str, typer.Option(help="Run both stages, so many at a time: 1,4,8")] = "",
    solver: Annotated[str, typer.Option(help="Of stage 2: guided or algorithm_1.")] = "guided",
    decoder: Annotated[str, typer.Option(help="For the gradient: full or tiny.")] = "full",
    steps: Annotated[int, typer.Option(min=1, help="Of the whole schedule.")] = 20,
    iterations: Annotated[int, typer.Option(min=1, help="Of Algorithm 1.")] = 2,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    save_memory: Annotated[str, typer.Option(help="attention, tiling, checkpointing")] = "",
    small: Annotated[bool, typer.Option(help="A miniature, to see that it runs.")] = False,
) -> None:
    """Measure the parts of stage 2 at the size of Stable Diffusion v1-4; run both stages.

    From the parts of one picture follows what both solvers take: an estimate. With --batches both
    stages are run, 0.7 of the schedule with guidance 5, on pictures of 512 × 512.
    """
    place = resolve_device(device)
    precision = resolve_dtype(dtype, place)
    generator = build_generator(small, place, precision, save_memory)
    print(f"pictures of {generator.size} × {generator.size}, on {place} in {precision}, ", end="")
    print(f"{torch.get_num_threads()} threads")
    settings = replace(
        USUAL, n_steps=steps, solver=solver, gradient_decoder=decoder, iterations=iterations
    )
    if batches:
        sizes = [int(n) for n in batches.split(",")]
        print(run_stages(generator, settings, sizes).to_string(float_format="{:.2f}".format))
    parts = measure_parts(generator, settings)
    for name, seconds in parts.items():
        print(f"{name:<44}{seconds:9.2f} s")
    print(f"{'peak memory, one picture':<44}{peak_memory(place) / GIB:9.2f} GiB")
    table = estimate(parts)
    print("Estimated from these parts, for one picture at a time:")
    print(table.to_string(float_format="{:,.1f}".format))
    ratio = table.loc["algorithm_1"] / table.loc["guided"]
    print(f"paper / fast: {ratio.seconds:.0f} times the seconds, {ratio.passes:.0f} the passes")


def prepare_inputs(generator: Generator, n: int = 1) -> Inputs:
    """Compute `z` and `c` of a random picture, its noise, and the structure of another one.

    Parameters
    ----------
    generator : Generator
    n : int
        So many times the same.

    Returns
    -------
    Inputs
        Their target is structure of blocks 1 to 6; three quarters of the values are NaN, as if not
        decoded.
    """
    source = np.random.default_rng(0)
    pictures = source.integers(0, 256, (2, PICTURE, PICTURE, 3), dtype=np.uint8)
    z = generator.encode_pictures(pictures[:1]).repeat(n, 1, 1, 1)
    c = generator.encode_captions([(CAPTION,)]).repeat(n, 1, 1)
    with torch.no_grad():
        target = generator.guide.structure(generator.prepare(pictures[1:]), range(1, 7))
    del target["embedding"]
    for values in target.values():
        lost = torch.from_numpy(source.random(values.shape) < 0.75).to(values.device)
        values[lost] = torch.nan
    target = {name: values.repeat(n, 1, 1) for name, values in target.items()}
    return Inputs(z, c, target, noise_like(z, 0, [0] * n))


def measure_parts(generator: Generator, settings: Settings) -> dict[str, float]:
    """Time the parts that both solvers are made of, for one picture.

    Parameters
    ----------
    generator : Generator
    settings : Settings

    Returns
    -------
    dict of str to float
        Seconds of a guided prediction (two passes of the UNet); of a gradient step: the prediction
        under the text (one pass), its picture, CLIP, and the gradient back to the noisy latent; and
        of picture and CLIP with their gradient alone.
    """
    z, c, target, noise, _ = prepare_inputs(generator)
    step = generator.timesteps(settings.n_steps, settings.strength)[0]
    z_t = generator.add_noise(z, noise, step[None])
    variance, once = generator.noise_variance(step), replace(settings, gradient_steps=1)

    def loss_of(pictures: torch.Tensor) -> torch.Tensor:
        return structure_losses(generator, pictures, target, settings)

    def predict(z_t: torch.Tensor, guidance_scale: float = 1.0) -> torch.Tensor:
        return generator.predict_clean(z_t, c, step, guidance_scale)

    @torch.no_grad()
    def plain() -> None:
        predict(z_t, settings.guidance_scale)

    def gradient_step() -> None:
        follow(generator, z_t, predict, loss_of, variance, once)

    def painted() -> None:
        leaf = z.clone().requires_grad_(True)
        picture = generator.decode(leaf, settings.gradient_decoder)
        torch.autograd.grad(loss_of(picture).sum(), leaf)

    return {
        "prediction": _seconds(plain, z.device),
        "gradient step": _seconds(gradient_step, z.device),
        "picture and CLIP with their gradient": _seconds(painted, z.device),
    }


def estimate(parts: dict[str, float]) -> pd.DataFrame:
    """Add up what `measure_parts` found, to seconds and passes of the UNet a picture.

    The guided pass has 14 steps with a prediction each, and two gradient steps before the first 11.
    In the paper's solver every iteration has 35 steps; each is predicted, and on the way back
    predicted again with its gradient. The decoder's last picture is small beside either and left
    out. A pass with its gradient counts as three.

    Returns
    -------
    DataFrame
        Rows "guided" and "algorithm_1"; columns `seconds`, `passes` (forward-equivalents).
    """
    prediction, gradient_step, painted = parts.values()
    step = prediction + 2 * (gradient_step - painted)  # both halves, there and then there and back
    seconds = {
        "guided": GUIDED_STEPS * GRADIENT_STEPS * gradient_step + STEPS * prediction,
        "algorithm_1": PAPER_ITERATIONS * (PAPER_STEPS * step + painted),
    }
    paper, guided = (with_gradients for _, with_gradients, _ in PASSES.values())
    passes = {"guided": guided, "algorithm_1": paper}
    return pd.DataFrame({"seconds": seconds, "passes": passes})


def run_stages(generator: Generator, settings: Settings, batches: list[int]) -> pd.DataFrame:
    """Run both stages to their end for each batch size.

    Returns
    -------
    DataFrame
        A row a batch size: seconds a picture of each stage, counted forward-equivalents a picture
        of stage 2, and peak memory in GiB; NaN for sizes that the GPU's memory is too small for.

    Raises
    ------
    InputError
        If a number is not finite, or stage 2 changed nothing.
    """
    rows = {}
    for n in batches:
        try:
            rows[n] = _run_batch(generator, settings, n)
        except torch.cuda.OutOfMemoryError:
            rows[n] = {}
        torch.cuda.empty_cache()
    return pd.DataFrame.from_dict(rows, orient="index")


def _run_batch(generator: Generator, settings: Settings, n: int) -> dict[str, float]:
    inputs = prepare_inputs(generator, n)
    z, c, _, noise, _ = inputs
    if z.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(z.device)
    first = _seconds(lambda: stage1(generator, z, c, noise, settings), z.device)
    found = []
    with count_unet(generator.unet) as count:
        second = _seconds(lambda: found.append(stage2(generator, inputs, settings)), z.device)
    moved = (found[-1].pictures - found[-1].iterates[0]).abs().max()
    if not torch.isfinite(found[-1].pictures).all() or not moved > 0:
        raise InputError("The result is not finite, or stage 2 changed nothing: try float32.")
    return {
        "stage 1: s": first / n,
        "stage 2: s": second / n,
        "passes": count.equivalents / n / len(found),
        "peak_gib": peak_memory(z.device) / GIB,
    }


def peak_memory(device: torch.device) -> int:
    """Return the most memory used until now, in bytes: the GPU's, or else this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return betas.peak_memory()


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the last run. On a GPU the first reserves memory and chooses kernels."""
    for _ in range(2 if device.type == "cuda" else 1):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - began
    return seconds
