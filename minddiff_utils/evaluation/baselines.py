"""How good is a method without the brain, with perfect decoding, or as others do it?

Every one is a function of the bench, the same brain, decoders and generator for all, and gives an
image for each test stimulus. Most go through the same two stages as the brain's features, from
other inputs; `retrieval` and `blur` paint nothing: they show what looking things up, and blur, are
worth.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np

from minddiff_utils.datasets import Split, Subject
from minddiff_utils.datasets.subject import is_early
from minddiff_utils.decoding.decode import decode_tests, join_splits, read_decoded
from minddiff_utils.decoding.decoders import Method
from minddiff_utils.decoding.features import read_features
from minddiff_utils.evaluation import METHODS, full_method, in_order
from minddiff_utils.evaluation.metrics import blurred, read_reconstructions, unit_rows
from minddiff_utils.io import InputError, content_hash, method_file, require
from minddiff_utils.models.stable_diffusion import Generator
from minddiff_utils.reconstruction import ablate
from minddiff_utils.reconstruction.losses import Arrays
from minddiff_utils.reconstruction.results import check_inputs, read_pictures, write_pictures
from minddiff_utils.reconstruction.stage2 import reconstruct
from minddiff_utils.settings import FULL_METHODS, Settings, recall

SAME = 1e-3  # of the spread of statistics: what rounding leaves
BLOCK = 256  # pictures read at a time: those of a big recording do not fit into memory
LOOKED_UP = ("z", "c", "embedding")  # feature spaces by which training images are found
GUIDED, OF = 7, 37  # NeuralDiffuser: steps that are guided, the first ones, and steps in all


@dataclass(frozen=True)
class Bench:
    """What every baseline of a subject is made with.

    `first` and `full` are the settings that stage 1 and the full method ran with, `seed` that of
    their noise; `features` and `folder` are paths, `decoded` what `read_decoded` returns; `blur` is
    the width of the baseline "blur", as a share of the image's width.
    """

    person: Subject
    generator: Generator
    decoded: dict[str, np.ndarray]
    features: Path
    folder: Path
    first: Settings
    full: Settings
    seed: int = 0
    batch: int = 8
    blur: float = 0.06

    def run(self, decoded: dict[str, np.ndarray], settings: Settings, name: str) -> np.ndarray:
        """Take features through the stages; uint8 (n, H, W, 3), kept as those of method `name`.

        Settings without iterations, as those of `first`, are stage 1 alone.
        """
        path = method_file(self.folder, name)
        given = self.generator, decoded, settings, path
        reconstruct(*given, seed=self.seed, batch=self.batch, n_kept=0, label=name)
        return read_pictures(path)

    def decoding(self) -> Method:
        """How the run decoded, without what stage 2 does not need, on the generator's device."""
        method = Method.of(_record(self.folder / "decoded.h5", "settings"))
        if self.full.structure_target != "values":
            method.set_params(keep_structure=0)
        return method.set_params(device=str(self.generator.device))

    def seen(self, stimulus_id: np.ndarray) -> np.ndarray:
        """Images of the recording, of the size of painted ones."""
        return self.generator.resize(self.person.stimuli.pictures(stimulus_id))


def open_bench(person: Subject, generator: Generator, folder: str | Path, batch: int = 8) -> Bench:
    """Read what the chapters before have left of a subject.

    Parameters
    ----------
    person : Subject
    generator : Generator
    folder : str or Path
        Of the subject.
    batch : int
        Images at a time in stage 2.

    Returns
    -------
    Bench

    Raises
    ------
    InputError
        If a file is missing; and as `methods_of_stages` does.
    """
    folder = Path(folder)
    features = require(folder / "features.h5", "02_decoding")
    methods = methods_of_stages(folder)
    decoded = read_decoded(folder / "decoded.h5")
    first, _ = settings_of(method_file(folder, "stage1"))
    full, seed = settings_of(method_file(folder, str(full_method(methods))))
    return Bench(person, generator, decoded, features, folder, first, full, seed, batch)


