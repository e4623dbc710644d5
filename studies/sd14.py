"""How long Stable Diffusion's full size takes, and how much memory: both stages of one picture."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from minddiff_utils.io import InputError
from studies import betas

if TYPE_CHECKING:
    import torch

    from minddiff_utils.models.stable_diffusion import Generator
    from minddiff_utils.reconstruction.results import Reconstruction
    from minddiff_utils.settings import Settings

GIB = 2**30
PICTURE = 425  # px, side of the pictures of NSD
CAPTION = "a dog lies on a red sofa beside a window"
Result = TypeVar("Result")


def main(
    steps: Annotated[int, typer.Option(min=1, help="Steps of the whole schedule.")] = 50,
    strength: Annotated[float, typer.Option(help="Share of it that is denoised.")] = 0.7,
    guidance: Annotated[float, typer.Option(help="Weight of the text; 1 is none.")] = 5.0,
    solver: Annotated[str, typer.Option(help="Of stage 2: algorithm_1 or guided.")] = "algorithm_1",
    iterations: Annotated[int, typer.Option(min=1, help="Updates of the paper's solver.")] = 2,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    recompute: Annotated[bool, typer.Option(help="Keep the memory of one step.")] = True,
    save_memory: Annotated[
        str, typer.Option(help="Any of attention, tiling, checkpointing, with commas between.")
    ] = "checkpointing",
    small: Annotated[bool, typer.Option(help="A miniature, to see that it runs.")] = False,
    limit: Annotated[float, typer.Option(min=0, help="GiB allowed; 0 for any.")] = 20,
) -> None:
    """Both stages of one picture at the size of Stable Diffusion v1-4, with random weights.

    The default is the paper's sampler: 35 of 50 steps, guidance 5.0, pictures of 512 × 512. The
    exit code is 1 if the memory goes over the limit.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()  # of a missing torchvision, which nothing here needs
    from minddiff_utils.models.stable_diffusion import resolve_device, resolve_dtype
    from minddiff_utils.reconstruction.inputs import Inputs
    from minddiff_utils.reconstruction.stage1 import stage1
    from minddiff_utils.reconstruction.stage2 import stage2
    from minddiff_utils.settings import Settings
    from studies.architecture import build_generator

    place = resolve_device(device)
    precision = resolve_dtype(dtype, place)
    settings = Settings(
        n_steps=steps,
        strength=strength,
        guidance_scale=guidance,
        iterations=iterations,
        learning_rate=0.01,
        recompute=recompute,
        solver=solver,
        structure_target="values",
        z_evidence_weight=0.0,
    )
    generator = _timed(
        "models", place, lambda: build_generator(small, place, precision, 15, save_memory)
    )
    _describe(generator, settings, save_memory)
    z, c, noise, target = _timed("features", place, lambda: prepare_inputs(generator))
    first = _timed("stage 1", place, lambda: stage1(generator, z, c, noise, settings))
    second = _timed(
        f"stage 2, {iterations} iterations"
        if solver == "algorithm_1"
        else "stage 2, one guided pass",
        place,
        lambda: stage2(generator, Inputs(z, c, target, noise), settings),
    )
    _check(first, second)
    if peak_memory(place) > limit * GIB > 0:
        print(f"The memory went over {limit:g} GiB.")
        raise typer.Exit(1)


def prepare_inputs(
    generator: "Generator",
) -> tuple["torch.Tensor", "torch.Tensor", "torch.Tensor", dict[str, "torch.Tensor"]]:
    """Compute `z` and `c` of one random picture, its noise, and the structure of another one.

    Parameters
    ----------
    generator : Generator

    Returns
    -------
    z, c, noise : Tensor
        One row each.
    target : dict of str to Tensor
        Structure of blocks 1 to 6; three quarters of the values are NaN, as if not decoded.
    """
    import numpy as np
    import torch

    from minddiff_utils.models.stable_diffusion import noise_like

    source = np.random.default_rng(0)
    pictures = source.integers(0, 256, (2, PICTURE, PICTURE, 3), dtype=np.uint8)
    z = generator.encode_pictures(pictures[:1])
    c = generator.encode_captions([(CAPTION,)])
    with torch.no_grad():
        target = generator.structure(generator.prepare(pictures[1:]), range(1, 7))
    del target["embedding"]
    for values in target.values():
        lost = torch.from_numpy(source.random(values.shape) < 0.75).to(values.device)
        values[lost] = torch.nan
    return z, c, noise_like(z, 0, (0,)), target


def peak_memory(device: "torch.device") -> int:
    """Return the most memory used until now, in bytes: the GPU's, or else this process's."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return betas.peak_memory()


def _timed(label: str, device: "torch.device", work: Callable[[], Result]) -> Result:
    """Do a piece of work and print how long it took and the most memory until its end."""
    started = time.perf_counter()
    result = work()
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - started
    memory = peak_memory(device) / GIB
    print(f"{label:<24}{seconds:10.1f} s   peak memory {memory:6.2f} GiB", flush=True)
    return result


def _describe(generator: "Generator", settings: "Settings", save_memory: str) -> None:
    import torch

    unet = sum(p.numel() for p in generator.unet.parameters()) / 1e6
    n = len(generator.timesteps(settings.n_steps, settings.strength))
    kept = ", ".join(word for word in (save_memory, "recompute" * settings.recompute) if word)
    print(
        f"UNet of {unet:.0f} million weights, pictures of {generator.size} × {generator.size}, "
        f"{n} of {settings.n_steps} steps, guidance {settings.guidance_scale:g}, "
        f"on {generator.device} in {str(generator.compute_dtype).removeprefix('torch.')}, "
        f"{torch.get_num_threads()} threads; saving memory by: {kept or 'nothing'}",
        flush=True,
    )


def _check(first: "torch.Tensor", second: "Reconstruction") -> None:
    """Print what came out; fail if a number is not finite or stage 2 changed nothing."""
    import torch

    moved = (second.pictures - second.iterates[0]).abs().max().item()
    loss = second.losses.sum(-1)[0].tolist()
    print(f"loss {' → '.join(f'{value:.6g}' for value in loss)}; pixels moved by up to {moved:.3g}")
    if not (torch.isfinite(first).all() and torch.isfinite(second.pictures).all() and moved > 0):
        raise InputError("The result is not finite, or stage 2 changed nothing: try float32.")
