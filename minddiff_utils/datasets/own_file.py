"""The HDF5 layout of an own recording: what a file of it holds, and what is wrong with one."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from minddiff_utils.datasets.content import listed
from minddiff_utils.datasets.reading import (
    MAX_SIDE,
    as_text,
    check_size,
    open_dataset,
    open_file,
    read_texts,
)
from minddiff_utils.datasets.subject import Split
from minddiff_utils.io import InputError

# What each dataset of the file holds, in the words that an error shows.
LAYOUT = {
    "responses": "numbers (n_trials, n_voxels): one row a trial",
    "stimulus_id": "whole numbers (n_trials,): which row of `pictures` each trial showed, from 0",
    "pictures": "uint8 (n_pictures, side, side, 3), red, green and blue, or (n_pictures, side, "
    "side) in grey",
    "captions": "texts (n_pictures,) or (n_pictures, n_captions)",
    "split": 'texts (n_pictures,), each "train" or "test"',
    "fold": "whole numbers (n_pictures,), from 0: each fold tests once, the others train",
    "roi": "texts (n_voxels,): the region of each voxel, or an empty text for none",
    "session": "whole numbers (n_trials,), from 1",
    "ncsnr": "numbers (n_voxels,), 0 or more",
    "voxel_ijk": "whole numbers (n_voxels, 3): the place of each voxel in the volume, from 0",
    "affine": "numbers (4, 4), from voxel places to millimetres",
    "volume_shape": "three whole numbers: the size of the volume",
}
REQUIRED = ("responses", "stimulus_id", "pictures", "captions", "roi")
PLACES = ("voxel_ijk", "affine", "volume_shape")
MIN_TRAIN = 4  # pictures; a cross-validated decoder needs as many
MIN_TEST = 2  # pictures, over all splits; a correlation needs as many

# Whether each is made of numbers, whole numbers or texts, and how many axes it has.
KINDS = {
    "responses": ("number", 2),
    "stimulus_id": ("integer", 1),
    "split": ("text", 1),
    "fold": ("integer", 1),
    "roi": ("text", 1),
    "session": ("integer", 1),
    "ncsnr": ("number", 1),
    "voxel_ijk": ("integer", 2),
    "affine": ("number", 2),
    "volume_shape": ("integer", 1),
}


@dataclass
class OwnFile:
    """What was read from a file, and what is wrong with it."""

    path: Path
    values: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    pictures_shape: tuple[int, ...] = ()
    subject: str | None = None
    keep: np.ndarray | None = None  # voxels that are in a region and change

    def has(self, *names: str) -> bool:
        """Whether all of these datasets were read and are of the right kind and shape."""
        return all(name in self.values for name in names)

    def blame(self, text: str) -> None:
        """Note a fault."""
        self.faults.append(f"{self.path}: {text}")


def examine(path: Path) -> OwnFile:
    """Read a file as far as it can be read, and note every fault."""
    found = OwnFile(path)
    try:
        with open_file(path, "The page 'Your own data' of the book shows how to write it.") as file:
            _examine_open(file, found)
    except InputError as error:
        found.faults.append(str(error))
    return found


def _examine_open(file: h5py.File, found: OwnFile) -> None:
    """Look at everything in an open file, from single datasets to what they say together."""
    _read_subject(file.attrs.get("subject"), found)
    _examine_names(file, found)
    special = {"pictures": _examine_pictures, "captions": _read_captions}
    for name in (name for name in LAYOUT if name in file):
        try:
            data = open_dataset(file, name)
            special[name](data, found) if name in special else _read(data, name, found)
        except InputError as error:
            found.faults.append(str(error))
    _examine_lengths(found)
    _examine_values(found)
    if not found.faults:
        _examine_use(found)


def _read_subject(name: Any, found: OwnFile) -> None:
    """Take the attribute `subject`: a text, or as R writes it an array of one."""
    if isinstance(name, np.ndarray) and name.size == 1:
        name = name.item()
    if isinstance(name, bytes | str):
        name = as_text(name)
    if name is not None and not (isinstance(name, str) and name.isidentifier()):
        found.blame(f"attribute `subject` is {name!r}; expected letters and digits such as S1.")
    found.subject = name


def _examine_names(file: h5py.File, found: OwnFile) -> None:
    """Note what is missing, with the nearest name that is there and not known."""
    strange = [name for name in file if name not in LAYOUT]
    for name in REQUIRED:
        if name not in file:
            close = difflib.get_close_matches(name, strange, n=1)
            hint = f" Is it what you called `{close[0]}`?" if close else ""
            found.blame(f"there is no dataset `{name}`; expected {LAYOUT[name]}.{hint}")
    if ("split" in file) == ("fold" in file):
        both = "has both `split` and `fold`" if "split" in file else "has no `split` and no `fold`"
        found.blame(
            f"the file {both}; expected one: `split`, {LAYOUT['split']}, or `fold`, "
            f"{LAYOUT['fold']}."
        )
    places = [name for name in PLACES if name in file]
    if 0 < len(places) < len(PLACES):
        missing = " and ".join(f"`{name}`" for name in PLACES if name not in file)
        found.blame(
            f"{missing} missing beside `{places[0]}`: places of voxels need all of "
            f"{', '.join(PLACES)}. Add the rest, or leave all three out."
        )


def _read(data: h5py.Dataset | h5py.Group, name: str, found: OwnFile) -> None:
    """Read a dataset into memory if it is of the right kind and number of axes."""
    kind, n_axes = KINDS[name]
    fits = isinstance(data, h5py.Dataset) and data.ndim == n_axes and _is(kind, data.dtype)
    if not fits or not data.size:
        found.blame(f"`{name}` is {_look(data)}; expected {LAYOUT[name]}.")
    elif kind == "text":
        found.values[name] = read_texts(data)
    else:
        single = np.float32 if name == "responses" else np.float64
        dtype = np.dtype(np.int64 if kind == "integer" else single)
        check_size(data, dtype.itemsize)
        found.values[name] = data.astype(dtype)[()]


def _is(kind: str, dtype: np.dtype) -> bool:
    """Whether a dataset's type is a "text", an "integer" or a "number"."""
    if kind == "text":
        return h5py.check_string_dtype(dtype) is not None
    return np.issubdtype(dtype, np.integer if kind == "integer" else np.number) and (
        not np.issubdtype(dtype, np.complexfloating)
    )


