"""The two stages of MindDiffuser (Lu et al. 2023), readable beside Algorithm 1 of the paper."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch
from tqdm import tqdm

from minddiff_utils.files import InputError, atomic_path
from minddiff_utils.generator import Generator, noise_like, to_pictures

__all__ = [
    "Evidence",
    "Settings",
    "Stage2",
    "ablate",
    "add_reconstructions",
    "describe",
    "evidence_loss",
    "generate",
    "read_pictures",
    "read_trace",
    "reconstruct",
    "stage1",
    "stage1_steps",
    "stage2",
    "structure_loss",
    "structure_weights",
]

# Weights of the six blocks relative to one another in the authors' code.
BLOCK_WEIGHTS = (1.5, 1.2, 1.0, 1.0, 1.0, 1.0)
# Of so many pictures, the first ones, every iterate is kept.
FILMS = 6


@dataclass(frozen=True)
class Settings:
    """How both stages run.

    Parameters
    ----------
    n_steps : int
        Steps of the whole denoising schedule.
    strength : float
        Share of the schedule that stage 1 noises and denoises, in (0, 1].
    guidance : float
        Weight of the text condition (classifier-free guidance).
    iterations : int
        Updates of stage 2; the picture after the last one is the result.
    learning_rate, decay : float
        Of Adam, and the factor on it after each iteration.
    optimise : str
        "zc", "z" or "c": what stage 2 changes.
    recompute : bool
        Compute each step again in the backward pass: slower, with the memory of one step.
    adapt : str
        What Adam divides a gradient by: "element", the running size of that very element, as in
        the authors' code; "picture", that of the whole picture's `z` or `c`, which keeps the
        direction of the gradient and leaves alone what the loss does not care about.
    rate_c : float
        Factor on the learning rate for `c`, whose values have another scale than those of `z`.
    structure : str
        What stage 2 fits: "components", what the responses say about each component of CLIP's
        blocks (`evidence_loss`); "values", the decoded values themselves, as in the paper
        (`structure_loss`).
    """

    n_steps: int = 9
    strength: float = 0.56
    guidance: float = 3.0
    iterations: int = 10
    learning_rate: float = 0.1
    decay: float = 0.999
    optimise: str = "zc"
    recompute: bool = False
    adapt: str = "picture"
    rate_c: float = 0.1
    structure: str = "components"

    def __post_init__(self) -> None:
        bounds = {
            "n_steps": (1, 1000),
            "strength": (1e-6, 1),
            "guidance": (0, 100),
            "iterations": (0, 100_000),
            "learning_rate": (0, 10),
            "decay": (0, 1),
            "rate_c": (0, 1000),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"{name}={value}: expected a value from {low:g} to {high:g}.")
        choices = {
            "optimise": ("zc", "z", "c"),
            "adapt": ("element", "picture"),
            "structure": ("components", "values"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                wanted = " or ".join(f'"{choice}"' for choice in known)
                raise InputError(f"{name}={getattr(self, name)!r}: expected {wanted}.")


def generate(
    generator: Generator,
    z: torch.Tensor,
    c: torch.Tensor,
    noise: torch.Tensor,
    settings: Settings,
) -> torch.Tensor:
    """Noise `z`, denoise it under `c`, decode: lines 3 to 5 of Algorithm 1, differentiable.

    Parameters
    ----------
    generator : Generator
    z : Tensor, shape (n, channels, h, w)
    c : Tensor, shape (n, tokens, width)
    noise : Tensor, shape of `z`
        Fixed for each picture, so that stage 2 minimises one objective.
    settings : Settings

    Returns
    -------
    Tensor, shape (n, 3, H, W)
        Pictures, about in [-1, 1].
    """
    timesteps = generator.timesteps(settings.n_steps, settings.strength)
    z_t = generator.add_noise(z, noise, timesteps[:1])
    z_0 = generator.denoise(z_t, c, timesteps, settings.guidance, settings.recompute)
    return generator.decode(z_0)


@torch.no_grad()
def stage1(
    generator: Generator,
    z: torch.Tensor,
    c: torch.Tensor,
    noise: torch.Tensor,
    settings: Settings,
) -> torch.Tensor:
    """Turn decoded `z` and `c` into a first picture (img2img); see `generate`."""
    return generate(generator, z, c, noise, settings)


def structure_weights(target: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weight each block by the inverse length of its target, normalised to sum 1.

    As in the authors' code, times [1.5, 1.2, 1, 1, 1, 1] for blocks 1 to 6.

    Parameters
    ----------
    target : mapping of str to Tensor, shape (n, …)
        Decoded structure; NaN where a value was not decoded.

    Returns
    -------
    dict of str to Tensor, shape (n,)
    """
    names = _in_order(target)
    inverse = [1 / torch.nan_to_num(target[name]).flatten(1).norm(dim=1) for name in names]
    total = torch.stack(inverse).sum(0)
    extra = [*BLOCK_WEIGHTS, *[1.0] * len(names)]
    return {
        name: factor * value / total
        for name, value, factor in zip(names, inverse, extra, strict=False)
    }


