"""Writes the phantom's experiment as files in the layout of the Natural Scenes Dataset."""

import gzip
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import scipy.io
from tqdm import tqdm

from minddiff_utils.datasets.nsd.load import NsdTree
from minddiff_utils.datasets.subject import estimate_ncsnr
from minddiff_utils.io import InputError, atomic_path
from minddiff_utils.phantom import world
from minddiff_utils.phantom.anatomy import KASTNER_LABELS, SHAPE, affine
from minddiff_utils.phantom.brain import Brain, make_brain
from minddiff_utils.phantom.stimuli import choose_pictures
from minddiff_utils.storage import code_digest, open_to_write

SETTINGS_FILE = "phantom.json"
SESSION_TRIALS = 240  # about how many; a divisor of the number of trials near it is taken
N_SUBJECTS = 8  # at most, as in NSD
RUNS = 12  # in a session
FIRST_COCO_ID = 700_000  # far from the picture ids, so that mixing the two up is noticed


@dataclass(frozen=True)
class Settings:
    """What decides the contents of a tree; `code` changes when what writes it does."""

    n_train: int
    n_test: int
    repetitions: int
    seed: int
    betas: str
    code: str


@dataclass(frozen=True)
class Experiment:
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
        Trials in each session.
    """

    masterordering: np.ndarray
    subjectim: np.ndarray
    pictures: np.ndarray
    n_test: int
    session_trials: int

    @property
    def n_sessions(self) -> int:
        """Number of sessions, all of the same length."""
        return len(self.masterordering) // self.session_trials

    def trials(self, subject: str) -> np.ndarray:
        """Return the picture of each trial, from 0; int64 (n_trials,)."""
        return self.subjectim[_index(subject), self.masterordering - 1] - 1


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
    session_trials = _session_trials(len(order))
    # Where no divisor is near, the last few trials are left out: all sessions are equally long.
    order = order[: len(order) // session_trials * session_trials]
    # Shared pictures lie anywhere among the first ones, not at their head, as in NSD.
    ids = rng.permutation(n) + 1
    shared = np.sort(ids[:n_test])
    own = [ids[n_test:]] + [n + k * n_train + rng.permutation(n_train) + 1 for k in range(7)]
    own = np.stack(own[:n_subjects])
    subjectim = np.concatenate([np.tile(shared, (n_subjects, 1)), own], axis=1)
    pictures = choose_pictures(shared - 1, own.ravel() - 1)
    return Experiment(
        order.astype(np.int64), subjectim.astype(np.int64), pictures, n_test, session_trials
    )


def write_tree(
    path: str | Path,
    subjects: Sequence[str] = ("subj01", "subj02"),
    n_train: int = 1200,
    n_test: int = 64,
    repetitions: int = 3,
    seed: int = 0,
    betas: str = "hdf5",
    progress: bool = True,
) -> Path:
    """Write the phantom's experiment in NSD's layout, or finish writing it.

    Each file is whole or absent. Files that are there are kept if `phantom.json` in the same
    folder says that they were made with the same settings.

    Parameters
    ----------
    path : str or Path
        Folder to write.
    subjects : sequence of str
        Some of "subj01" to "subj08".
    n_train, n_test, repetitions, seed
        As in `plan_experiment`.
    betas : {"hdf5", "nii.gz"}
        Format of the single-trial responses; NSD has both.
    progress : bool
        Show what is being written.

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
    settings = _checked(subjects, Settings(n_train, n_test, repetitions, seed, betas, _code()))
    _claim(path, settings)
    done = _done(path)
    todo = [subject for subject in subjects if not _complete(path, subject, done)]
    n_subjects = 1 + max(_index(subject) for subject in subjects)
    shared = any(_complete(path, f"shared{n}", done) for n in range(n_subjects, N_SUBJECTS + 1))
    if shared and not todo:
        return path
    _clear(path, done)
    experiment = plan_experiment(n_subjects, n_train, n_test, repetitions, seed)
    steps = 1 + len(todo) * (experiment.n_sessions + 1)
    with tqdm(total=steps, desc="phantom", unit="file", disable=not progress) as bar:
        if not shared:
            bar.set_postfix_str("pictures and captions")
            _mark(path, f"shared{n_subjects}", _write_shared(path, experiment))
        bar.update()
        for subject in todo:
            _mark(path, subject, _write_subject(path, subject, experiment, settings, bar))
    return path


