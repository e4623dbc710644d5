"""Writes the phantom's experiment as files in the layout of the Natural Scenes Dataset.

A last session shows pictures from outside of the phantom's world, as NSD-synthetic does.

Its pictures are chosen so that no two are alike, and none of the test is one that training has
shown. Scenes differ by many numbers, but contrast patterns come from few forms: those that training
shows, to the models or to a subject, would be no test.
"""

import gzip
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
import scipy.io
from PIL import Image

from minddiff_utils.datasets import estimate_ncsnr
from minddiff_utils.datasets.nsd.design import NsdTree, Synthetic
from minddiff_utils.figures.reconstruction import mosaic
from minddiff_utils.io import InputError, atomic_path, open_to_write, progress, write_text
from minddiff_utils.phantom import world
from minddiff_utils.phantom.anatomy import KASTNER, SHAPE, affine
from minddiff_utils.phantom.brain import Brain

VERSION = 3  # one more whenever a tree's content changes: trees of other versions are made anew
SUBJECTS = tuple(f"subj{number:02d}" for number in range(1, 9))
LIMITS = {"n_train": (20, 9000), "n_test": (2, 1000), "repetitions": (1, 10), "seed": (0, 2**32)}
SCALE = 300  # of stored betas, to one per cent
SESSION_TRIALS = 240  # about how many; a divisor of the number of trials near it is taken
FIRST_COCO_ID = 700_000  # far from the picture ids, so that mixing the two up is noticed
NEAR = 10  # patches of 100; patterns that differ in fewer are near twins
# What a tree of either layout consists of.
FOLDERS = "nsddata nsddata_betas nsddata_stimuli coco derivatives stimuli splits".split()
N_TRIES = 200  # spare pictures among which one of the same kind is sought
N_SPARE = 1000  # for each stimulus
# NSD-synthetic: pictures that all subjects see, and pictures of each subject alone.
N_SYNTHETIC, N_OWN = 6 * len(world.OUTSIDE_KINDS), len(world.OUTSIDE_KINDS)


class Experiment(NamedTuple):
    """Who sees what, and when.

    Parameters
    ----------
    masterordering : int64 array of shape (n_trials,)
        For each trial the place in a subject's list of pictures, from 1; the same for all
        subjects. Places up to `n_test` are the shared pictures.
    subjectim : int64 array of shape (n_subjects, n_test + n_train)
        Each subject's list of pictures, from 1.
    pictures : int64 array of shape (n_pictures,)
        Id in the phantom's world of each picture: see `choose_pictures`.
    n_test : int
    session_trials : int
        Trials in each session; in LAION-fMRI's layout the last may have fewer.
    """

    masterordering: np.ndarray
    subjectim: np.ndarray
    pictures: np.ndarray
    n_test: int
    session_trials: int

    def trials(self, row: int) -> np.ndarray:
        """Return the picture of each trial of a row of `subjectim`, from 0; int64 (n_trials,)."""
        return self.subjectim[row, self.masterordering - 1] - 1

    @property
    def session(self) -> np.ndarray:
        """The session of each trial, from 0; int64 (n_trials,)."""
        return np.arange(len(self.masterordering)) // self.session_trials