def _look(data: h5py.Dataset | h5py.Group) -> str:
    """Type and shape of what is there, for an error."""
    if not isinstance(data, h5py.Dataset):
        return "a group"
    name = "texts" if _is("text", data.dtype) else str(data.dtype)
    return f"{name} {data.shape}"


def _examine_pictures(data: h5py.Dataset, found: OwnFile) -> None:
    """Pictures stay in the file; note what is wrong with their type or shape."""
    expected = f"expected {LAYOUT['pictures']}"
    if not isinstance(data, h5py.Dataset) or data.ndim not in (3, 4) or not data.size:
        found.blame(f"`pictures` is {_look(data)}; {expected}.")
        return
    if data.dtype != np.uint8:
        hint = "Values from 0 to 1 become it with np.uint8(np.round(255 * pictures))."
        found.blame(f"`pictures` is {_look(data)}; {expected}. {hint}")
    if data.ndim == 4 and data.shape[3] != 3:
        first = data.shape[1] == 3
        hint = " Colours come last: write np.moveaxis(pictures, 1, -1)." if first else ""
        found.blame(f"`pictures` is {_look(data)}; {expected}.{hint}")
    elif data.shape[1] != data.shape[2]:
        found.blame(
            f"`pictures` are {data.shape[1]} pixels high and {data.shape[2]} wide; expected "
            "squares. Crop or pad them, or resize them all to one square size."
        )
    elif data.shape[1] > MAX_SIDE:
        found.blame(
            f"`pictures` are {data.shape[1]} pixels a side; expected {MAX_SIDE} or fewer. Models "
            "paint 512 at most: make them smaller."
        )
    found.pictures_shape = data.shape


def _read_captions(data: h5py.Dataset, found: OwnFile) -> None:
    """Read the captions of every picture; empty texts are left out."""
    fits = isinstance(data, h5py.Dataset) and data.ndim in (1, 2) and _is("text", data.dtype)
    if not fits or not data.size:
        found.blame(f"`captions` is {_look(data)}; expected {LAYOUT['captions']}.")
        return
    texts = read_texts(data).reshape(len(data), -1)
    found.values["captions"] = [tuple(text for text in row if text) for row in texts]
    empty = [row for row, kept in enumerate(found.values["captions"]) if not kept]
    if empty:
        found.blame(f"`captions` has none for {listed('picture', empty)}; expected at least one.")