# ------------------------------------------------------------------- what is there, what is missing


def _checked(subjects: Sequence[str], settings: Settings) -> Settings:
    """Return `settings`, or raise InputError if one is outside its range."""
    known = [f"subj{n:02d}" for n in range(1, N_SUBJECTS + 1)]
    unknown = [subject for subject in subjects if subject not in known]
    if unknown or not subjects:
        raise InputError(f"subjects={list(subjects)}: expected some of {', '.join(known)}")
    if settings.betas not in ("hdf5", "nii.gz"):
        raise InputError(f"betas={settings.betas!r}: expected hdf5 or nii.gz")
    limits = {"n_train": (20, 9000), "n_test": (2, 1000), "repetitions": (1, 10), "seed": (0, None)}
    for name, (low, high) in limits.items():
        value = getattr(settings, name)
        if value < low or (high is not None and value > high):
            bound = f"at least {low}" if high is None else f"{low} to {high}"
            raise InputError(f"{name}={value} is outside its range: {bound}")
    return settings


def _code() -> str:
    """Return a digest of the modules that decide what a tree holds."""
    return code_digest("phantom", "datasets/patterns.py")[:16]


def _claim(path: Path, settings: Settings) -> None:
    """Make `path` a tree of these settings; files of other settings make way.

    Raises
    ------
    InputError
        If the folder holds files that no phantom wrote, such as NSD itself.
    """
    marker = path / SETTINGS_FILE
    if marker.exists():
        if _read_marker(marker)["settings"] == asdict(settings):
            return
        _remove_written(path)
    elif path.exists() and (not path.is_dir() or not all(_unfinished(p) for p in path.iterdir())):
        raise InputError(
            f"{path} holds files that the phantom did not write, and none of them is changed. Give "
            "an empty folder or a new one."
        )
    _write_json(marker, {"settings": asdict(settings), "done": {}})


def _read_marker(marker: Path) -> dict:
    """Read `phantom.json`, or raise InputError."""
    try:
        content = json.loads(marker.read_text())
        return {"settings": content["settings"], "done": content["done"]}
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{marker} is damaged. Delete the folder {marker.parent}.") from error


def _remove_written(path: Path) -> None:
    """Remove the files that a phantom of other settings wrote, and nothing else."""
    for name in ("nsddata", "nsddata_betas", "nsddata_stimuli", "coco"):
        for file in sorted((path / name).rglob("*"), reverse=True):
            if file.is_dir():
                file.rmdir()
            else:
                file.unlink()


def _done(path: Path) -> dict[str, dict[str, int]]:
    """Return for each finished part its files and their sizes in bytes."""
    return _read_marker(path / SETTINGS_FILE)["done"]


def _complete(path: Path, part: str, done: dict[str, dict[str, int]]) -> bool:
    """Return whether all files of a part are there in full size."""
    files = done.get(part)
    return files is not None and all(
        (path / name).is_file() and (path / name).stat().st_size == size
        for name, size in files.items()
    )


def _unfinished(file: Path) -> bool:
    """Return whether a file is one that a killed run was writing: see `atomic_path`."""
    return file.name.startswith(".") and "-" in file.name and file.is_file()


def _clear(path: Path, done: dict[str, dict[str, int]]) -> None:
    """Remove what a killed run left half written, and finished files that changed in size."""
    for file in path.rglob(".*-*"):
        if _unfinished(file):
            file.unlink()
    for files in done.values():
        for name, size in files.items():
            if (path / name).is_file() and (path / name).stat().st_size != size:
                (path / name).unlink()


