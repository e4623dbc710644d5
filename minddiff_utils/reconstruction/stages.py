"""The two stages of MindDiffuser (Lu et al. 2023), readable beside Algorithm 1 of the paper."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import torch
from tqdm import tqdm

from minddiff_utils.io import InputError, atomic_path
from minddiff_utils.models.stable_diffusion import Generator, noise_like, to_pictures
from minddiff_utils.reconstruction.guided_sampling import Loss, guided_pass
from minddiff_utils.reconstruction.losses import (
    Belief,
    Evidence,
    belief_from,
    block_order,
    evidence_loss,
    structure_loss,
)
from minddiff_utils.settings import Settings
from minddiff_utils.storage import check_room, content_hash, open_to_write

# A picture whose loss ends this many times as high as it began has diverged.
DIVERGED = 2.0
# Of so many pictures, the first ones, every iterate is kept.
FILMS = 6


def generate(
    generator: Generator, z: torch.Tensor, c: torch.Tensor, noise: torch.Tensor, settings: Settings
) -> torch.Tensor:
    """Noise `z`, denoise it under `c`, decode: steps 1 to 3 of Algorithm 1, differentiable.

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
    z_t = generator.add_noise(z, noise, timesteps[:1])  # 1
    z_0 = generator.denoise(z_t, c, timesteps, settings.guidance_scale, settings.recompute)  # 2
    return generator.decode(z_0)  # 3


@torch.no_grad()
def stage1(
    generator: Generator, z: torch.Tensor, c: torch.Tensor, noise: torch.Tensor, settings: Settings
) -> torch.Tensor:
    """Turn decoded `z` and `c` into a first picture (img2img); see `generate`."""
    return generate(generator, z, c, noise, settings)


@dataclass
class Stage2:
    """What stage 2 leaves: the last picture, and how it got there.

    Parameters
    ----------
    pictures : Tensor, shape (n, 3, H, W)
    losses : Tensor, shape (n, n_iterates, n_blocks)
        Structure loss of each block at each iterate; the last is that of the result.
    z, c : Tensor
        As adjusted; of a picture that failed not always finite.
    iterates : list of n_iterates Tensor
        Paper's solver: the picture of every iteration, the first that of stage 1. Fast solver:
        the picture predicted at every guided step, and the result.
    failed : bool Tensor, shape (n,)
        Pictures that, or whose loss or gradient, were not finite at some iterate (as where half
        precision overflows), or whose loss doubled: for these the finite iterate of least loss
        stands in the place of the last, and grey where there is none.
    """

    pictures: torch.Tensor
    losses: torch.Tensor
    z: torch.Tensor
    c: torch.Tensor
    iterates: list[torch.Tensor]
    failed: torch.Tensor


def stage2(
    generator: Generator,
    z: torch.Tensor,
    c: torch.Tensor,
    target: Mapping[str, torch.Tensor] | Mapping[str, Evidence],
    noise: torch.Tensor,
    settings: Settings,
    belief: Belief | None = None,
) -> Stage2:
    """Correct the picture until its structure matches the decoded one.

    Parameters
    ----------
    generator : Generator
    z : Tensor, shape (n, channels, h, w)
        Decoded latents.
    c : Tensor, shape (n, tokens, width)
        Decoded text condition.
    target : mapping of str to Evidence, or to Tensor, shape (n, tokens, width)
        For each block, "block_1" …: what the responses say about it, or where
        `settings.structure_target` is "values" its decoded values; NaN: not decoded.
    noise : Tensor, shape of `z`
    settings : Settings
        Its `solver` is "guided" (`guidance.guided_pass`) or "algorithm_1" (`algorithm_1`).
    belief : Belief, optional
        What the responses say about `z`, for the fast solver.

    Returns
    -------
    Stage2
        Every picture's result depends on its own row alone.
    """

    def loss_of(pictures: torch.Tensor) -> torch.Tensor:
        return structure_losses(generator, pictures, target, settings)

    if settings.solver == "algorithm_1":
        return algorithm_1(generator, z, c, loss_of, noise, settings)
    z_0, iterates, losses = guided_pass(generator, z, c, loss_of, belief, noise, settings)
    with torch.no_grad():
        iterates.append(generator.decode(z_0))
        losses.append(loss_of(iterates[-1]))
    return _finished(z_0, c, iterates, losses)