def _examine_lengths(found: OwnFile) -> None:
    """Note datasets whose lengths do not fit one another."""
    n_trials, n_voxels = found.values["responses"].shape if found.has("responses") else (0, 0)
    if found.has("responses", "roi", "stimulus_id"):
        turned = (len(found.values["stimulus_id"]), len(found.values["roi"]))
        if turned == (n_voxels, n_trials) and n_trials != n_voxels:
            found.blame(
                f"`responses` has shape {(n_trials, n_voxels)}, but `stimulus_id` has {turned[0]} "
                f"trials and `roi` {turned[1]} voxels: it lies on its side. Write responses.T."
            )
            return
    n_pictures = found.pictures_shape[0] if found.pictures_shape else 0
    for name, count, unit in _expected_lengths(n_trials, n_voxels, n_pictures):
        length = len(found.values.get(name, ()))
        if count and name in found.values and length != count:
            by_trial = unit == "picture" and length == n_trials
            hint = " It looks like one a trial: give one a picture." if by_trial else ""
            found.blame(f"`{name}` has {length} entries; expected {count}, one a {unit}.{hint}")
    for name, shape in (("affine", (4, 4)), ("volume_shape", (3,))):
        if name in found.values and found.values[name].shape != shape:
            found.blame(f"`{name}` has shape {found.values[name].shape}; expected {shape}.")
    if "voxel_ijk" in found.values and found.values["voxel_ijk"].shape[1] != 3:
        shape = found.values["voxel_ijk"].shape
        found.blame(f"`voxel_ijk` has shape {shape}; expected {(n_voxels, 3)}.")


def _expected_lengths(
    n_trials: int, n_voxels: int, n_pictures: int
) -> Iterator[tuple[str, int, str]]:
    """Yield name, expected length and what one entry stands for."""
    for name in ("stimulus_id", "session"):
        yield name, n_trials, "trial"
    for name in ("roi", "ncsnr", "voxel_ijk"):
        yield name, n_voxels, "voxel"
    for name in ("captions", "split", "fold"):
        yield name, n_pictures, "picture"


def _examine_values(found: OwnFile) -> None:
    """Note numbers and words that mean nothing."""
    for name, check in CHECKS.items():
        if name in found.values:
            check(found)


def _responses(found: OwnFile) -> None:
    bad = ~np.isfinite(found.values["responses"])
    partly = bad.any(axis=0) & ~bad.all(axis=0)
    if partly.any():
        rows = np.flatnonzero(bad[:, partly].any(axis=1))
        found.blame(
            f"`responses` are NaN or infinite in some trials for {int(partly.sum())} of "
            f"{bad.shape[1]} voxels, first in trial {int(rows[0])} counted from 0. Leave out such "
            "trials, or set these voxels to NaN throughout to have them left out."
        )


def _stimulus_id(found: OwnFile) -> None:
    ids, n = found.values["stimulus_id"], found.pictures_shape[0] if found.pictures_shape else 0
    if n and (ids.min() < 0 or ids.max() >= n):
        counted = ids.min() == 1 and ids.max() == n
        hint = " They seem to count from 1: subtract 1." if counted else ""
        found.blame(
            f"`stimulus_id` goes from {ids.min()} to {ids.max()}; expected rows of `pictures`, "
            f"0 to {n - 1}.{hint}"
        )


def _split(found: OwnFile) -> None:
    words = found.values["split"]
    strange = [word for word in dict.fromkeys(words.tolist()) if word not in ("train", "test")]
    if strange:
        found.blame(f'`split` has {strange[0]!r}; expected "train" or "test" for every picture.')


def _fold(found: OwnFile) -> None:
    numbers = np.unique(found.values["fold"])
    if numbers[0] < 0 or len(numbers) < 2:
        shown = ", ".join(map(str, numbers[:5]))
        found.blame(f"`fold` has {shown} only; expected two or more different numbers from 0.")


def _session(found: OwnFile) -> None:
    first = int(found.values["session"].min())
    if first < 1:
        found.blame(f"`session` has {first}; sessions count from 1.")


def _ncsnr(found: OwnFile) -> None:
    ratio = found.values["ncsnr"]
    # NaN stands for a voxel outside the field of view, which has no responses either.
    bad = np.flatnonzero(ratio < 0)
    if bad.size:
        found.blame(f"`ncsnr` is below zero for {listed('voxel', bad)}; expected 0 or more.")


def _roi(found: OwnFile) -> None:
    names = [name for name in dict.fromkeys(found.values["roi"].tolist()) if name]
    if not names:
        found.blame("`roi` is empty for every voxel; expected a region's name, such as V1.")
    for name in names:
        if "," in name or name in ("all", "kastner2015"):
            found.blame(f"`roi` has the name {name!r}; choose one without a comma, not 'all'.")