def _mark(path: Path, part: str, files: Sequence[Path]) -> None:
    """Note that a part is finished."""
    marker = path / SETTINGS_FILE
    content = _read_marker(marker)
    sizes = {file.relative_to(path).as_posix(): file.stat().st_size for file in files}
    content["done"][part] = sizes
    _write_json(marker, content)


def _write_json(path: Path, content: object) -> None:
    with atomic_path(path) as tmp:
        tmp.write_text(json.dumps(content, indent=1))


def _index(subject: str) -> int:
    """Return the number of a subject, from 0."""
    return int(subject[4:]) - 1


def _session_trials(n_trials: int) -> int:
    """Return how many trials a session has: a divisor near 240, else 240 or fewer."""
    near = [n for n in range(150, 401) if n_trials % n == 0]
    return min(near, key=lambda n: abs(n - SESSION_TRIALS), default=min(n_trials, SESSION_TRIALS))


# ---------------------------------------------------------------------- what all subjects share


def _write_shared(path: Path, experiment: Experiment) -> list[Path]:
    """Write design, picture table, pictures, captions and label tables; return the files."""
    tree = NsdTree(path, "subj01")
    with atomic_path(tree.design) as tmp:
        scipy.io.savemat(
            tmp,
            {
                # As MATLAB stores NSD's own, so that readers may index with them.
                "masterordering": experiment.masterordering[None].astype(np.uint16),
                "subjectim": experiment.subjectim.astype(np.int32),
                "sharedix": experiment.subjectim[:1, : experiment.n_test].astype(np.int32),
            },
            do_compression=True,
        )
    with atomic_path(tree.stimulus_table) as tmp:
        _stimulus_table(experiment).to_csv(tmp)
    _write_pictures(tree.pictures, experiment.pictures)
    _write_captions(tree.captions, experiment.pictures)
    return [
        tree.design,
        tree.stimulus_table,
        tree.pictures,
        *tree.captions,
        *_write_label_tables(path),
    ]


def _stimulus_table(experiment: Experiment) -> pd.DataFrame:
    """Return NSD's table of pictures: one row each, with who saw it and in which trials."""
    n = len(experiment.pictures)
    ids = np.arange(n)
    shared = np.isin(ids, experiment.subjectim[0, : experiment.n_test] - 1)
    table = pd.DataFrame(
        {
            "cocoId": _coco_id(experiment.pictures),
            "cocoSplit": np.where(_in_val(experiment.pictures), "val2017", "train2017"),
            "cropBox": "(0.0, 0.0, 0.0, 0.0)",
            "loss": 0.0,
            "nsdId": ids,
            "flagged": False,
            "BOLD5000": False,
            "shared1000": shared,
        }
    )
    n_repetitions = int(np.bincount(experiment.masterordering).max())
    for row, pictures in enumerate(experiment.subjectim, start=1):
        table[f"subject{row}"] = np.isin(ids, pictures - 1).astype(int)
    for row, pictures in enumerate(experiment.subjectim, start=1):
        # Trials count from 1; 0 means that the subject did not see it so often.
        when = np.zeros((n, n_repetitions), int)
        seen = pictures[experiment.masterordering - 1] - 1
        order = np.argsort(seen, kind="stable")
        start = np.searchsorted(seen[order], seen[order])
        when[seen[order], np.arange(len(order)) - start] = order + 1
        for repetition in range(n_repetitions):
            table[f"subject{row}_rep{repetition}"] = when[:, repetition]
    return table


def _coco_id(pictures: np.ndarray) -> np.ndarray:
    return FIRST_COCO_ID + pictures


def world_ids(tree: NsdTree) -> np.ndarray:
    """Return the id in the phantom's world of each of a tree's pictures; int64 (n_pictures,)."""
    return pd.read_csv(tree.stimulus_table)["cocoId"].to_numpy() - FIRST_COCO_ID


