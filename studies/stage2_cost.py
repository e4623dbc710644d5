"""What both solvers of stage 2 cost at Stable Diffusion's full size, with random weights."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from studies.costs import Loop, Pass

if TYPE_CHECKING:
    import torch

    from minddiff_utils.models.stable_diffusion import Generator

# As notebooks/params/nsd.yaml and paper.yaml have them.
FAST = {
    "n_steps": 20,
    "strength": 0.7,
    "guidance_scale": 5.0,
    "structure_target": "values",
    "z_evidence_weight": 0.0,
}
PAPER_STEPS, PAPER_ITERATIONS = 35, 300
GIB = 2**30


def print_cost(device: str, dtype: str, batches: Sequence[int], small: bool = False) -> None:
    """Build the models, measure, and print seconds, passes and memory of both solvers.

    On a GPU the guided pass is run to its end for each batch size. On a processor its parts are
    measured once and multiplied; that is called an estimate. So is the paper's solver everywhere.

    Parameters
    ----------
    device, dtype : str
        As for `load_generator`.
    batches : sequence of int
        Pictures at a time.
    small : bool
        A miniature of the models, to see that it runs.
    """
    from minddiff_utils.models.stable_diffusion import resolve_device, resolve_dtype
    from studies.architecture import build_generator
    from studies.sd14 import peak_memory

    place = resolve_device(device)
    precision = resolve_dtype(dtype, place)
    generator = build_generator(small, place, precision, 15)
    print(f"pictures of {generator.size} × {generator.size}, on {place} in {precision}")
    parts = measure_parts(generator)
    for name, seconds in parts.items():
        print(f"{name:<44}{seconds:9.2f} s")
    print(f"{'peak memory, one picture':<44}{peak_memory(place) / GIB:9.2f} GiB")
    table = estimate(parts)
    print("Estimated from these parts, for one picture at a time:")
    print(table.to_string(float_format=lambda value: f"{value:,.1f}"))
    ratio = table.loc["algorithm_1"] / table.loc["guided"]
    print(f"paper / fast: {ratio['seconds']:.0f} times the seconds, {ratio.passes:.0f} the passes")
    if place.type == "cuda":
        print("Run to the end, guided pass:")
        print(measure_passes(generator, batches).to_string(float_format=lambda v: f"{v:.2f}"))


def measure_parts(generator: "Generator") -> dict[str, float]:
    """Time the parts that both solvers are made of, for one picture.

    Parameters
    ----------
    generator : Generator

    Returns
    -------
    dict of str to float
        Seconds of a guided prediction (two passes of the UNet); of a look: the prediction under
        the text (one pass), its picture, CLIP, and the gradient back to the noisy latent; and of
        picture and CLIP with their gradient alone.
    """
    import torch

    from minddiff_utils.reconstruction.guided_sampling import follow

    inputs, loss_of, settings = _inputs(generator, 1)
    z, c, _, noise, _ = inputs
    step = generator.timesteps(settings.n_steps, settings.strength)[0]
    z_t = generator.add_noise(z, noise, step[None])

    def predict(z_t: "torch.Tensor", guidance_scale: float = 1.0) -> "torch.Tensor":
        return generator.predict_clean(z_t, c, step, guidance_scale)

    def plain() -> None:
        with torch.no_grad():
            predict(z_t, settings.guidance_scale)

    def painted() -> None:
        leaf = z.clone().requires_grad_(True)
        torch.autograd.grad(loss_of(generator.decode(leaf)).sum(), leaf)

    variance = generator.noise_variance(step)
    once = replace(settings, gradient_steps=1)
    return {
        "prediction": _seconds(plain, z.device),
        "look": _seconds(
            lambda: follow(generator, z_t, predict, loss_of, variance, once), z.device
        ),
        "picture and CLIP with their gradient": _seconds(painted, z.device),
    }


def estimate(parts: dict[str, float]) -> pd.DataFrame:
    """Add up what `measure_parts` found, to seconds and passes of the UNet a picture.

    The guided pass has 14 steps with two looks each, and a prediction for the step itself. In the
    paper's solver every iteration has 35 steps; each is predicted, and on the way back predicted
    again with its gradient. The decoder's last picture is small beside either and left out.

    Parameters
    ----------
    parts : dict of str to float
        What `measure_parts` returns.

    Returns
    -------
    DataFrame
        Rows "guided" and "algorithm_1"; columns `seconds`, `passes` (forward-equivalents).
    """
    fast, paper = Pass(14, 2), Loop(PAPER_STEPS, PAPER_ITERATIONS)
    prediction, look, painted = parts.values()
    step = prediction + 2 * (look - painted)  # both halves, there and then there and back
    seconds = {
        "guided": fast.denoising * (fast.looks * look + prediction),
        "algorithm_1": paper.iterations * (paper.denoising * step + painted),
    }
    passes = {"guided": fast.equivalents, "algorithm_1": paper.equivalents}
    return pd.DataFrame({"seconds": seconds, "passes": passes})


def measure_passes(generator: "Generator", batches: Sequence[int]) -> pd.DataFrame:
    """Run the guided pass to its end for each batch size, on a GPU.

    Returns
    -------
    DataFrame
        A row a batch size: seconds and counted forward-equivalents a picture, peak memory in GiB;
        NaN for sizes that the GPU's memory is too small for.
    """
    import torch

    rows = {}
    for n in batches:
        try:
            rows[n] = _measure_pass(generator, n)
        except torch.cuda.OutOfMemoryError:
            rows[n] = dict.fromkeys(("seconds", "passes", "peak_gib"), float("nan"))
        torch.cuda.empty_cache()
    return pd.DataFrame.from_dict(rows, orient="index")


def _measure_pass(generator: "Generator", n: int) -> dict[str, float]:
    import torch

    from minddiff_utils.reconstruction.guided_sampling import guided_pass
    from studies.stage2 import count_unet

    inputs, _, settings = _inputs(generator, n)
    device = inputs.z.device
    torch.cuda.reset_peak_memory_stats(device)
    with count_unet(generator.unet) as count:
        seconds = _seconds(lambda: guided_pass(generator, inputs, settings), device)
    return {
        "seconds": seconds / n,
        "passes": count.equivalents / n / _runs(device),
        "peak_gib": torch.cuda.max_memory_allocated(device) / GIB,
    }


def _inputs(generator: "Generator", n: int) -> tuple:
    from minddiff_utils.reconstruction.inputs import Inputs
    from minddiff_utils.reconstruction.losses import structure_losses
    from minddiff_utils.settings import Settings
    from studies.sd14 import prepare_inputs

    settings = Settings(**FAST)
    z, c, noise, target = prepare_inputs(generator)
    z, c, noise = (value.repeat(n, *[1] * (value.ndim - 1)) for value in (z, c, noise))
    target = {name: value.repeat(n, 1, 1) for name, value in target.items()}

    def loss_of(pictures: "torch.Tensor") -> "torch.Tensor":
        return structure_losses(generator, pictures, target, settings)

    return Inputs(z, c, target, noise), loss_of, settings


def _runs(device: "torch.device") -> int:
    """On a GPU the first run reserves memory and chooses kernels, and the second counts."""
    return 1 if device.type == "cpu" else 2


def _seconds(work: Callable[[], object], device: "torch.device") -> float:
    """Seconds of the last run."""
    import torch

    for _ in range(_runs(device)):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started
    return seconds
