"""The files that both stages write, batch by batch: a stopped run goes on where it was."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

from minddiff_utils import io
from minddiff_utils.models.clip import to_pictures
from minddiff_utils.models.stable_diffusion import Generator
from minddiff_utils.reconstruction.losses import Arrays
from minddiff_utils.settings import Settings

# A picture whose loss ends this many times as high as it began has diverged.
DIVERGED = 2.0
# Of so many pictures, the first ones, every iterate is kept.
KEPT = 6


class Reconstruction(NamedTuple):
    """What a stage leaves of some pictures: the last iterate of each, and how it got there.

    Parameters
    ----------
    pictures : Tensor, shape (n, 3, H, W)
    losses : Tensor, shape (n, n_iterates, n_blocks)
        Structure loss of each block at each iterate; the last is that of the result.
    iterates : list of n_iterates Tensor
        Stage 1: its picture. Algorithm 1: that of every iteration, the first that of stage 1.
        Guided pass: the picture predicted at every guided step, and the result.
    failed : bool Tensor, shape (n,)
        Pictures that, or whose loss or gradient, were not finite at some iterate (as where half
        precision overflows), or whose loss doubled: for these the finite iterate of least loss
        stands in the place of the last, and grey where there is none.
    """

    pictures: Tensor
    losses: Tensor
    iterates: list[Tensor]
    failed: Tensor


def choose_iterates(iterates: Sequence[Tensor], losses: Sequence[Tensor]) -> Reconstruction:
    """Give a picture that failed the iterate of least loss; the others their last.

    Parameters
    ----------
    iterates : sequence of Tensor, shape (n, 3, H, W)
    losses : sequence of Tensor, shape (n, n_blocks)
    """
    course = torch.stack(list(losses), dim=1).cpu()
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
    return Reconstruction(pictures, course, iterates, failed)


def describe(
    generator: Generator, decoded: Arrays, settings: Settings, seed: int = 0, n_kept: int = KEPT
) -> str:
    """Return what a result follows from, inputs by their content; its file carries it."""
    inputs = io.content_hash(sorted(decoded.items()))
    about = {"seed": seed, "kept": n_kept, "inputs": inputs, "models": generator.fingerprint}
    about["code"] = io.code_digest("models", "reconstruction")
    if settings.solver == "guided" and settings.gradient_decoder == "tiny":
        about["tiny"] = generator.tiny_fingerprint
    return json.dumps({**asdict(settings), **about})


def check_inputs(path: str | Path, decoded: Arrays, notebook: str) -> None:
    """Raise InputError unless a notebook wrote `path` from these decoded features."""
    with h5py.File(path, "r") as file:
        record = json.loads(file.attrs["record"])
    if record["inputs"] != io.content_hash(sorted(decoded.items())):
        raise io.InputError(f"{path} was made from other decoded features. Run {notebook} again.")


def write_batches(
    path: str | Path,
    ids: np.ndarray,
    record: str,
    compute: Callable[[slice], Reconstruction],
    batch: int,
    n_kept: int,
    label: str,
) -> Path:
    """Compute all pictures, a batch at a time, and write them; go on where a run stopped.

    Parameters
    ----------
    path : str or Path
        HDF5 file; see `io.write_rows`.
    ids : int array, shape (n,)
        Stimuli.
    record : str
        From `describe`.
    compute : callable
        Makes the pictures of some rows.
    batch : int
        Pictures at a time.
    n_kept : int
        Of the first so many pictures every iterate is kept.
    label : str
        Name of the progress bar.

    Returns
    -------
    Path
        `stimulus_id` (n,), `pictures` uint8 (n, H, W, 3), `losses` (n, n_iterates, blocks),
        `iterates` uint8 (n_kept, n_iterates, H, W, 3), `failed` bool (n,); see `Reconstruction`.

    Raises
    ------
    InputError
        If there is no room on the disk.
    """

    def arrays(rows: slice) -> dict[str, np.ndarray]:
        result = compute(rows)
        return {
            "pictures": to_pictures(result.pictures),
            "losses": result.losses.float().cpu().numpy(),
            "iterates": np.stack([to_pictures(rgb) for rgb in result.iterates], axis=1),
            "failed": result.failed.cpu().numpy(),
        }

    return io.write_rows(path, ids, record, arrays, batch, label, {"iterates": n_kept})


def read_pictures(path: str | Path) -> np.ndarray:
    """Return the pictures that a stage wrote, uint8 (n, H, W, 3)."""
    with h5py.File(path, "r") as file:
        return file["pictures"][:]


def read_trace(path: str | Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what a stage wrote.

    Returns
    -------
    losses : float32 array, shape (n, n_iterates, n_blocks)
    iterates : uint8 array, shape (n_kept, n_iterates, H, W, 3)
    pictures : uint8 array, shape (n, H, W, 3)
    """
    with h5py.File(path, "r") as file:
        return file["losses"][:], file["iterates"][:], file["pictures"][:]


def write_pictures(
    path: str | Path, stimulus_id: io.Ids, pictures: np.ndarray, record: str = ""
) -> Path:
    """Write pictures that no stage has painted here.

    Parameters
    ----------
    path : str or Path
        HDF5 file, replaced once the new one is whole; see `io.method_file`.
    stimulus_id : sequence of n int
    pictures : uint8 array, shape (n, h, w, 3)
    record : str
        What they follow from, if anything; an attribute.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        If there is no room on the disk.
    """
    with io.atomic_path(path) as new, io.open_to_write(new, "w", pictures.nbytes) as file:
        file["stimulus_id"] = np.asarray(stimulus_id, np.int64)
        file.create_dataset("pictures", data=pictures, compression="gzip", fletcher32=True)
        file.attrs["record"] = record
    return Path(path)
