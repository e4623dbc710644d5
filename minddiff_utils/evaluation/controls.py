"""What would a method reach without the brain, and what with perfect decoding?

Controls go through the same two stages as the brain's features, from other inputs: `true_features`
for the ceiling, `mean_features` and `no_brain` for floors. `nearest_training` and `blurred` paint
nothing; they show what looking things up, and blur, are worth.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from scipy.ndimage import gaussian_filter

from minddiff_utils.datasets import Split, Subject
from minddiff_utils.decoding.features import read_features
from minddiff_utils.evaluation.metrics import unit_rows
from minddiff_utils.io import InputError
from minddiff_utils.models.stable_diffusion import Generator
from minddiff_utils.reconstruction.inputs import ablate
from minddiff_utils.settings import Settings

# Controls and peers that chapter 5 can make, in the order it makes them.
CONTROLS = (
    "ceiling", "mean_features", "prior", "retrieval", "blur", "takagi", "neuraldiffuser"
)  # fmt: skip
BLOCK = 256  # pictures read at a time


class PermutationTest(NamedTuple):
    """A statistic, its values under the null hypothesis, and how rare it is among them."""

    observed: float
    null: np.ndarray
    p: float


def mean_picture(pictures: np.ndarray) -> np.ndarray:
    """Average of the training pictures, pixel by pixel: a guess that knows nothing of the brain.

    It is blurred, and blur does well on SSIM and PCC, so it shows what those metrics reward.

    Parameters
    ----------
    pictures : uint8 (n, h, w, 3)
        Training pictures; for a leave-one-out split, of that fold alone.

    Returns
    -------
    uint8 (h, w, 3)
    """
    if len(pictures) == 0:
        raise InputError("The mean picture needs at least one training picture; none was given.")
    return np.rint(np.mean(pictures, axis=0, dtype=np.float64)).astype(np.uint8)


def mean_pictures(subject: Subject) -> np.ndarray:
    """Return, for every test picture of every split, the mean of that split's training pictures.

    Pictures are read a block at a time: those of a big recording do not fit into memory.

    Parameters
    ----------
    subject : Subject

    Returns
    -------
    uint8 array, shape (n_test, height, width, 3)
        In the order of the splits and their test stimuli, as decoded features are.
    """
    rows = []
    for split in subject.splits:
        blocks = np.array_split(split.train, -(-len(split.train) // BLOCK))
        total = sum(subject.stimuli.pictures(ids).sum(axis=0, dtype=np.int64) for ids in blocks)
        mean = np.rint(total / len(split.train)).astype(np.uint8)
        rows.append(np.repeat(mean[None], len(split.test), axis=0))
    return np.concatenate(rows)


# --- the same two stages from other inputs -------------------------------------------------


def choose_controls(names: str) -> list[str]:
    """Return the single names of the parameter `controls`, in the order of `CONTROLS`.

    Raises
    ------
    InputError
        If one of them is unknown.
    """
    given = {name.strip() for name in names.split(",") if name.strip()}
    if unknown := given - set(CONTROLS):
        raise InputError(
            f"controls={names!r}: {', '.join(sorted(unknown))} is unknown; expected any of "
            f"{', '.join(CONTROLS)}, with commas between."
        )
    return [name for name in CONTROLS if name in given]


def settings_of(path: str | Path) -> tuple[Settings, int]:
    """Return the settings and the seed that `reconstruct` wrote a file with.

    Raises
    ------
    InputError
        If the file is missing or damaged.
    """
    try:
        with h5py.File(path, "r") as file:
            record = json.loads(file.attrs["record"])
    except (OSError, KeyError) as error:
        raise InputError(f"{path} cannot be read ({error}). Run 04_stage2 again.") from None
    known = {item.name for item in fields(Settings)}
    # JSON has no tuples.
    values = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in record.items()
        if name in known
    }
    return Settings(**values), int(record["seed"])


def true_features(
    decoded: Mapping[str, np.ndarray], features_path: str | Path
) -> dict[str, np.ndarray]:
    """Replace what was decoded by the true features of the test pictures: the ceiling.

    Both stages then do what they would with a perfect decoder of the same features: of the blocks,
    the same values or components, each with the weight that its decoding gave it.

    Parameters
    ----------
    decoded : mapping of str to array
        What `read_decoded` returns.
    features_path : str or Path
        From `write_features`.

    Returns
    -------
    dict
        To call `reconstruct` with.
    """
    ids, split = decoded["stimulus_id"], decoded["split"]
    out = dict(decoded)
    for name in _inputs(decoded):
        true = read_features(features_path, name, ids)
        out[name] = np.where(np.isfinite(decoded[name]), true, np.nan)
        _project(out, name, true.reshape(len(true), -1), split)
    return out


def mean_features(
    decoded: Mapping[str, np.ndarray], features_path: str | Path, splits: Sequence[Split]
) -> dict[str, np.ndarray]:
    """Replace what was decoded by the mean over the training pictures of each split: a floor.

    Parameters
    ----------
    decoded : mapping of str to array
        What `read_decoded` returns.
    features_path : str or Path
    splits : sequence of Split
        Of the subject, in the order of `decoded["split"]`.

    Returns
    -------
    dict
        To call `reconstruct` with. Only the noise differs between pictures of one split.
    """
    split = decoded["split"]
    out = dict(decoded)
    for name in _inputs(decoded):
        means = []
        for part in splits:
            blocks = _read_blocks(features_path, name, part.train)
            means.append(sum(block.sum(0, np.float64) for _, block in blocks) / len(part.train))
        mean = np.stack(means).astype(np.float32)[split]
        out[name] = np.where(np.isfinite(decoded[name]), mean, np.nan)
        _project(out, name, mean.reshape(len(mean), -1), split)
    return out


def _inputs(decoded: Mapping[str, np.ndarray]) -> list[str]:
    """The families that both stages start from."""
    return [name for name in decoded if name in ("z", "c") or name.startswith("block_")]


def _project(out: dict[str, np.ndarray], name: str, values: np.ndarray, split: np.ndarray) -> None:
    """Put the evidence that structure `values` would give in the place of the decoded one."""
    number = name.removeprefix("block_")
    if f"evidence_{number}" not in out:
        return
    evidence = np.zeros_like(out[f"evidence_{number}"])
    for which in np.unique(split):
        rows = split == which
        evidence[rows] = values[rows] @ out[f"projection_{number}"][which]
    out[f"evidence_{number}"] = evidence


def _read_blocks(
    path: str | Path, family: str, ids: np.ndarray
) -> Iterator[tuple[slice, np.ndarray]]:
    """Read a family `BLOCK` stimuli at a time."""
    for start in range(0, len(ids), BLOCK):
        rows = slice(start, start + BLOCK)
        yield rows, read_features(path, family, ids[rows])


def no_brain(
    generator: Generator, decoded: Mapping[str, np.ndarray], settings: Settings
) -> tuple[dict[str, np.ndarray], Settings]:
    """Take everything decoded away: what the generator paints from noise, told nothing.

    Parameters
    ----------
    generator : Generator
    decoded : mapping of str to array
    settings : Settings
        Of stage 1.

    Returns
    -------
    decoded, settings
        To call `reconstruct` with.
    """
    return ablate(generator, *ablate(generator, decoded, settings, "c"), "z")


# --- nothing painted -----------------------------------------------------------------------


def nearest_training(
    decoded: Mapping[str, np.ndarray],
    features_path: str | Path,
    splits: Sequence[Split],
    families: Sequence[str] = ("z", "c", "embedding"),
) -> np.ndarray:
    r"""Find for each test picture the training picture whose features fit the decoded ones best.

    With the decoded features :math:`\hat y` and those of training picture j, :math:`y_j`, both
    without the mean :math:`m` of the training pictures, the picture with the largest

    .. math:: \sum_f \cos(\hat y_f - m_f,\; y_{jf} - m_f)

    over the families f is taken: the brain is used, but nothing is painted.

    Parameters
    ----------
    decoded : mapping of str to array
    features_path : str or Path
    splits : sequence of Split
        In the order of `decoded["split"]`.
    families : sequence of str

    Returns
    -------
    int64 array, shape (n_test,)
        Stimulus ids, each from the training pictures of its split.
    """
    out = np.empty(len(decoded["stimulus_id"]), np.int64)
    for number, split in enumerate(splits):
        rows = np.flatnonzero(decoded["split"] == number)
        fit = np.zeros((len(rows), len(split.train)))
        for name in families:
            blocks = _read_blocks(features_path, name, split.train)
            mean = sum(y.sum(0, np.float64) for _, y in blocks).ravel() / len(split.train)
            wanted = unit_rows(decoded[name][rows].reshape(len(rows), -1) - mean)
            for place, y in _read_blocks(features_path, name, split.train):
                fit[:, place] += wanted @ unit_rows(y.reshape(len(y), -1) - mean).T
        out[rows] = split.train[fit.argmax(axis=1)]
    return out


def blurred(pictures: np.ndarray, share: float) -> np.ndarray:
    """Blur pictures with a Gaussian: what SSIM and PCC give to a picture that shows no thing.

    Parameters
    ----------
    pictures : uint8 (n, h, w, 3)
    share : float
        Standard deviation of the Gaussian as a share of the width.

    Returns
    -------
    uint8 (n, h, w, 3)
    """
    if not share > 0:
        raise InputError(f"share={share}: expected a positive share of the width, such as 0.06.")
    sigma = share * pictures.shape[2]
    wide = gaussian_filter(pictures.astype(np.float32), (0, sigma, sigma, 0), mode="nearest")
    return np.rint(wide).clip(0, 255).astype(np.uint8)


# --- chance --------------------------------------------------------------------------------


def permutation_test(
    similarity: np.ndarray, n_permutations: int = 9999, seed: int = 0
) -> PermutationTest:
    """Test whether reconstructions are closer to their own pictures than to others.

    The statistic is the mean similarity of matched pairs (the diagonal). Under the null
    hypothesis the reconstructions carry no information about *which* picture was seen, so every
    assignment of reconstructions to pictures is equally likely. A method that draws the same
    pleasant picture every time gets p = 1, however high its similarity.

    Parameters
    ----------
    similarity : float (n, n)
        Row i: similarity of reconstruction i to each picture that was seen.
    n_permutations : int
        Random assignments.
    seed : int
        Same seed, same null distribution.

    Returns
    -------
    PermutationTest
        `observed`, `null` float64 (n_permutations,), and the one-sided
        `p = (1 + #{null >= observed}) / (1 + n_permutations)`.

    Raises
    ------
    InputError
        If the matrix is not square, has fewer than two pictures, or holds a NaN.
    """
    similarity = np.asarray(similarity, dtype=np.float64)
    n = len(similarity)
    if similarity.shape != (n, n) or n < 2 or not np.isfinite(similarity).all():
        raise InputError(
            f"The permutation test needs a finite square matrix of at least two pictures, not "
            f"{similarity.shape} with {np.sum(~np.isfinite(similarity))} non-finite values."
        )
    rng = np.random.default_rng(seed)
    rows = np.arange(n)
    null = np.array([similarity[rows, rng.permutation(n)].mean() for _ in range(n_permutations)])
    observed = np.trace(similarity) / n
    # Sums in another order differ in the last digit: an assignment equal to the observed counts.
    as_large = np.sum(null >= observed - 1e-12 * max(1.0, np.abs(similarity).max()))
    return PermutationTest(float(observed), null, float((1 + as_large) / (1 + n_permutations)))


def shuffled_rows(n: int, rng: np.random.Generator) -> np.ndarray:
    """Random order of n rows in which no row keeps its place (a uniform random derangement).

    For the control of shuffled training responses: every stimulus gets another one's response.

    Parameters
    ----------
    n : int
        Number of rows, at least 2.
    rng : numpy Generator

    Returns
    -------
    int64 (n,)
    """
    if n < 2:
        raise InputError(f"{n} rows cannot be shuffled: at least 2 are needed.")
    while True:  # a random permutation has no fixed point with probability 1/e: 2.7 tries
        order = rng.permutation(n)
        if not np.any(order == np.arange(n)):
            return order