def structure_loss(
    found: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Return the weighted squared error of every block, over the values that were decoded.

    .. math:: L_i = w_i \\, \\frac{1}{|M_i|} \\sum_{m \\in M_i} (CLIP_i(Y)_m - Z_{i,m})^2

    Parameters
    ----------
    found, target : mappings of str to Tensor, shape (n, …)
        Of the generated picture and decoded from the brain; NaN in `target`: not decoded.

    Returns
    -------
    Tensor, shape (n, n_blocks)
        Their sum over blocks is the loss of a picture.
    """
    weights = structure_weights(target)
    losses = []
    for name, weight in weights.items():
        decoded = torch.isfinite(target[name])
        error = torch.where(decoded, found[name] - torch.nan_to_num(target[name]), 0.0)
        n = decoded.flatten(1).sum(1).clamp(min=1)
        losses.append(weight * error.square().flatten(1).sum(1) / n)
    return torch.stack(losses, dim=1)


class Evidence(NamedTuple):
    """What the responses say about one block of some pictures; see `components.evidence`.

    Parameters
    ----------
    value : Tensor, shape (n, n_components)
    projection : Tensor, shape (n_splits, n_values, n_components)
    split : Tensor of int64, shape (n,)
        The split each picture is a test picture of.
    """

    value: torch.Tensor
    projection: torch.Tensor
    split: torch.Tensor


def evidence_loss(
    found: Mapping[str, torch.Tensor], target: Mapping[str, Evidence]
) -> torch.Tensor:
    """Return how far each block is from what the responses say, in units of their uncertainty.

    .. math:: L_i = w_i \\, \\frac{1}{K_i} \\sum_{k=1}^{K_i}
              \\frac{(u_{ik}^T (CLIP_i(Y) - m_i) - \\hat s_{ik} / R^2_{ik})^2}
              {\\lambda_{ik} (1 - R^2_{ik}) / R^2_{ik}}

    with the authors' weights 1.5, 1.2, 1, 1, 1, 1, here normalised to sum 1: the sum over blocks
    is about one for the picture that was seen.

    Parameters
    ----------
    found : mapping of str to Tensor, shape (n, tokens, width)
    target : mapping of str to Evidence

    Returns
    -------
    Tensor, shape (n, n_blocks)
    """
    names = _in_order(target)
    losses = []
    for name, weight in zip(names, _block_weights(len(names)), strict=True):
        value, projection, split = target[name]
        structure = found[name].flatten(1).to(value.dtype)
        loss = structure.new_zeros(len(structure))
        for number in split.unique():
            rows = torch.nonzero(split == number).flatten()
            error = structure[rows] @ projection[number] - value[rows]
            loss = loss.index_put((rows,), error.square().sum(1))
        losses.append(weight * loss)
    return torch.stack(losses, dim=1)


def _in_order(names: Mapping[str, object]) -> list[str]:
    return sorted(names, key=lambda name: int(name.removeprefix("block_")))


def _block_weights(n: int) -> list[float]:
    weights = [*BLOCK_WEIGHTS, *[1.0] * n][:n]
    return [weight / sum(weights) for weight in weights]


@dataclass
class Stage2:
    """What stage 2 leaves: the last picture, and how it got there.

    Parameters
    ----------
    pictures : Tensor, shape (n, 3, H, W)
    losses : Tensor, shape (n, iterations + 1, n_blocks)
        Structure loss of each block at each iterate, from the first picture to the last.
    z, c : Tensor
        As adjusted.
    iterates : list of Tensor
        The picture at every iterate.
    """

    pictures: torch.Tensor
    losses: torch.Tensor
    z: torch.Tensor
    c: torch.Tensor
    iterates: list[torch.Tensor] = field(default_factory=list)


def stage2(
    generator: Generator,
    z: torch.Tensor,
    c: torch.Tensor,
    target: Mapping[str, torch.Tensor] | Mapping[str, Evidence],
    noise: torch.Tensor,
    settings: Settings,
) -> Stage2:
    """Adjust `z` and `c` until the picture's structure matches the decoded one: Algorithm 1.

    Parameters
    ----------
    generator : Generator
    z : Tensor, shape (n, channels, h, w)
        Decoded latents.
    c : Tensor, shape (n, tokens, width)
        Decoded text condition.
    target : mapping of str to Evidence, or to Tensor, shape (n, tokens, width)
        For each block, "block_1" …: what the responses say about it, or where
        `settings.structure` is "values" its decoded values; NaN: not decoded.
    noise : Tensor, shape of `z`
    settings : Settings

    Returns
    -------
    Stage2
        Every picture's result depends on its own row alone.
    """
    z, c = z.detach().clone(), c.detach().clone()
    adam = _optimiser(z, c, settings)
    schedule = torch.optim.lr_scheduler.ExponentialLR(adam, settings.decay)
    blocks = [int(name.removeprefix("block_")) for name in target]
    loss_of = evidence_loss if settings.structure == "components" else structure_loss
    losses, iterates = [], []
    for iteration in range(settings.iterations + 1):
        last = iteration == settings.iterations
        with torch.set_grad_enabled(not last):
            pictures = generate(generator, z, c, noise, settings)
            loss = loss_of(generator.structure(pictures, blocks), target)
        losses.append(loss.detach())
        iterates.append(pictures.detach())
        if not last:
            adam.zero_grad()
            loss.sum().backward()
            adam.step()
            schedule.step()
    return Stage2(iterates[-1], torch.stack(losses, 1), z.detach(), c.detach(), iterates)


def _optimiser(z: torch.Tensor, c: torch.Tensor, settings: Settings) -> torch.optim.Optimizer:
    """Make what is to change learnable, each with its own rate."""
    rates = {"z": (z, settings.learning_rate), "c": (c, settings.learning_rate * settings.rate_c)}
    groups = [
        {"params": [value.requires_grad_(True)], "lr": rate}
        for name, (value, rate) in rates.items()
        if name in settings.optimise
    ]
    kind = torch.optim.Adam if settings.adapt == "element" else PictureAdam
    return kind(groups, lr=settings.learning_rate)


class PictureAdam(torch.optim.Optimizer):
    """Adam whose second moment is the mean over all elements of a picture's tensor.

    Parameters
    ----------
    params : iterable of Tensor, shape (n, …)
        One row a picture; no row touches another.
    lr : float
        Root mean square of the first step.
    betas : tuple of two float
        Decay of the first and the second moment (Kingma & Ba, 1412.6980).
    """

    def __init__(self, params, lr: float, betas: tuple[float, float] = (0.9, 0.999)):
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Move every parameter once down its gradient."""
        for group in self.param_groups:
            first, second = group["betas"]
            for value in group["params"]:
                state = self.state[value]
                mean, square, n = (state.get(key, 0.0) for key in ("mean", "square", "n"))
                state["n"] = n = n + 1
                power = value.grad.square().flatten(1).mean(1)
                state["mean"] = mean = first * mean + (1 - first) * value.grad
                state["square"] = square = second * square + (1 - second) * power
                size = (square / (1 - second**n)).sqrt().clamp(min=1e-20)
                size = size.view(-1, *[1] * (value.ndim - 1))
                value -= group["lr"] * mean / (1 - first**n) / size


# ------------------------------------------------------------------------------ a whole recording


def reconstruct(
    generator: Generator,
    decoded: Mapping[str, np.ndarray],
    settings: Settings,
    path: str | Path,
    *,
    seed: int = 0,
    batch: int = 8,
    n_films: int = FILMS,
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
        HDF5 file of the results. Until it is whole it is called `<path>.partial`; one that is
        whole and was made from the same inputs, models and settings is left as it is.
    seed : int
        Of the diffusion noise.
    batch : int
        Pictures at a time; the result does not depend on it beyond rounding.
    n_films : int
        The first so many pictures are kept at every iterate.
    label : str
        Name of the progress bar.

    Returns
    -------
    Path
        `stimulus_id` (n,), `pictures` uint8 (n, H, W, 3), `losses` (n, iterations + 1, blocks),
        `films` uint8 (n_films, iterations + 1, H, W, 3).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    ids = np.asarray(decoded["stimulus_id"])
    record = describe(generator, decoded, settings, seed, n_films)
    if _done(path, record) == len(ids):
        return path
    done = _done(partial, record)
    with h5py.File(partial, "a" if done else "w") as file:
        file.attrs["record"] = record
        starts = range(done, len(ids), batch)
        for start in tqdm(starts, label, initial=done // batch, total=-(-len(ids) // batch)):
            rows = slice(start, min(start + batch, len(ids)))
            result = _run(generator, decoded, rows, settings, seed)
            _store(file, ids, rows, result, n_films)
            file.attrs["done"] = rows.stop
            file.flush()
    partial.replace(path)
    return path


def describe(
    generator: Generator,
    decoded: Mapping[str, np.ndarray],
    settings: Settings,
    seed: int = 0,
    n_films: int = FILMS,
) -> str:
    """Return what the result of `reconstruct` follows from; its file carries it as `record`."""
    # Sums over the same numbers differ in the last digits between processors.
    inputs, models = (
        [float(f"{value:.8g}") for value in values]
        for values in (_fingerprint(decoded), generator.fingerprint())
    )
    about = {"seed": seed, "films": n_films, "inputs": inputs, "models": models}
    return json.dumps({**asdict(settings), **about})


def _run(generator: Generator, decoded, rows: slice, settings: Settings, seed: int) -> Stage2:
    target = _target(generator, decoded, rows, settings)
    z, c = (_tensor(generator, decoded[name][rows]) for name in ("z", "c"))
    noise = noise_like(z, seed, decoded["stimulus_id"][rows])
    return stage2(generator, z, c, target, noise, settings)


def _target(
    generator: Generator, decoded: Mapping[str, np.ndarray], rows: slice, settings: Settings
) -> dict[str, torch.Tensor] | dict[str, Evidence]:
    """Return what stage 2 is to fit of some pictures."""
    blocks = _in_order([name for name in decoded if name.startswith("block_")])
    if settings.structure == "values":
        return {name: _tensor(generator, decoded[name][rows]) for name in blocks}
    numbers = [name.removeprefix("block_") for name in blocks]
    lacking = [n for n in numbers if f"evidence_{n}" not in decoded]
    if lacking:
        raise InputError(
            f"The decoded features have no evidence_{lacking[0]}, which structure='components' "
            "needs: run 02_decoding again."
        )
    # Half precision has too few digits for sums over thousands of values.
    precise = torch.promote_types(generator.dtype, torch.float32)
    split = torch.from_numpy(np.asarray(decoded["split"][rows], np.int64)).to(generator.device)
    return {
        f"block_{n}": Evidence(
            _tensor(generator, decoded[f"evidence_{n}"][rows], precise),
            _tensor(generator, decoded[f"projection_{n}"], precise),
            split,
        )
        for n in numbers
    }


def _tensor(
    generator: Generator, values: np.ndarray, dtype: torch.dtype | None = None
) -> torch.Tensor:
    values = torch.from_numpy(np.asarray(values, np.float32))
    return values.to(generator.device, dtype or generator.dtype)


def _fingerprint(decoded: Mapping[str, np.ndarray]) -> list[float]:
    """Numbers that change with the inputs, to tell a stopped run of the same inputs from others."""
    names = sorted(name for name in decoded if name != "split")
    return [float(np.nansum(np.abs(decoded[name]), dtype=np.float64)) for name in names]


def _done(partial: Path, record: str) -> int:
    try:
        with h5py.File(partial, "r") as file:
            return int(file.attrs.get("done", 0)) if file.attrs.get("record") == record else 0
    except OSError:
        return 0


def _store(file: h5py.File, ids: np.ndarray, rows: slice, result: Stage2, n_films: int) -> None:
    pictures = to_pictures(result.pictures)
    losses = result.losses.float().cpu().numpy()
    films = np.stack([to_pictures(rgb) for rgb in result.iterates], axis=1)
    if "pictures" not in file:
        n, n_films = len(ids), min(n_films, len(ids))
        file["stimulus_id"] = ids
        file.create_dataset("pictures", (n, *pictures.shape[1:]), np.uint8)
        file.create_dataset("losses", (n, *losses.shape[1:]), np.float32)
        file.create_dataset("films", (n_films, *films.shape[1:]), np.uint8)
    file["pictures"][rows], file["losses"][rows] = pictures, losses
    kept = max(0, min(rows.stop, len(file["films"])) - rows.start)
    if kept:
        file["films"][rows.start : rows.start + kept] = films[:kept]


def read_pictures(path: str | Path) -> np.ndarray:
    """Return the pictures that `reconstruct` wrote, uint8 (n, H, W, 3)."""
    with h5py.File(path, "r") as file:
        return file["pictures"][:]


def read_trace(path: str | Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what `reconstruct` wrote.

    Returns
    -------
    losses : float32 array, shape (n, iterations + 1, n_blocks)
    films : uint8 array, shape (n_films, iterations + 1, H, W, 3)
    pictures : uint8 array, shape (n, H, W, 3)
    """
    with h5py.File(path, "r") as file:
        return file["losses"][:], file["films"][:], file["pictures"][:]


def ablate(
    generator: Generator, decoded: Mapping[str, np.ndarray], settings: Settings, part: str
) -> tuple[dict[str, np.ndarray], Settings]:
    """Take one decoded input away, as the paper's ablations do.

    Parameters
    ----------
    generator : Generator
    decoded : mapping of str to array
    settings : Settings
    part : {"z", "c"}
        Without `z` the picture begins from pure noise, and passes as many steps as before.
        Without `c` the condition is that of an empty caption.

    Returns
    -------
    decoded, settings
        To call `reconstruct` with.
    """
    if part == "c":
        empty = generator.empty_condition().float().cpu().numpy()
        return {**decoded, "c": np.broadcast_to(empty, decoded["c"].shape).copy()}, settings
    if part != "z":
        raise InputError(f'part={part!r}: expected "z" or "c".')
    steps = len(generator.timesteps(settings.n_steps, settings.strength))
    whole = replace(settings, n_steps=steps, strength=1.0)
    return {**decoded, "z": np.zeros_like(decoded["z"])}, whole


@torch.no_grad()
def stage1_steps(
    generator: Generator,
    decoded: Mapping[str, np.ndarray],
    rows: slice,
    settings: Settings,
    seed: int = 0,
) -> np.ndarray:
    """Show what stage 1 does to some pictures.

    Returns
    -------
    uint8 array, shape (n, 3, H, W, 3)
        The decoded `z` as a picture, the same after noising, and the result.
    """
    z, c = (_tensor(generator, decoded[name][rows]) for name in ("z", "c"))
    noise = noise_like(z, seed, decoded["stimulus_id"][rows])
    first = generator.timesteps(settings.n_steps, settings.strength)[:1]
    noised = generator.add_noise(z, noise, first)
    shown = [generator.decode(z), generator.decode(noised)]
    shown.append(stage1(generator, z, c, noise, settings))
    return np.stack([to_pictures(rgb) for rgb in shown], axis=1)


def add_reconstructions(
    path: str | Path,
    stimulus_id: Sequence[int],
    pictures: Mapping[str, np.ndarray],
    fresh: bool = False,
) -> Path:
    """Add methods to `reconstructions.h5`, keeping those of other names that are there.

    Parameters
    ----------
    path : str or Path
    stimulus_id : sequence of n int
    pictures : mapping of method to uint8 array, shape (n, h, w, 3)
    fresh : bool
        Begin a new file; what an earlier run left there goes.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        If the file holds other stimuli.
    """
    path, ids = Path(path), np.asarray(stimulus_id, np.int64)
    held: dict[str, np.ndarray] = {}
    if path.exists() and not fresh:
        with h5py.File(path, "r") as file:
            held = {name: file[name][:] for name in file}
        if not np.array_equal(held.pop("stimulus_id"), ids):
            raise InputError(f"{path} holds other stimuli; delete it and run 03_stage1 again.")
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file["stimulus_id"] = ids
        for name, values in {**held, **pictures}.items():
            file.create_dataset(name, data=values, compression="gzip")
    return path