def methods_of_stages(folder: str | Path) -> list[str]:
    """Return the methods whose images chapters 03 and 04 have left of a subject.

    Parameters
    ----------
    folder : str or Path
        Of the subject. Which methods they were is said by the parameters that `run.json` remembers,
        so what an earlier run has left beside them does not count.

    Raises
    ------
    InputError
        If a file is missing, or was made from other decoded features or with other parameters of
        stage 1; the message says which chapter to run again.
    """
    decoded = read_decoded(require(Path(folder) / "decoded.h5", "02_decoding"))
    first = require(method_file(folder, "stage1"), "03_stage1")
    require(method_file(folder, "shuffled"), "04_stage2")
    given = recall(folder)
    full = FULL_METHODS[given.solver]
    for method, chapter in (("stage1", "03_stage1"), (full, "04_stage2")):
        check_inputs(require(method_file(folder, method), chapter), decoded, chapter)
    one, other = settings_of(first)[0], settings_of(method_file(folder, full))[0]
    for name in ("n_steps", "strength", "guidance_scale"):
        if getattr(one, name) != getattr(other, name):
            raise InputError(
                f"{folder}: stage 1 was made with {name}={getattr(one, name)}, stage 2 with "
                f"{getattr(other, name)}. Run 04_stage2 again."
            )
    names = {"stage1", full} | ({"no_z", "no_c"} if given.ablations else set())
    stored = method_file(folder, "algorithm_1")
    if stored.exists() and _record(stored).inputs == _record(first).inputs:
        names.add("algorithm_1")
    return in_order(names, METHODS)


def read_draws(folder: str | Path, methods: Sequence[str]) -> dict[int, dict[str, np.ndarray]]:
    """Read the reconstructions of every draw of the noise.

    Parameters
    ----------
    folder : str or Path
        Of the subject.
    methods : sequence of str
        From `methods_of_stages`.

    Returns
    -------
    dict of seed to dict of method to uint8 array, shape (n, h, w, 3)
        First the run's own draw, of all methods; then the others, of stage 1 and both stages.
    """
    first = settings_of(method_file(folder, "stage1"))[1]
    draws = {first: read_reconstructions(folder, methods)[1]}
    always = ("stage1", full_method(methods))
    for seed in range(first + 1, first + recall(folder).n_seeds):
        names = [n for n in methods if n in always or method_file(folder, n, seed).is_file()]
        draws[seed] = read_reconstructions(folder, names, seed)[1]
    return draws


def settings_of(path: str | Path) -> tuple[Settings, int]:
    """Return the settings and the seed that `reconstruct` wrote a file with."""
    record = _record(path)
    return Settings.of(record), record.seed


def make_control(name: str, bench: Bench, blur: float = 0.06) -> np.ndarray:
    """Make the images of one baseline, and keep them beside those of the other methods.

    Parameters
    ----------
    name : str
        One of `settings.CONTROLS`.
    bench : Bench
    blur : float
        Width of the Gaussian of the baseline "blur", as a share of the image's width.

    Returns
    -------
    uint8 array, shape (n, H, W, 3)
        In the order of `bench.decoded["stimulus_id"]`.

    """
    pictures = FUNCTIONS[name](replace(bench, blur=blur))
    if name in UNPAINTED:
        write_pictures(method_file(bench.folder, name), bench.decoded["stimulus_id"], pictures)
    return pictures


# --- the same two stages from other inputs -------------------------------------------------


def ceiling(bench: Bench) -> np.ndarray:
    """Both stages from the true features of the test images: perfect decoding."""
    return bench.run(true_features(bench.decoded, bench.features), bench.full, "ceiling")


def from_mean_features(bench: Bench) -> np.ndarray:
    """Both stages from the mean features of the training images."""
    return bench.run(mean_features(bench), bench.full, "mean_features")


def prior(bench: Bench) -> np.ndarray:
    """Take everything decoded away: what the generator paints from noise, told nothing."""
    without_c = ablate(bench.generator, bench.decoded, bench.first, "c")
    return bench.run(*ablate(bench.generator, *without_c, "z"), "prior")