def _in_val(pictures: np.ndarray) -> np.ndarray:
    """Return which pictures count as COCO's validation pictures: one in ten."""
    return pictures % 10 == 0


def _write_pictures(path: Path, pictures: np.ndarray) -> None:
    """Write `imgBrick`, uint8 (n, 64, 64, 3)."""
    shape = (len(pictures), world.SIZE, world.SIZE, 3)
    n_bytes = int(np.prod(shape))
    with atomic_path(path) as tmp, open_to_write(tmp, "w", n_bytes) as file:
        brick = file.create_dataset(
            "imgBrick", shape, np.uint8, chunks=(1, *shape[1:]), compression="gzip",
            compression_opts=1,
        )  # fmt: skip
        for start in range(0, len(pictures), 256):
            some = pictures[start : start + 256]
            brick[start : start + len(some)] = np.stack([world.picture(i) for i in some])


def _write_captions(paths: tuple[Path, Path], pictures: np.ndarray) -> None:
    """Write COCO's two caption files, five captions a picture."""
    for path, val in zip(paths, (False, True), strict=True):
        ids = pictures[_in_val(pictures) == val].tolist()
        content = {
            "info": {"description": "Captions of the phantom's pictures"},
            "licenses": [],
            "images": [
                {
                    "id": _coco_id(i),
                    "file_name": f"{_coco_id(i):012d}.jpg",
                    "height": world.SIZE,
                    "width": world.SIZE,
                }
                for i in ids
            ],
            "annotations": [
                {"image_id": _coco_id(i), "id": 5 * i + k, "caption": text}
                for i in ids
                for k, text in enumerate(world.captions(i))
            ],
        }
        with atomic_path(path) as tmp:
            tmp.write_text(json.dumps(content))


def _write_label_tables(path: Path) -> list[Path]:
    """Write the label tables of the atlases; return the files."""
    tables = {"Kastner2015": KASTNER_LABELS, "nsdgeneral": {"Unknown": 0, "nsdgeneral": 1}}
    files = []
    for atlas, table in tables.items():
        file = path / "nsddata/freesurfer/fsaverage/label" / f"{atlas}.mgz.ctab"
        with atomic_path(file) as tmp:
            tmp.write_text("".join(f"{number} {name}\n" for name, number in table.items()))
        files.append(file)
    return files


# ------------------------------------------------------------------------------------ one subject


def _write_subject(
    path: Path, subject: str, experiment: Experiment, settings: Settings, bar: tqdm
) -> list[Path]:
    """Write regions, betas, noise ceiling and behaviour of one subject; return the files."""
    tree = NsdTree(path, subject)
    bar.set_postfix_str(f"{subject}, receptive fields")
    simulated = make_brain(subject, settings.seed)
    trials = experiment.trials(subject)
    sessions = [
        tree.betas / f"betas_session{number + 1:02d}.{settings.betas}"
        for number in range(experiment.n_sessions)
    ]
    seen, rows = np.unique(trials, return_inverse=True)
    signal = simulated.signal(experiment.pictures[seen].tolist())
    _write_regions(tree, simulated)
    bar.update()
    responses = []
    for number, file in enumerate(sessions):
        bar.set_postfix_str(f"{subject}, session {number + 1}")
        here = slice(number * experiment.session_trials, (number + 1) * experiment.session_trials)
        # Each session has a generator of its own, so that a session made again is the same.
        rng = np.random.default_rng([settings.seed, _index(subject), 3, number])
        counts = np.rint(simulated.betas(signal[rows[here]], rng) * 300)
        responses.append(np.clip(counts, -32767, 32767).astype(np.int16))
        if not file.exists():
            _write_betas(file, simulated.ijk, responses[-1])
        bar.update()
    session = np.repeat(np.arange(len(sessions)), experiment.session_trials)
    ncsnr = estimate_ncsnr(np.concatenate(responses) / np.float32(300), trials, session)
    _write_volume(tree.ncsnr, _filled(simulated.ijk, ncsnr, np.float32))
    with atomic_path(tree.responses) as tmp:
        _behaviour(subject, trials, experiment).to_csv(tmp, sep="\t", index=False, na_rep="NaN")
    regions = [tree.roi("Kastner2015"), tree.roi("nsdgeneral")]
    return [*regions, *sessions, tree.ncsnr, tree.responses]