def _places(found: OwnFile) -> None:
    if not found.has(*PLACES):
        return
    ijk, shape, affine = (found.values[n] for n in ("voxel_ijk", "volume_shape", "affine"))
    if ijk.shape[1] != 3 or shape.shape != (3,) or affine.shape != (4, 4):
        return
    outside = np.flatnonzero(((ijk < 0) | (ijk >= shape)).any(axis=1))
    if outside.size:
        found.blame(
            f"`voxel_ijk` of {listed('voxel', outside)} lies outside `volume_shape` "
            f"{tuple(map(int, shape))}; places count from 0."
        )
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        found.blame("`affine` cannot be inverted; expected millimetres from voxel places.")


CHECKS = {
    "responses": _responses,
    "stimulus_id": _stimulus_id,
    "split": _split,
    "fold": _fold,
    "roi": _roi,
    "session": _session,
    "ncsnr": _ncsnr,
    "voxel_ijk": _places,
}


# ------------------------------------------------------------------- what the datasets say together


def make_splits(values: Mapping[str, Any]) -> tuple[Split, ...]:
    """Make the train/test splits of the pictures that were shown.

    Parameters
    ----------
    values : mapping
        `stimulus_id` int64 (n_trials,), and `split` or `fold`, (n_pictures,).

    Returns
    -------
    tuple of Split
        One called "own", or one a fold that holds a shown picture, "fold_0" and so on.

    Raises
    ------
    InputError
        If one has no training or no test picture.
    """
    return tuple(Split(name, train, test) for name, train, test in _parts(values))


def _parts(values: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield name, training pictures and test pictures of every split."""
    shown = np.unique(values["stimulus_id"])
    if "split" in values:
        word = values["split"][shown]
        yield "own", shown[word == "train"], shown[word == "test"]
        return
    fold = values["fold"][shown]
    for number in np.unique(fold):
        yield f"fold_{number}", shown[fold != number], shown[fold == number]


def _examine_use(found: OwnFile) -> None:
    """Note what keeps decoders from being trained and judged; find the voxels that are of use."""
    parts = list(_parts(found.values))
    for name, train, test in parts:
        called = "" if name == "own" else f" when {name.replace('_', ' ')} tests"
        if len(train) < MIN_TRAIN:
            found.blame(
                f"{len(train)} shown pictures are for training{called}; expected {MIN_TRAIN} or "
                "more. Only pictures that some trial shows count."
            )
        if not len(test):
            found.blame("no picture that some trial shows is for testing; expected 2 or more.")
    if 0 < sum(len(test) for _, _, test in parts) < MIN_TEST:
        found.blame(f"one shown picture is for testing; expected {MIN_TEST} or more.")
    if not found.faults:
        _examine_sessions(found, parts)
    if not found.faults:
        _examine_voxels(found)


def _examine_sessions(found: OwnFile, parts: list[tuple[str, np.ndarray, np.ndarray]]) -> None:
    """Find voxels that change in the training trials of every session, and too small sessions."""
    x, stimulus = found.values["responses"], found.values["stimulus_id"]
    session = found.values.get("session", np.ones(len(stimulus), np.int64))
    found.keep = np.isfinite(x).all(axis=0)
    for number in np.unique(session):
        for name, train, _ in parts:
            trials = (session == number) & np.isin(stimulus, train)
            if trials.sum() < 2:
                called = "" if name == "own" else f" when {name.replace('_', ' ')} tests"
                found.blame(
                    f"session {number} has {int(trials.sum())} trials with a training "
                    f"picture{called}; expected 2 or more, from which it is standardised. Give it "
                    "the number of a neighbouring session, or leave it out."
                )
                return
            found.keep[found.keep] = _changes(x[trials][:, found.keep])


def _changes(x: np.ndarray) -> np.ndarray:
    """Return which columns vary, as `prepare_fold` asks of them; bool (n_columns,)."""
    mean, sd = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    return sd > 1e-6 * np.abs(mean)


def _examine_voxels(found: OwnFile) -> None:
    """Note regions none of whose voxels is of use, and voxels of use without a noise ceiling."""
    label = found.values["roi"]
    if "ncsnr" in found.values:
        unknown = np.flatnonzero(~np.isfinite(found.values["ncsnr"]) & found.keep & (label != ""))
        if unknown.size:
            found.blame(f"`ncsnr` of {listed('voxel', unknown)} is not finite; expected 0 or more.")
    for name in dict.fromkeys(label.tolist()):
        if name and not found.keep[label == name].any():
            found.blame(
                f"every voxel of region {name} is NaN or constant in the training trials of some "
                "session. Leave the region out (an empty text in `roi`), or mend its responses."
            )