def plan_experiment(
    n_subjects: int, n_train: int, n_test: int, repetitions: int, seed: int
) -> Experiment:
    """Draw the order of the trials and each subject's pictures.

    Parameters
    ----------
    n_subjects : int
        Rows of the design. What a subject sees does not depend on how many others there are.
    n_train : int
        Pictures that one subject alone sees.
    n_test : int
        Pictures that all subjects see.
    repetitions : int
        How often each is shown at most.
    seed : int

    Returns
    -------
    Experiment
    """
    rng = np.random.default_rng([seed, 7])
    n = n_train + n_test
    order = rng.permutation(np.repeat(np.arange(1, n + 1), repetitions))
    near = [size for size in range(150, 401) if len(order) % size == 0]
    usual = min(len(order), SESSION_TRIALS)
    session_trials = min(near, key=lambda size: abs(size - SESSION_TRIALS), default=usual)
    # Where no divisor is near, the last few trials are left out: all sessions are equally long.
    order = order[: len(order) // session_trials * session_trials]
    # Shared pictures lie anywhere among the first ones, not at their head, as in NSD.
    ids = rng.permutation(n) + 1
    shared = np.sort(ids[:n_test])
    own = [ids[n_test:]] + [n + k * n_train + rng.permutation(n_train) + 1 for k in range(7)]
    own = np.stack(own[:n_subjects])
    subjectim = np.concatenate([np.tile(shared, (n_subjects, 1)), own], axis=1)
    pictures = choose_pictures(shared - 1, own.ravel() - 1)
    return Experiment(order, subjectim, pictures, n_test, session_trials)


def choose_pictures(test: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Choose the picture of each stimulus: the one of its own id, where nothing speaks against it.

    No pattern is chosen twice. A pattern of the test differs in `NEAR` patches or more from all
    that the phantom's models were trained on and from all training patterns of all subjects.
    What does not is replaced by another pattern, of the same kind while there are any.

    Parameters
    ----------
    test, train : int arrays of shapes (n_test,) and (n_subjects * n_train,)
        Stimulus ids, from 0; together they are 0 to n - 1. What is chosen for a subject does not
        depend on those with higher ids.

    Returns
    -------
    int64 array of shape (n,)
        Of each stimulus, the id of its picture in the world.
    """
    chosen = np.arange(len(test) + len(train))
    shown: dict[bytes, np.ndarray] = {}
    others = trained_patterns()
    for ids in (test, train):
        for stimulus in np.sort(ids).tolist():
            for picture in _candidates(stimulus):
                pattern = world.scene(picture).pattern
                if pattern is None:
                    break
                differs = (pattern.ravel() != others).sum(axis=1).min(initial=NEAR)
                if pattern.tobytes() not in shown and differs >= NEAR:
                    chosen[stimulus] = picture
                    shown[pattern.tobytes()] = pattern.ravel()
                    break
        others = np.reshape(list(shown.values()), (-1, 100))
    return chosen


def plan_synthetic(subject: str, seed: int) -> tuple[np.ndarray, list[int]]:
    """Draw the order of the session of NSD-synthetic, each picture three times.

    Returns
    -------
    order : int64 array of shape (n_trials,)
        For each trial the place in the list of pictures, from 0; the same for all subjects.
    pictures : list of int
        Their ids in the world: `N_SYNTHETIC` that all subjects see, then `N_OWN` of this one's.
    """
    places = np.repeat(np.arange(N_SYNTHETIC + N_OWN), 3)
    own = N_SYNTHETIC + N_OWN * SUBJECTS.index(subject) + np.arange(N_OWN)
    pictures = world.FIRST_OUTSIDE_ID + np.concatenate([np.arange(N_SYNTHETIC), own])
    return np.random.default_rng([seed, 8]).permutation(places), pictures.tolist()


@cache
def trained_patterns() -> np.ndarray:
    """Return the patterns that the models were trained on, each once; bool (n, 100)."""
    patterns = (world.scene(i).pattern for i in world.TRAINING_IDS)
    return np.unique([each.ravel() for each in patterns if each is not None], axis=0)


def _candidates(stimulus: int) -> Iterator[int]:
    """Yield pictures that may be shown as a stimulus, best first."""
    yield stimulus
    kind = world.scene(stimulus).pattern_kind
    first = world.FIRST_WIDER_ID + N_SPARE * stimulus
    for picture in range(first, first + N_SPARE):
        if world.scene(picture).pattern_kind == kind or picture >= first + N_TRIES:
            yield picture


def write_tree(
    path: str | Path,
    subjects: Sequence[str] = ("subj01", "subj02"),
    n_train: int = 1200,
    n_test: int = 64,
    repetitions: int = 3,
    seed: int = 0,
) -> Path:
    """Write the phantom's experiment in NSD's layout, unless it is there.

    `phantom.json` in the same folder says with which settings and for whom it was written. Other
    settings, another version of the phantom or a further subject replace the tree.

    Parameters
    ----------
    path : str or Path
        Folder to write.
    subjects : sequence of str
        Some of "subj01" to "subj08".
    n_train, n_test, repetitions, seed
        As in `plan_experiment`.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    InputError
        If a parameter is outside its range, or the folder holds something else.
    """
    path = Path(path)
    size = {"n_train": n_train, "n_test": n_test, "repetitions": repetitions, "seed": seed}

    def write(subjects: list[str]) -> None:
        experiment = plan_experiment(1 + SUBJECTS.index(subjects[-1]), **size)
        _write_shared(NsdTree(path, subjects[0]), experiment, seed)
        for subject in subjects:
            _write_subject(NsdTree(path, subject), experiment, seed)

    return write_once(path, size, SUBJECTS, subjects, write)


def write_once(
    path: Path, settings: dict, known: Sequence[str], subjects: Sequence[str], write: Callable
) -> Path:
    """Write a tree of either layout, unless it is there with these settings.

    Parameters
    ----------
    path : Path
    settings : dict
        What to note in `phantom.json`; what `LIMITS` names has to be in its range.
    known, subjects : sequence of str
        Who may be asked for, and who is.
    write : callable
        Takes a sorted list of subjects, those that were there before among them, and writes their
        files.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    InputError
        If a parameter is outside its range, or the folder holds files that no phantom wrote.
    """
    if not subjects or not set(subjects) <= set(known):
        raise InputError(f"subjects={list(subjects)}: expected some of {', '.join(known)}")
    for name, (low, high) in LIMITS.items():
        if not low <= settings[name] <= high:
            raise InputError(f"{name}={settings[name]} is outside its range: {low} to {high}")
    settings = {**settings, "version": VERSION}
    there = _written(path, settings)
    if not set(subjects) <= set(there):
        # Of nobody while it is being written.
        write_text(path / "phantom.json", json.dumps({**settings, "subjects": []}, indent=1))
        for folder in FOLDERS:
            shutil.rmtree(path / folder, ignore_errors=True)
        everyone = sorted({*subjects, *there})
        write(everyone)
        write_text(path / "phantom.json", json.dumps({**settings, "subjects": everyone}, indent=1))
    return path


def _written(path: Path, settings: dict) -> list[str]:
    """Return the subjects of whom `path` holds a tree of these settings."""
    marker = path / "phantom.json"
    found = json.loads(marker.read_text()) if marker.is_file() else {}
    if not found and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(
            f"{path} holds files that the phantom did not write: give an empty or a new folder."
        )
    subjects = found.pop("subjects", [])
    return subjects if found == settings else []


# ---------------------------------------------------------------------- what all subjects share


def _write_shared(tree: NsdTree, experiment: Experiment, seed: int) -> None:
    """Write design, picture table, pictures, captions and label tables."""
    # Integers, as MATLAB stores NSD's own, so that readers may index with them.
    design = {"masterordering": experiment.masterordering[None].astype(np.uint16)}
    design["subjectim"] = experiment.subjectim.astype(np.int32)
    design["sharedix"] = design["subjectim"][:1, : experiment.n_test]
    with atomic_path(tree.design) as tmp:
        scipy.io.savemat(tmp, design, do_compression=True)
    write_text(tree.stimulus_table, _stimulus_table(experiment).to_csv())
    _write_pictures(tree.pictures, np.stack([world.picture(i) for i in experiment.pictures]))
    in_val = experiment.pictures % 10 == 0
    for file, pictures in zip(tree.captions, (~in_val, in_val), strict=True):
        _write_captions(file, experiment.pictures[pictures].tolist())
    for atlas, names in {"Kastner2015": KASTNER, "nsdgeneral": ["Unknown", "nsdgeneral"]}.items():
        rows = "".join(f"{number} {name}\n" for number, name in enumerate(names))
        write_text(tree.labels(atlas), rows)
    _write_synthetic(tree.synthetic, seed)


def _stimulus_table(experiment: Experiment) -> pd.DataFrame:
    """Return NSD's table of pictures: one row each, with who saw it and in which trials."""
    ids = np.arange(len(experiment.pictures))
    table = pd.DataFrame({"cocoId": FIRST_COCO_ID + experiment.pictures})
    # One in ten counts as COCO's validation picture.
    table["cocoSplit"] = np.where(experiment.pictures % 10 == 0, "val2017", "train2017")
    table = table.assign(cropBox="(0.0, 0.0, 0.0, 0.0)", nsdId=ids)
    table["shared1000"] = np.isin(ids, experiment.subjectim[0, : experiment.n_test] - 1)
    for row, pictures in enumerate(experiment.subjectim, start=1):
        table[f"subject{row}"] = np.isin(ids, pictures - 1).astype(int)
        # Trials count from 1; 0 means that the subject did not see it so often.
        seen = pd.DataFrame({"picture": pictures[experiment.masterordering - 1] - 1})
        seen = seen.assign(trial=seen.index + 1, repetition=seen.groupby("picture").cumcount())
        when = seen.pivot(index="picture", columns="repetition", values="trial").reindex(ids)
        table = table.join(when.fillna(0).astype(int).add_prefix(f"subject{row}_rep"))
    return table


def _write_synthetic(files: Synthetic, seed: int) -> None:
    """Write design, table and shared pictures of the session of NSD-synthetic."""
    order, pictures = plan_synthetic(SUBJECTS[0], seed)
    with atomic_path(files.design) as tmp:
        scipy.io.savemat(tmp, {"masterordering": (order[None] + 1).astype(np.uint16)})
    kinds = [world.scene(i).outside for i in pictures]
    number = 1 + np.array([world.OUTSIDE_KINDS.index(kind) for kind in kinds])
    table = pd.DataFrame({"Image number": 1 + np.arange(len(pictures)), "Image": kinds})
    for name in ("Image subclass", "Image class"):
        table[f"{name} number"], table[name] = number, kinds
    write_text(files.kinds, table.to_csv(index=False))
    _write_pictures(files.pictures, _wide(pictures[:N_SYNTHETIC]))


def _wide(pictures: Sequence[int]) -> np.ndarray:
    """Draw pictures as NSD-synthetic has them: linear in luminance, grey to the sides."""
    drawn = np.stack([world.picture(i) for i in pictures])
    wide = np.pad(drawn, ((0, 0), (0, 0), (world.SIZE // 2,) * 2, (0, 0)), constant_values=128)
    return np.rint(np.square(wide / 255) * 255).astype(np.uint8)


def _write_pictures(path: Path, pictures: np.ndarray) -> None:
    """Write `imgBrick`, uint8 (n, height, width, 3)."""
    _write_array(path, "imgBrick", pictures, chunks=(1, *pictures.shape[1:]))


def _write_captions(path: Path, pictures: Sequence[int]) -> None:
    """Write a file of captions in COCO's format, five captions a picture."""
    annotations = [
        {"image_id": FIRST_COCO_ID + i, "id": 5 * i + k, "caption": text}
        for i in pictures
        for k, text in enumerate(world.captions(i))
    ]
    size = {"height": world.SIZE, "width": world.SIZE}
    images = [{"id": FIRST_COCO_ID + i, **size} for i in pictures]
    write_text(path, json.dumps({"images": images, "annotations": annotations}))


# ------------------------------------------------------------------------------------ one subject


def _write_subject(tree: NsdTree, experiment: Experiment, seed: int) -> None:
    """Write regions, betas, noise ceiling and behaviour of one subject."""
    simulated = Brain(tree.subject, seed)
    labels = np.array([KASTNER.index(area or "Unknown") for area in simulated.area.tolist()])
    write_map(tree.roi("Kastner2015"), simulated.ijk, labels.astype(np.int16))
    write_map(tree.roi("nsdgeneral"), simulated.ijk, np.ones(len(labels), np.int16))

    def write(number: int, betas: np.ndarray) -> None:
        _write_betas(tree.session(number), simulated.ijk, betas)

    ncsnr = simulate_sessions(simulated, experiment, 3, tree.subject, write)
    write_map(tree.ncsnr, simulated.ijk, ncsnr)
    order, pictures = plan_synthetic(tree.subject, seed)
    _write_pictures(tree.synthetic.own_pictures, _wide(pictures[N_SYNTHETIC:]))
    answers = simulate(simulated, simulated.signal(pictures)[order], 4)
    _write_betas(tree.synthetic.betas, simulated.ijk, answers)
    # Of NSD's table of behaviour, what was shown: the phantom presses nothing.
    shown = {"SESSION": experiment.session + 1, "73KID": experiment.trials(simulated.key[1]) + 1}
    shown["10KID"] = experiment.masterordering
    write_text(tree.responses, pd.DataFrame(shown).to_csv(sep="\t", index=False))


def simulate_sessions(
    simulated: Brain, experiment: Experiment, stream: int, name: str, write: Callable
) -> np.ndarray:
    """Simulate one subject's sessions and write each.

    Parameters
    ----------
    simulated : Brain
    experiment : Experiment
    stream : int
        Of random numbers; each layout has one of its own.
    name : str
        Of the subject, for the progress bar.
    write : callable
        Takes a session's number, from 1, and its betas, int16 (n_trials, n_voxels).

    Returns
    -------
    float32 array of shape (n_voxels,)
        The `ncsnr` of all trials.
    """
    trials, session = experiment.trials(simulated.key[1]), experiment.session
    seen, rows = np.unique(trials, return_inverse=True)
    signal = simulated.signal(experiment.pictures[seen].tolist())
    betas = []
    for number in progress(np.unique(session), name):
        betas.append(simulate(simulated, signal[rows[session == number]], stream, number))
        write(number + 1, betas[-1])
    return estimate_ncsnr(np.concatenate(betas) / np.float32(SCALE), trials, session)


def simulate(simulated: Brain, signal: np.ndarray, *stream: int) -> np.ndarray:
    """Return one session's betas as NSD stores them, `SCALE` to one per cent; int16."""
    betas = simulated.betas(signal, np.random.default_rng([*simulated.key, *stream]))
    return np.clip(np.rint(betas * SCALE), -32767, 32767).astype(np.int16)


def write_map(path: Path, ijk: np.ndarray, values: np.ndarray, level: int = 9) -> None:
    """Write NIfTI of `values` (n_voxels, …) at the voxels `ijk` and zero elsewhere.

    `level` is gzip's: 1 packs fast, 9 small.
    """
    volume = np.zeros((*SHAPE, *values.shape[1:]), values.dtype)
    volume[tuple(ijk.T)] = values
    image = nib.Nifti1Image(volume, affine())
    with atomic_path(path) as tmp:
        # No time stamp: the same volume gives the same bytes.
        tmp.write_bytes(gzip.compress(image.to_bytes(), level, mtime=0))


def _write_betas(path: Path, ijk: np.ndarray, betas: np.ndarray) -> None:
    """Write one session's `betas`, int16 (n_trials, n_voxels), as NSD's HDF5."""
    volume = np.zeros((len(betas), *SHAPE[::-1]), np.int16)
    volume[:, ijk[:, 2], ijk[:, 1], ijk[:, 0]] = betas
    _write_array(path, "betas", volume, chunks=(len(betas), 1, *volume.shape[2:]))


def _write_array(path: Path, name: str, values: np.ndarray, chunks: tuple[int, ...]) -> None:
    """Write an HDF5 file of one array, packed fast."""
    with atomic_path(path) as tmp, open_to_write(tmp, "w", values.nbytes) as file:
        file.create_dataset(name, data=values, chunks=chunks, compression=1, shuffle=True)


# --- for the page about the phantom --------------------------------------------------


def write_pieces(run: str | Path) -> None:
    """Write `world.png`, `outside.png` and `captions.md` into the folder of a run."""
    run = Path(run)
    # Each kind from outside is a row: they come in turn.
    outside = world.FIRST_OUTSIDE_ID + np.arange(8 * len(world.OUTSIDE_KINDS)).reshape(8, -1).T
    for name, ids in {"world": np.arange(32), "outside": outside}.items():
        rows = np.stack([world.picture(int(i)) for i in ids.ravel()]).reshape(-1, 8, 64, 64, 3)
        with atomic_path(run / f"{name}.png") as temporary:
            Image.fromarray(mosaic(rows, zoom=2, gap=8)).save(temporary)
    # Five captions of the sheet's second picture; punctuation as people set it.
    spoken = [text.replace(" ,", ",").replace(" :", ":") for text in world.captions(1)]
    write_text(run / "captions.md", "".join(f"- {caption}\n" for caption in spoken))