def true_features(decoded: dict[str, np.ndarray], path: str | Path) -> dict[str, np.ndarray]:
    """Replace what was decoded by the true features of the test images.

    Both stages then do what they would with a perfect decoder of the same features: of the blocks,
    the same values or components, each with the weight that its decoding gave it.

    Parameters
    ----------
    decoded : mapping of str to array
        What `read_decoded` returns.
    path : str or Path
        Of the features, from `write_features`.

    Returns
    -------
    dict
        To call `reconstruct` with.
    """
    ids = decoded["stimulus_id"]
    return _replaced(decoded, lambda name: read_features(path, name, ids))


def mean_features(bench: Bench) -> dict[str, np.ndarray]:
    """Replace what was decoded by the mean over the training images of each split.

    Returns
    -------
    dict
        To call `reconstruct` with. Only the noise differs between images of one split.
    """

    def mean(name: str) -> np.ndarray:
        means = [_mean(bench.features, name, split.train) for split in bench.person.splits]
        return np.stack(means).astype(np.float32)[bench.decoded["split"]]

    return _replaced(bench.decoded, mean)


def _replaced(decoded: dict[str, np.ndarray], values_of: Callable) -> dict[str, np.ndarray]:
    """Put other values, and the evidence that they would give, in the place of the decoded ones."""
    out = dict(decoded)
    for name in decoded:
        if name not in ("z", "c") and not name.startswith("block_"):
            continue
        values = values_of(name)
        out[name] = np.where(np.isfinite(decoded[name]), values, np.nan)
        number = name.removeprefix("block_")
        if f"evidence_{number}" in decoded:
            evidence = np.zeros_like(decoded[f"evidence_{number}"])
            for split in np.unique(decoded["split"]):
                rows, projection = decoded["split"] == split, decoded[f"projection_{number}"][split]
                evidence[rows] = values[rows].reshape(rows.sum(), -1) @ projection
            out[f"evidence_{number}"] = evidence
    return out


