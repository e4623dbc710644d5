"""The targets of decoding for every stimulus: `z`, `c` and CLIP structure, in one HDF5 file."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from minddiff_utils.datasets import Subject
from minddiff_utils.datasets.reading import open_file
from minddiff_utils.io import Ids, InputError, code_digest, content_hash, write_rows

if TYPE_CHECKING:
    from minddiff_utils.models.stable_diffusion import Generator

AT_ONCE = 256  # pictures that are read at a time to tell them from others
HINT = "Delete it and run 02_decoding again."  # where a file of that chapter is damaged


def feature_spaces(path: str | Path) -> list[str]:
    """Return the names of the feature spaces in a file: z, c, block_1 …, embedding."""
    with open_file(Path(path), HINT) as file:
        names = set(file)
    blocks = sorted((name for name in names if name.startswith("block_")), key=lambda n: int(n[6:]))
    return [name for name in ("z", "c", *blocks, "embedding") if name in names]


def read_features(path: str | Path, space: str, stimulus_ids: Ids) -> np.ndarray:
    """Read one feature space for some stimuli.

    Parameters
    ----------
    path : str or Path
        A file that `write_features` wrote.
    space : str
        "z", "c", "block_1" …, "embedding".
    stimulus_ids : sequence of n int

    Returns
    -------
    ndarray of float32, shape (n, …)
        In the order of `stimulus_ids`.

    Raises
    ------
    InputError
        If the file is damaged, or holds no such feature space or stimulus.
    """
    ids = np.asarray(stimulus_ids)
    with open_file(Path(path), HINT) as file:
        if space not in file:
            raise InputError(f"{path} holds no features {space!r}; it has {', '.join(file)}.")
        known = file["stimulus_id"][:]
        for wrong in ids[~np.isin(ids, known)]:
            raise InputError(f"{path} lacks features of stimulus {wrong}; run 02_decoding again.")
        rows, inverse = np.unique(np.searchsorted(known, ids), return_inverse=True)
        # Many single rows take four times as long as the whole that they lie in.
        if len(rows) and 2 * len(rows) > rows[-1] - rows[0]:
            found = file[space][rows[0] : rows[-1] + 1][rows - rows[0]]
        else:
            found = file[space][rows]
        return found.astype(np.float32)[inverse]


def read_values(path: str | Path, space: str, stimulus_ids: Ids) -> np.ndarray:
    """Read one feature space as a matrix, float32 (n, n_values); see `read_features`."""
    return read_features(path, space, stimulus_ids).reshape(len(stimulus_ids), -1)


def write_features(
    path: str | Path, subject: Subject, generator: "Generator", n_blocks: int = 6, batch: int = 64
) -> Path:
    """Compute the features of all stimuli of a subject, block by block; go on where a run stopped.

    A file that is there is taken only if it was computed with these models from these images,
    pixel by pixel, and these captions. So all are read once before: of NSD 10,000 images of a
    subject, or 5 GB, where its decoders take far longer.

    Parameters
    ----------
    path : str or Path
        The HDF5 file; see `write_rows`.
    subject : Subject
        Its `stimuli` give images and captions.
    generator : Generator
    n_blocks : int
        Structure is taken from vision blocks 1 to `n_blocks` of the guide.
    batch : int
        Images at a time.

    Returns
    -------
    Path
        Datasets `stimulus_id` int64 (n,), sorted; `z` float32 (n, channels, h, w); `c` float32
        (n, tokens, width); `block_1` … float16 (n, tokens, width); `embedding` float32 (n, dims).

    Raises
    ------
    InputError
        If the guide has fewer than `n_blocks` blocks, a feature is not finite (as where half
        precision overflows), or there is no room on the disk.
    """
    ids = subject.stimulus_ids
    if not 1 <= n_blocks <= generator.guide.n_blocks:
        raise InputError(f"n_blocks={n_blocks}: the guide has {generator.guide.n_blocks} blocks.")
    # Differs between models and code, so that a stopped run never mixes two of them.
    about = {"blocks": n_blocks, "models": generator.fingerprint}
    about |= {"code": code_digest("models", "decoding/features.py"), "stimuli": _digest(subject)}

    def compute(rows: slice) -> dict[str, np.ndarray]:
        return _compute(generator, *_read(subject, ids[rows]), n_blocks)

    return write_rows(path, ids.astype(np.int64), json.dumps(about), compute, batch, "features")


def _digest(subject: Subject) -> str:
    """Digest of the ids, images and captions of all stimuli."""
    digest, ids = "", subject.stimulus_ids
    for start in range(0, len(ids), AT_ONCE):
        some = ids[start : start + AT_ONCE]
        pictures, captions = _read(subject, some)
        digest = content_hash([(json.dumps([digest, some.tolist(), captions]), pictures)])
    return digest


def _read(subject: Subject, ids: np.ndarray) -> tuple[np.ndarray, list[tuple[str, ...]]]:
    return subject.stimuli.pictures(ids), subject.stimuli.captions(ids)


@torch.no_grad()
def _compute(generator: "Generator", pictures, captions, n_blocks: int) -> dict[str, np.ndarray]:
    """All feature spaces of some stimuli, as arrays with one row a stimulus."""
    found = {"z": generator.encode_pictures(pictures), "c": generator.encode_captions(captions)}
    # Of the size of painted pictures: stage 2 compares the structure of those with this.
    found |= generator.guide.structure(generator.prepare(pictures), range(1, n_blocks + 1))
    if wrong := [name for name, values in found.items() if not values.isfinite().all()]:
        raise InputError(
            f"{wrong[0]} of a picture is not finite, computed in {generator.compute_dtype}: set "
            "dtype to float32, or to bfloat16 on a GPU; if it is that already, restore the models."
        )
    # Blocks are by far the largest and need no more than float16's three digits.
    return {
        name: values.float().cpu().numpy().astype("f2" if name.startswith("block") else "f4")
        for name, values in found.items()
    }
