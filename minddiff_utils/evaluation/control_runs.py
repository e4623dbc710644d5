"""Make the controls and peers of one subject, each by its name, all from the same parts."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from minddiff_utils.datasets import Subject
from minddiff_utils.decoding.decode import read_decoded
from minddiff_utils.evaluation.controls import (
    blurred,
    mean_features,
    nearest_training,
    no_brain,
    settings_of,
    true_features,
)
from minddiff_utils.evaluation.peers import decode_takagi, neuraldiffuser
from minddiff_utils.io import InputError, require
from minddiff_utils.models.stable_diffusion import Generator
from minddiff_utils.reconstruction.results import check_inputs, read_pictures
from minddiff_utils.reconstruction.stage2 import reconstruct
from minddiff_utils.settings import Settings


@dataclass(frozen=True)
class Bench:
    """What every control of a subject is made with.

    `first` and `full` are the settings that stage 1 and the full method ran with, `seed` that of
    their noise; `features` and `folder` are paths, `decoded` what `read_decoded` returns.
    """

    person: Subject
    generator: Generator
    decoded: dict[str, np.ndarray]
    features: Path
    folder: Path
    first: Settings
    full: Settings
    seed: int
    batch: int

    def run(self, decoded: dict[str, np.ndarray], settings: Settings, name: str) -> np.ndarray:
        """Take features through the stages; uint8 (n, H, W, 3), kept in `folder`/controls.

        Settings without iterations, as those of `first`, are stage 1 alone.
        """
        path = self.folder / "controls" / f"{name}.h5"
        how = {"seed": self.seed, "batch": self.batch, "n_films": 0, "label": name}
        return read_pictures(reconstruct(self.generator, decoded, settings, path, **how))

    def seen(self, stimulus_id: np.ndarray) -> np.ndarray:
        """Pictures of the recording, of the size of painted ones."""
        return self.generator.resize(self.person.stimuli.pictures(stimulus_id))


def open_bench(person: Subject, generator: Generator, folder: str | Path, batch: int = 8) -> Bench:
    """Read what the chapters before have left of a subject.

    Parameters
    ----------
    person : Subject
    generator : Generator
    folder : str or Path
        Of the subject: `decoded.h5`, `features.h5`, `stage1.h5` and `trace.h5`.
    batch : int
        Pictures at a time in stage 2.

    Returns
    -------
    Bench

    Raises
    ------
    InputError
        If one of the files is missing, or was made from other decoded features; the message says
        which chapter writes it.
    """
    folder = Path(folder)
    decoded = read_decoded(require(folder / "decoded.h5", "02_decoding"))
    first, _ = settings_of(require(folder / "stage1.h5", "03_stage1"))
    full, seed = settings_of(require(folder / "trace.h5", "04_stage2"))
    for name, chapter in (("stage1.h5", "03_stage1"), ("trace.h5", "04_stage2")):
        check_inputs(folder / name, decoded, chapter)
    features = require(folder / "features.h5", "02_decoding")
    return Bench(person, generator, decoded, features, folder, first, full, seed, batch)


def make_control(name: str, bench: Bench, blur: float = 0.06) -> np.ndarray:
    """Make the pictures of one control or peer.

    Parameters
    ----------
    name : str
        One of `controls.CONTROLS`.
    bench : Bench
    blur : float
        Width of the Gaussian of the control "blur", as a share of the picture's width.

    Returns
    -------
    uint8 array, shape (n, H, W, 3)
        In the order of `bench.decoded["stimulus_id"]`.
    """
    ids, splits = bench.decoded["stimulus_id"], bench.person.splits
    if name == "ceiling":
        return bench.run(true_features(bench.decoded, bench.features), bench.full, name)
    if name == "mean_features":
        given = mean_features(bench.decoded, bench.features, splits)
        return bench.run(given, bench.full, name)
    if name == "prior":
        given, settings = no_brain(bench.generator, bench.decoded, bench.first)
        return bench.run(given, settings, name)
    if name == "retrieval":
        return bench.seen(nearest_training(bench.decoded, bench.features, splits))
    if name == "blur":
        return blurred(bench.seen(ids), blur)
    if name == "takagi":
        paths = bench.features, bench.folder / "decoded.h5"
        given = decode_takagi(bench.person, *paths, str(bench.generator.device))
        return bench.run({**bench.decoded, **given}, bench.first, name)
    if name == "neuraldiffuser":
        steps = bench.generator.timesteps(bench.full.n_steps, bench.full.strength)
        return bench.run(bench.decoded, neuraldiffuser(bench.full, len(steps)), name)
    raise InputError(f"There is no control {name!r}.")


def draw_again(bench: Bench, seeds: int) -> dict[int, dict[str, np.ndarray]]:
    """Paint stage 1 and both stages from other draws of the noise.

    Parameters
    ----------
    bench : Bench
    seeds : int
        Draws in all; the first, `bench.seed`, is there already.

    Returns
    -------
    dict of seed to dict of method to uint8 array, shape (n, H, W, 3)
    """
    full = "stage2" if bench.full.solver == "guided" else "algorithm_1"
    runs = {"stage1": bench.first, full: bench.full}
    draws = {}
    for seed in range(bench.seed + 1, bench.seed + seeds):
        other = replace(bench, seed=seed)
        draws[seed] = {
            name: other.run(bench.decoded, settings, f"{name}_seed_{seed}")
            for name, settings in runs.items()
        }
    return draws