def algorithm_1(
    generator: Generator,
    z: torch.Tensor,
    c: torch.Tensor,
    loss_of: Loss,
    noise: torch.Tensor,
    settings: Settings,
) -> Stage2:
    """Adjust `z` and `c` by backpropagation through the whole generation: Algorithm 1.

    Comments number the steps as the box "Algorithm 1" on the book's page of the method does.

    Parameters
    ----------
    generator : Generator
    z, c : Tensor
        As decoded.
    loss_of : callable
        Turns pictures (n, 3, H, W) into the structure loss of each block, (n, n_blocks).
    noise : Tensor, shape of `z`
    settings : Settings
        `iterations`, `learning_rate`, `decay`, `optimise` and `recompute` count here.

    Returns
    -------
    Stage2
    """
    z, c = z.detach().clone(), c.detach().clone()
    learned = [{"z": z, "c": c}[name].requires_grad_(True) for name in settings.optimise]
    adam = torch.optim.Adam(learned, lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.ExponentialLR(adam, settings.learning_rate_decay)
    losses, iterates = [], []
    for iteration in range(settings.iterations + 1):
        last = iteration == settings.iterations
        with torch.set_grad_enabled(not last):
            pictures = generate(generator, z, c, noise, settings)  # 1 to 3: noise, denoise, decode
            loss = loss_of(pictures)  # 4
        losses.append(loss.detach())
        iterates.append(pictures.detach().cpu())
        if not last:
            adam.zero_grad()
            loss.sum().backward()
            adam.step()  # 5, with Adam in the place of the plain step
            schedule.step()
    return _finished(z.detach(), c.detach(), iterates, losses)


def _finished(
    z: torch.Tensor, c: torch.Tensor, iterates: list[torch.Tensor], losses: list[torch.Tensor]
) -> Stage2:
    """Give a picture that failed the iterate of least loss; the others their last."""
    course = torch.stack(losses, dim=1).cpu()
    iterates = [pictures.cpu() for pictures in iterates]
    total = course.sum(2)
    # The loss alone does not tell: CLIP is shown pictures whose infinite pixels were cut off.
    painted = torch.stack([torch.isfinite(p).flatten(1).all(1) for p in iterates], dim=1)
    finite = torch.isfinite(total) & painted
    failed = ~finite.all(1) | (total[:, -1] > DIVERGED * total[:, 0])
    best = torch.where(finite, total, torch.inf).argmin(1)
    pictures = iterates[-1].clone()
    for row in torch.nonzero(failed).flatten().tolist():
        pictures[row] = torch.nan_to_num(iterates[best[row]][row], posinf=0, neginf=0)
    return Stage2(pictures, course, z, c, iterates, failed)


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
        Of the first so many pictures every iterate is kept.
    label : str
        Name of the progress bar.

    Returns
    -------
    Path
        `stimulus_id` (n,), `pictures` uint8 (n, H, W, 3), `losses` (n, n_iterates, blocks),
        `films` uint8 (n_films, n_iterates, H, W, 3), `failed` bool (n,); see `Stage2`.

    Raises
    ------
    InputError
        If there is no room on the disk.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    ids = np.asarray(decoded["stimulus_id"])
    record = describe(generator, decoded, settings, seed, n_films)
    if _done(path, record) == len(ids):
        return path
    done = _done(partial, record)
    with open_to_write(partial, "a" if done else "w") as file:
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
    inputs = content_hash(sorted(decoded.items()))
    about = {"seed": seed, "films": n_films, "inputs": inputs, "models": generator.fingerprint}
    return json.dumps({**asdict(settings), **about})


def check_inputs(path: str | Path, decoded: Mapping[str, np.ndarray], notebook: str) -> None:
    """Raise InputError unless `reconstruct` wrote `path`, in a notebook, from these features."""
    with h5py.File(path, "r") as file:
        record = json.loads(file.attrs["record"])
    if record["inputs"] != content_hash(sorted(decoded.items())):
        raise InputError(
            f"{path} was made from other decoded features than those that 02_decoding has left "
            f"since. Run {notebook} again."
        )


def _run(generator: Generator, decoded, rows: slice, settings: Settings, seed: int) -> Stage2:
    given = stage2_inputs(generator, decoded, rows, settings, seed)
    return stage2(generator, *given[:4], settings, given[4])


def stage2_inputs(
    generator: Generator,
    decoded: Mapping[str, np.ndarray],
    rows: slice,
    settings: Settings,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, dict, torch.Tensor, Belief | None]:
    """Return what `stage2` is given for some of the decoded stimuli.

    Parameters
    ----------
    generator : Generator
    decoded : mapping of str to array
        As for `reconstruct`.
    rows : slice
    settings : Settings
    seed : int
        Of the diffusion noise.

    Returns
    -------
    z, c, target, noise, belief
        As `stage2` describes them.
    """
    target = _target(generator, decoded, rows, settings)
    z, c, noise = stage1_inputs(generator, decoded, rows, seed)
    return z, c, target, noise, _belief(generator, decoded, rows, settings)


def stage1_inputs(
    generator: Generator, decoded: Mapping[str, np.ndarray], rows: slice, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return `z`, `c` and noise of some of the decoded stimuli, as `stage1` takes them.

    Parameters as for `stage2_inputs`; where nothing says `c`, it is that of the empty caption.
    """
    z = _tensor(generator, decoded["z"][rows])
    if "c" in decoded:
        c = _tensor(generator, decoded["c"][rows])
    else:
        c = generator.empty_condition().to(z).repeat(len(z), 1, 1)
    return z, c, noise_like(z, seed, decoded["stimulus_id"][rows])


@torch.no_grad()
def picture_losses(
    generator: Generator,
    decoded: Mapping[str, np.ndarray],
    pictures: np.ndarray,
    settings: Settings,
    batch: int = 8,
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
        target = _target(generator, decoded, rows, settings)
        rgb = generator.prepare(pictures[rows])
        found.append(structure_losses(generator, rgb, target, settings))
    return torch.cat(found).float().cpu().numpy()


def structure_losses(
    generator: Generator,
    rgb: torch.Tensor,
    target: Mapping[str, torch.Tensor] | Mapping[str, Evidence],
    settings: Settings,
) -> torch.Tensor:
    """Return the loss of each block, (n, n_blocks), that stage 2 makes small; differentiable."""
    blocks = [int(name.removeprefix("block_")) for name in block_order(target)]
    loss = evidence_loss if settings.structure_target == "components" else structure_loss
    return loss(generator.structure(rgb, blocks), target)


def _belief(
    generator: Generator, decoded: Mapping[str, np.ndarray], rows: slice, settings: Settings
) -> Belief | None:
    """Return what the responses say about `z`, where the settings make use of it."""
    if settings.solver != "guided" or settings.z_evidence_weight == 0:
        return None
    if "evidence_z" not in decoded:
        raise InputError(
            "The decoded features have no evidence_z, which solver='guided' needs: run 02_decoding "
            "again, or set z_evidence_weight=0 to do without."
        )
    values = [_tensor(generator, decoded[f"{name}_z"]) for name in ("projection", "variance")]
    evidence = _tensor(generator, decoded["evidence_z"][rows])
    split = torch.from_numpy(np.asarray(decoded["split"][rows], np.int64)).to(generator.device)
    return belief_from(Evidence(evidence, values[0], split), values[1])


def _target(
    generator: Generator, decoded: Mapping[str, np.ndarray], rows: slice, settings: Settings
) -> dict[str, torch.Tensor] | dict[str, Evidence]:
    """Return what stage 2 is to fit of some pictures."""
    blocks = block_order([name for name in decoded if name.startswith("block_")])
    if settings.structure_target == "values":
        return {name: _tensor(generator, decoded[name][rows]) for name in blocks}
    numbers = [name.removeprefix("block_") for name in blocks]
    lacking = [n for n in numbers if f"evidence_{n}" not in decoded]
    if lacking:
        raise InputError(
            f"The decoded features have no evidence_{lacking[0]}, which "
            "structure_target='components' needs: run 02_decoding again."
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
        file.create_dataset("failed", (n,), bool)
    check_room(file.filename, pictures.nbytes + losses.nbytes + films.nbytes)
    file["pictures"][rows], file["losses"][rows] = pictures, losses
    file["failed"][rows] = result.failed.cpu().numpy()
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
    losses : float32 array, shape (n, n_iterates, n_blocks)
    films : uint8 array, shape (n_films, n_iterates, H, W, 3)
    pictures : uint8 array, shape (n, H, W, 3)
    """
    with h5py.File(path, "r") as file:
        return file["losses"][:], file["films"][:], file["pictures"][:]


def read_failed(path: str | Path) -> np.ndarray:
    """Return which pictures failed, bool (n,); see `Stage2`."""
    with h5py.File(path, "r") as file:
        return file["failed"][:]


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
        Without `z` the picture begins from pure noise and passes as many steps as before (or the
        next fewer that span the schedule), and nothing pulls at its latent.
        Without `c` nothing says it, and the condition is that of an empty caption.

    Returns
    -------
    decoded, settings
        To call `reconstruct` with.
    """
    if part == "c":
        return {name: values for name, values in decoded.items() if name != "c"}, settings
    if part != "z":
        raise InputError(f'part={part!r}: expected "z" or "c".')
    before = len(generator.timesteps(settings.n_steps, settings.strength))
    steps = next(n for n in range(before, 0, -1) if generator.spans(n))
    whole = replace(settings, n_steps=steps, strength=1.0, z_evidence_weight=0.0)
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
    z, c, noise = stage1_inputs(generator, decoded, rows, seed)
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
        If the file holds other stimuli, or there is no room on the disk.
    """
    path, ids = Path(path), np.asarray(stimulus_id, np.int64)
    held: dict[str, np.ndarray] = {}
    if path.exists() and not fresh:
        with h5py.File(path, "r") as file:
            held = {name: file[name][:] for name in file}
        if not np.array_equal(held.pop("stimulus_id"), ids):
            raise InputError(f"{path} holds other stimuli; delete it and run 03_stage1 again.")
    content = {**held, **pictures}
    n_bytes = sum(values.nbytes for values in content.values())
    with atomic_path(path) as temporary, open_to_write(temporary, "w", n_bytes) as file:
        file["stimulus_id"] = ids
        for name, values in content.items():
            file.create_dataset(name, data=values, compression="gzip")
    return path