def _write_regions(tree: NsdTree, simulated: Brain) -> None:
    """Write the atlas and `nsdgeneral` as volumes of integer labels."""
    labels = np.array([KASTNER_LABELS.get(str(area), 0) for area in simulated.area])
    _write_volume(tree.roi("Kastner2015"), _filled(simulated.ijk, labels, np.int16))
    everywhere = np.ones(len(labels))
    _write_volume(tree.roi("nsdgeneral"), _filled(simulated.ijk, everywhere, np.int16))


def _filled(ijk: np.ndarray, values: np.ndarray, dtype: type) -> np.ndarray:
    """Return a volume with `values` at the voxels `ijk` and zero elsewhere."""
    volume = np.zeros(SHAPE, dtype)
    volume[tuple(ijk.T)] = values
    return volume


def _write_volume(path: Path, volume: np.ndarray) -> None:
    """Write a NIfTI volume (X, Y, Z) or several (X, Y, Z, n)."""
    image = nib.Nifti1Image(volume, affine())
    with atomic_path(path) as tmp:
        # No time stamp: the same volume gives the same bytes.
        tmp.write_bytes(gzip.compress(image.to_bytes(), mtime=0))


def _write_betas(path: Path, ijk: np.ndarray, betas: np.ndarray) -> None:
    """Write one session's `betas`, int16 (n_trials, n_voxels).

    NIfTI has the axes X, Y, Z, trial; HDF5 the reverse.
    """
    volume = np.zeros((len(betas), *SHAPE[::-1]), np.int16)
    volume[:, ijk[:, 2], ijk[:, 1], ijk[:, 0]] = betas
    if path.suffix == ".gz":
        return _write_volume(path, volume.T)
    # Zeros, by far the most of it, take no room once they are packed.
    with atomic_path(path) as tmp, open_to_write(tmp, "w", betas.nbytes) as file:
        file.create_dataset(
            "betas", data=volume, chunks=(len(betas), 1, *volume.shape[2:]), compression="gzip",
            compression_opts=1, shuffle=True,
        )  # fmt: skip


def _behaviour(subject: str, trials: np.ndarray, experiment: Experiment) -> pd.DataFrame:
    """Return NSD's table of what was pressed; the phantom presses nothing."""
    n, per_session = len(trials), experiment.session_trials
    place = np.arange(n) % per_session
    lengths = [len(part) for part in np.array_split(np.arange(per_session), RUNS)]
    run = np.tile(np.repeat(np.arange(RUNS), lengths), experiment.n_sessions)
    order = pd.DataFrame({"session": np.arange(n) // per_session + 1, "run": run + 1})
    first = ~pd.Series(trials).duplicated()
    table = pd.DataFrame(
        {
            "SUBJECT": _index(subject) + 1,
            "SESSION": order["session"],
            "RUN": order["run"],
            "TRIAL": order.groupby(["session", "run"]).cumcount() + 1,
            "73KID": trials + 1,
            "10KID": experiment.masterordering,
            "TIME": 737000 + order["session"] * 7 + place * 4 / 86400,
            "ISOLD": (~first).astype(int),
        }
    )
    for name in ("ISCORRECT", "RT", "CHANGEMIND", "MEMORYRECENT", "MEMORYFIRST"):
        table[name] = np.nan
    table["ISOLDCURRENT"] = table.duplicated(["SESSION", "73KID"]).astype(int)
    for name in ("ISCORRECTCURRENT", "TOTAL1", "TOTAL2", "BUTTON"):
        table[name] = np.nan
    table["MISSINGDATA"] = 1
    return table