def _blocks(path: str | Path, name: str, ids: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Read a feature space `BLOCK` stimuli at a time."""
    for start in range(0, len(ids), BLOCK):
        rows = slice(start, start + BLOCK)
        yield rows, read_features(path, name, ids[rows])


def _mean(path: str | Path, name: str, ids: np.ndarray) -> np.ndarray:
    """Mean of a feature space over stimuli, float64."""
    return sum(block.sum(0, np.float64) for _, block in _blocks(path, name, ids)) / len(ids)


# --- nothing painted -----------------------------------------------------------------------


def mean_pictures(bench: Bench) -> np.ndarray:
    """Return, for every test image of every split, the mean of that split's training images.

    It is blurred, and blur does well on SSIM and PCC, so it shows what those metrics reward.
    In the order of the splits and their test stimuli, as decoded features are.
    """
    rows, stimuli = [], bench.person.stimuli
    for split in bench.person.splits:
        blocks = np.array_split(split.train, -(-len(split.train) // BLOCK))
        total = sum(stimuli.pictures(ids).sum(axis=0, dtype=np.int64) for ids in blocks)
        mean = np.rint(total / len(split.train)).astype(np.uint8)
        rows.append(np.repeat(mean[None], len(split.test), axis=0))
    return bench.generator.resize(np.concatenate(rows))


def retrieval(bench: Bench) -> np.ndarray:
    """The training image whose features fit the decoded ones best."""
    return bench.seen(nearest_training(bench))


def nearest_training(bench: Bench) -> np.ndarray:
    r"""Find for each test image the training image whose features fit the decoded ones best.

    With the decoded features :math:`\hat y` and those of training image j, :math:`y_j`, both
    without the mean :math:`m` of the training images, the image with the largest

    .. math:: \sum_f \cos(\hat y_f - m_f,\; y_{jf} - m_f)

    over the feature spaces f, `z`, `c` and `embedding`, is taken: the brain is used, but nothing
    is painted.

    Returns
    -------
    int64 array, shape (n_test,)
        Stimulus ids, each from the training images of its split.
    """
    decoded = bench.decoded
    out = np.empty(len(decoded["stimulus_id"]), np.int64)
    for number, split in enumerate(bench.person.splits):
        rows = np.flatnonzero(decoded["split"] == number)
        fit = np.zeros((len(rows), len(split.train)))
        for name in LOOKED_UP:
            mean = _mean(bench.features, name, split.train).ravel()
            wanted = unit_rows(decoded[name][rows].reshape(len(rows), -1) - mean)
            for place, y in _blocks(bench.features, name, split.train):
                fit[:, place] += wanted @ unit_rows(y.reshape(len(y), -1) - mean).T
        out[rows] = split.train[fit.argmax(axis=1)]
    return out


def neighbour(bench: Bench) -> np.ndarray:
    """The training image whose features fit the true ones best: `retrieval`, decoded perfectly."""
    ids = bench.decoded["stimulus_id"]
    true = {name: read_features(bench.features, name, ids) for name in LOOKED_UP}
    return bench.seen(nearest_training(replace(bench, decoded=bench.decoded | true)))


def blurred_truth(bench: Bench) -> np.ndarray:
    """The stimuli, blurred."""
    return blurred(bench.seen(bench.decoded["stimulus_id"]), bench.blur)


# --- what others do with the same brain, decoders and generator ----------------------------


def decode_again(
    bench: Bench,
    splits: Sequence[Split],
    n_folds: int | None = None,
    names: Sequence[str] = (),
    voxels: np.ndarray | slice = slice(None),
) -> dict[str, np.ndarray]:
    """Decode other splits, or from other voxels, with the settings of the run.

    Parameters
    ----------
    bench : Bench
    splits : sequence of Split
    n_folds : int, optional
        Of cross-validation; those of the run if not given.
    names : sequence of str
        Feature spaces; all if none are given.
    voxels : bool array, shape (n_voxels,), or slice
        Which are used.

    Returns
    -------
    dict
        What `read_decoded` returns of these splits.
    """
    method = bench.decoding()
    if n_folds:
        method.set_params(n_folds=n_folds)
    decode = partial(decode_tests, bench.person, bench.features, method=method)
    return join_splits([decode([split], names=names, voxels=voxels)[0] for split in splits])


def _record(path: str | Path, attribute: str = "record") -> SimpleNamespace:
    with h5py.File(path, "r") as file:
        return SimpleNamespace(**json.loads(file.attrs[attribute]))


def takagi(bench: Bench) -> np.ndarray:
    """Reconstruct as Takagi & Nishimoto (2023): `z` from early visual areas, `c` from the others.

    Their reconstruction is stage 1 of what is decoded so. Decoders, their cross-validation and the
    generator are those of the run, so that what differs is which voxels are used, and no stage 2.

    Raises
    ------
    InputError
        If the recording has early areas only, or none of them.
    """
    early, higher = early_and_higher(bench.person.roi)
    z = decode_again(bench, bench.person.splits, names=["z"], voxels=early)["z"]
    c = decode_again(bench, bench.person.splits, names=["c"], voxels=higher)["c"]
    return bench.run({**bench.decoded, "z": z, "c": c}, bench.first, "takagi")


def early_and_higher(roi: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Split the voxels into those of early visual areas, V1 to V3, and those of all others.

    Parameters
    ----------
    roi : mapping of name to bool array, shape (n_voxels,)

    Returns
    -------
    early, higher : bool arrays, shape (n_voxels,)

    Raises
    ------
    InputError
        If either has no voxel.
    """
    early = np.any([mask & is_early(name, narrow=True) for name, mask in roi.items()], axis=0)
    higher = np.any(list(roi.values()), axis=0) & ~early
    for name, mask in (("early", early), ("higher", higher)):
        if not mask.any():
            raise InputError(
                f"The regions {', '.join(roi)} hold no voxel of {name} visual areas (early: V1, "
                "V2, V3 or early). Leave `takagi` out of `controls`."
            )
    return early, higher


def neuraldiffuser(bench: Bench) -> np.ndarray:
    """Guide as NeuralDiffuser (Li et al. 2025) does: the first few steps alone, one gradient each.

    Their published code guides the first 7 of 37 denoising steps by the same six CLIP layers. What
    the gradient is taken of, its step size and the decoders stay this book's, so that what differs
    is the schedule; the evidence about `z` has no weight.
    """
    n_steps = len(bench.generator.timesteps(bench.full.n_steps, bench.full.strength))
    return bench.run(bench.decoded, first_steps_guided(bench.full, n_steps), "neuraldiffuser")


def first_steps_guided(settings: Settings, n_steps: int) -> Settings:
    """Return the settings with NeuralDiffuser's share of `n_steps` denoised steps guided."""
    settings = replace(settings, solver="guided", z_evidence_weight=0.0)
    guided = max(1, round(GUIDED / OF * n_steps))
    return replace(settings, n_guided_steps=guided, guide_every=1, gradient_steps=1)


FUNCTIONS: dict[str, Callable[[Bench], np.ndarray]] = {
    "takagi": takagi,
    "neuraldiffuser": neuraldiffuser,
    "ceiling": ceiling,
    "blur": blurred_truth,
    "retrieval": retrieval,
    "neighbour": neighbour,
    "mean": mean_pictures,
    "mean_features": from_mean_features,
    "prior": prior,
}
UNPAINTED = ("blur", "retrieval", "neighbour", "mean")  # which go through no stage


# --- pictures that were made once, in hours ---------------------------------------------------


def stored_pictures(path: str | Path, decoded: Arrays) -> tuple[np.ndarray | None, str]:
    """Return what `studies.stored.store_pictures` kept, if it follows from these decoded features.

    Parameters
    ----------
    path : str or Path
    decoded : mapping of str to array, shape (n, …)
        Of this run. Rounding of another processor is no difference.

    Returns
    -------
    pictures : uint8 array, shape (n, n_seeds, h, w, 3), or None
        From draws of the noise with the seeds 0, 1 …
    note : str
        How they were made, or why there are none.
    """
    if not Path(path).is_file():
        return None, "Nothing of Algorithm 1 is stored for this recording."
    with h5py.File(path, "r") as file:
        statistics, ours = file["statistics"][:], decoded_statistics(decoded)
        same = np.array_equal(file["stimulus_id"][:], decoded["stimulus_id"])
        same &= statistics.shape == ours.shape  # as many blocks
        if not same or not np.allclose(statistics, ours, rtol=0, atol=SAME * statistics.std()):
            return None, "What is stored of Algorithm 1 follows from other decoded features."
        return file["pictures"][:], f"Stored, not made here: {file.attrs['about']}"


def add_stored(
    folder: str | Path, pictures: np.ndarray, decoded: Arrays, seeds: Sequence[int]
) -> None:
    """Put stored images of Algorithm 1 beside those that a subject's chapters make.

    Parameters
    ----------
    folder : str or Path
        Of the subject.
    pictures : uint8 array, shape (n, n_seeds, h, w, 3)
        From `stored_pictures`.
    decoded : mapping of str to array
        What they follow from.
    seeds : sequence of int
        Draws of the noise of this run. The first is given the first of the stored ones, another
        that of the same seed if there is one.
    """
    record = json.dumps({"solver": "algorithm_1", "inputs": content_hash(sorted(decoded.items()))})
    draws = {None: 0} | {seed: seed for seed in seeds[1:] if seed < pictures.shape[1]}
    for seed, number in draws.items():
        path = method_file(folder, "algorithm_1", seed)
        write_pictures(path, decoded["stimulus_id"], pictures[:, number], record)


def decoded_statistics(decoded: Arrays) -> np.ndarray:
    """Mean and standard deviation of each image's decoded values; float32 (n, n_names, 2)."""
    names = sorted(name for name in decoded if name in ("z", "c") or name.startswith("block_"))
    # Algorithm 1 as published starts from `c` as it is decoded.
    plain = [decoded.get(f"{name}_unstretched", decoded[name]) for name in names]
    flat = [values.reshape(len(values), -1).astype(np.float64) for values in plain]
    found = [[np.nanmean(values, 1), np.nanstd(values, 1)] for values in flat]
    return np.transpose(found, (2, 0, 1)).astype(np.float32)
