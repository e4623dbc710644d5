"""Anyone's own recording: one HDF5 file a subject, with the datasets of `LAYOUT`."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from minddiff_utils.datasets import reading, recording
from minddiff_utils.datasets.subject import Split, Subject
from minddiff_utils.io import InputError


class Form(NamedTuple):
    """What a dataset must be: the kind of its values, its axes, and what it means.

    Axes are counts such as "n_trials", or say how many there are.
    """

    kind: str
    axes: tuple[str | int, ...]
    meaning: str

    @property
    def words(self) -> str:
        """For messages."""
        return f"{self.kind} {self.axes}: {self.meaning}".replace("'", "")


LAYOUT = {
    "responses": Form("numbers", ("n_trials", "n_voxels"), "one row a trial"),
    "stimulus_id": Form("whole numbers", ("n_trials",), "the row of `pictures` shown, from 0"),
    "pictures": Form("uint8", ("n_pictures", "side", "side", 3), "or without the 3, in grey"),
    "captions": Form("texts", ("n_pictures", "n_captions"), "or (n_pictures,)"),
    "split": Form("texts", ("n_pictures",), 'each "train" or "test"'),
    "fold": Form("whole numbers", ("n_pictures",), "each tests once, the others train"),
    "roi": Form("texts", ("n_voxels",), "each voxel's region, or an empty text for none"),
    "session": Form("whole numbers", ("n_trials",), "from 1"),
    "ncsnr": Form("numbers", ("n_voxels",), "0 or more"),
    "voxel_ijk": Form("whole numbers", ("n_voxels", 3), "places in the volume, from 0"),
    "affine": Form("numbers", (4, 4), "from voxel places to millimetres"),
    "volume_shape": Form("whole numbers", (3,), "the size of the volume"),
}
KINDS = {"numbers": "iuf", "whole numbers": "iu", "uint8": "u", "texts": "OS"}  # numpy's letters
REQUIRED = ("responses", "stimulus_id", "pictures", "captions", "roi")
PLACES = ("voxel_ijk", "affine", "volume_shape")
LAST_AXIS_OPTIONAL = ("pictures", "captions")
SUFFIXES = (".h5", ".hdf5")
HINT = "The page 'Your own data' of the book shows how to write it."
# Pictures that a cross-validated decoder needs in each split, and a correlation in all of them.
MIN_TRAIN, MIN_TEST = 4, 2
FIRST = 32  # trials by which two files are told apart

Values = dict[str, Any]


def check_own(path: str | Path) -> list[str]:
    """Say in words what is wrong with a recording in the project's own layout.

    Parameters
    ----------
    path : str or Path
        The HDF5 file of a subject, or a folder with one such file a subject.

    Returns
    -------
    list of str
        One sentence or two a fault: which file and dataset, what was found, what was expected.
        Empty if the book can read the recording.
    """
    files = _files(Path(path))
    if not files:
        return [f"{path} holds no file *.h5; expected one a subject, such as {path}/S1.h5."]
    faults = [fault for file in files.values() for fault in _examine(file, "", "all")[1]]
    return faults + _same_brains(files.values())


def load_own(path: str | Path, subject: str = "S1", *, rois: str = "all") -> Subject:
    """Read a recording in the project's own layout, described in `LAYOUT` and in the book.

    Parameters
    ----------
    path : str or Path
        The HDF5 file of a subject, or a folder with `<subject>.h5` for each subject.
    subject : str
        The name in the file's attribute `subject`; any name where the file gives none.
    rois : str
        "all" or "kastner2015": all regions of the file. Else names of some, with commas between.

    Returns
    -------
    Subject
        Without the voxels that belong to no wanted region, and without those that are NaN
        throughout or constant in the training trials of a session; the latter are counted.

    Raises
    ------
    InputError
        If the file is missing, has a fault that `check_own` names, is of another subject, or has
        no such region.
    """
    files = _files(Path(path))
    file = files.get("", files.get(subject))
    if file is None:
        there = f"subjects in {path}: {', '.join(files) or 'none'}"
        raise InputError(f"{path}/{subject}.h5 is missing; {there}. Name them with `subjects`.")
    found, faults = _examine(file, subject, rois)
    faults += _same_brains(files.values())
    if found is None or faults:
        more = len(faults) - 1
        rest = f" And {more} more: `minddiff check own {path}` names them all." if more else ""
        raise InputError(faults[0] + rest)
    return found


def _examine(path: Path, name: str, rois: str) -> tuple[Subject | None, list[str]]:
    """Read a subject's voxels of some regions, and say what is wrong with the file."""
    try:
        values, faults = _read(path)
        found = None if faults else recording.checked(path, _subject(path, values, name, rois))
    except InputError as error:
        found, faults = None, [str(error)]
    # Some name the file themselves.
    return found, [one if one.startswith(str(path)) else f"{path}: {one}" for one in faults]


def _subject(path: Path, values: Values, name: str, rois: str) -> Subject:
    """Put together the record of all voxels, with the regions asked for."""
    if name and values["subject"] not in (None, name):
        what = f'ask for that one with SET="subjects={values["subject"]}"'
        raise InputError(f"{path} is of subject {values['subject']!r}, not {name!r}: {what}.")
    label, stimulus = values["roi"], values["stimulus_id"]
    read = partial(_read_pictures, path)
    optional: Values = {name: values.get(name) for name in ("ncsnr", "voxel_ijk", "affine")}
    known = [region for region in dict.fromkeys(label.tolist()) if region]
    return Subject(
        name=name,
        dataset="own",
        responses=values["responses"],
        stimulus_id=stimulus,
        session=values.get("session", np.ones(len(stimulus), np.int64)),
        roi={region: label == region for region in recording.choose_regions(rois, known)},
        splits=_splits(values),
        stimuli=recording.ListedStimuli(np.unique(stimulus), values["captions"], read),
        volume_shape=tuple(values.get("volume_shape", np.empty(0)).tolist()) or None,
        **optional,
    )


def _read_pictures(path: Path, rows: np.ndarray) -> np.ndarray:
    with reading.open_hdf5(path, "pictures") as stored:
        return reading.read_rows(stored, rows)


def _files(path: Path) -> dict[str, Path]:
    """The HDF5 files of a folder by name of the subject, sorted; or the one file, by no name."""
    if not path.is_dir():
        return {"": path}
    found = [p for p in sorted(path.glob("[!.]*")) if p.suffix in SUFFIXES]  # a Mac writes ._S1.h5
    return {p.stem: p for p in found if p.is_file()}


def _same_brains(files: Iterable[Path]) -> list[str]:
    """Say which files begin with the same responses, so are of one brain."""
    faults, seen = [], dict[tuple, Path]()
    for path in files:
        # Another error is a fault of that file, not of this pair.
        errors = suppress(InputError, ValueError, TypeError)
        with errors, reading.open_hdf5(path, "responses") as data:
            start = data.astype(np.float32)[:FIRST]
            other = seen.setdefault((start.shape, start.tobytes()), path)
            if other != path:
                faults.append(f"{path}: `responses` are those of {other}: one brain, two subjects.")
    return faults


# ------------------------------------------------------------------- what a file holds


def _read(path: Path) -> tuple[Values, list[str]]:
    """Read a file and check it: first each dataset by itself, then what they say together.

    Returns
    -------
    values : dict
        The arrays by the names of `LAYOUT`, `captions` as a list of tuples of str, `pictures` as
        their row numbers; also `subject` (str or None). Not complete if there are faults.
    faults : list of str
        What is wrong, a sentence or two each.
    """
    values: Values = {}
    with reading.open_file(path, HINT) as file:
        faults = [*_missing(file), *_read_datasets(file, values)]
    for check in (_wrong_lengths, _wrong_values):
        # Each takes for granted what those before it have found right.
        faults = faults or list(check(values))
    return values, faults


def _missing(file: h5py.File) -> Iterator[str]:
    """Say what is missing, with the nearest name that is there and not known."""
    strange = [name for name in file if name not in LAYOUT]
    for name in REQUIRED:
        if name not in file:
            close = difflib.get_close_matches(name, strange, n=1)
            hint = f" Is it what you called `{close[0]}`?" if close else ""
            yield f"there is no dataset `{name}`; expected {LAYOUT[name].words}.{hint}"
    if ("split" in file) == ("fold" in file):
        found = "both" if "split" in file else "neither"
        words = [f"`{name}`, {LAYOUT[name].words}" for name in ("split", "fold")]
        yield f"the file has {found} of `split` and `fold`; expected {' or '.join(words)}."
    lacking = [f"`{name}`" for name in PLACES if name not in file]
    if 0 < len(lacking) < len(PLACES):
        yield f"{', '.join(lacking)} missing. Give all of {', '.join(PLACES)}, or none of them."


def _read_datasets(file: h5py.File, values: Values) -> Iterator[str]:
    """Read into `values` what has the right form; say what has not."""
    name = file.attrs.get("subject")
    if isinstance(name, np.ndarray) and name.size == 1:  # as R writes it
        name = name.item()
    values["subject"] = reading.as_text(name) if isinstance(name, bytes | str) else name
    if name is not None and not str(values["subject"]).isidentifier():
        yield f"attribute `subject` is {name!r}; expected letters and digits such as S1."
    for name in (name for name in LAYOUT if name in file):
        try:
            values[name] = _read_dataset(reading.open_dataset(file, name), name)
        except InputError as error:
            yield str(error)


def _read_dataset(data: h5py.Dataset, name: str) -> Any:
    """Read a dataset into memory; pictures stay in the file. Raise InputError if it is no such."""
    form = LAYOUT[name]
    text, least = h5py.check_string_dtype(data.dtype), len(form.axes) - (name in LAST_AXIS_OPTIONAL)
    fits = data.size and least <= data.ndim <= len(form.axes)
    fits = fits and data.dtype.kind in KINDS[form.kind] and bool(text) == (form.kind == "texts")
    hint = _wrong_pictures(data) if name == "pictures" else ""
    if not fits or hint:
        found = f"{'texts' if text else data.dtype} {data.shape}"
        raise InputError(f"`{name}` is {found}; expected {form.words}.{hint}")
    if name == "pictures":
        return range(len(data))
    if text:
        texts = reading.read_texts(data)
        rows = texts.reshape(len(texts), -1)
        return [tuple(filter(None, row)) for row in rows] if name == "captions" else texts
    dtype = np.dtype("i8" if form.kind == "whole numbers" else "f8" if name == "affine" else "f4")
    reading.check_size(data, dtype.itemsize)
    return data.astype(dtype)[()]


def _wrong_pictures(data: h5py.Dataset) -> str:
    """Say what to do about pictures of a wrong form, if that is known."""
    if data.dtype != np.uint8:
        return " Values from 0 to 1 become it with np.uint8(np.round(255 * pictures))."
    if data.ndim == 4 and data.shape[1] == 3 != data.shape[3]:
        return " Colours come last: write np.moveaxis(pictures, 1, -1)."
    if data.ndim > 2 and (data.shape[1] != data.shape[2] or data.shape[1] > reading.MAX_SIDE):
        return f" Crop, pad or resize them to one square size, {reading.MAX_SIDE} or fewer pixels."
    return " Colours are red, green and blue." if data.shape[3:] not in ((), (3,)) else ""


def _wrong_lengths(values: Values) -> Iterator[str]:
    """Say which shapes do not fit one another."""
    n, v = values["responses"].shape
    if (len(values["roi"]), len(values["stimulus_id"])) == (n, v) != (v, n):
        yield f"`responses` {(n, v)} lies on its side: {v} trials, {n} voxels. Write responses.T."
        return
    # Captions are a list by now, whose texts count as one.
    found = {name: values[name] for name in LAYOUT if name in values}
    shapes = {name: getattr(one, "shape", (len(one),)) for name, one in found.items()}
    axes = {name: LAYOUT[name].axes[: len(shape)] for name, shape in shapes.items()}
    for name, fault in recording.wrong_shapes(shapes, axes):
        by_trial = axes[name] == ("n_pictures",) and shapes[name] == (n,)
        yield fault + " It looks like one a trial: give one a picture." * by_trial


def _wrong_values(values: Values) -> Iterator[str]:
    """Say which numbers and words mean nothing."""
    if missing := recording.partly_missing(values["responses"]):
        yield f"{missing} Leave such trials out, or set these voxels to NaN throughout."
    low, high, n = values["stimulus_id"].min(), values["stimulus_id"].max(), len(values["pictures"])
    if low < 0 or high >= n:
        hint = " They seem to count from 1: subtract 1." if (low, high) == (1, n) else ""
        yield f"`stimulus_id` goes from {low} to {high}; `pictures` has rows 0 to {n - 1}.{hint}"
    empty = [row for row, texts in enumerate(values["captions"]) if not texts]
    if empty:
        yield f"`captions` has none for {recording.listed('picture', empty)}; expected some."
    for word in sorted({*values.get("split", ())} - {"train", "test"})[:1]:
        yield f'`split` has {word!r}; expected "train" or "test" for every picture.'
    names = {*values["roi"]} - {""}
    if not names or names & {*recording.EVERY} or "," in "".join(names):
        yield f"`roi` names {sorted(names)}; expected some, without a comma, and not 'all'."
    if PLACES[0] in values:
        ijk, affine, shape = (values[name] for name in PLACES)
        outside = np.flatnonzero(((ijk < 0) | (ijk >= shape)).any(axis=1))
        if outside.size:
            size, which = tuple(shape.tolist()), recording.listed("voxel", outside)
            yield f"`voxel_ijk` of {which} lies outside `volume_shape` {size}, counted from 0."
        if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            yield "`affine` cannot be inverted; expected millimetres from voxel places."


def _splits(values: Values) -> tuple[Split, ...]:
    """Return one split called "own", or one a fold that holds a shown picture, "fold_0" and so on.

    Only pictures that were shown count.

    Raises
    ------
    InputError
        If too few train, or too few test.
    """
    shown = np.unique(values["stimulus_id"])
    if "split" in values:
        tests = {"own": values["split"][shown] == "test"}
    else:
        fold = values["fold"][shown]
        tests = {f"fold_{number}": fold == number for number in np.unique(fold)}
    n_train = min((~test).sum() for test in tests.values())
    n_test = sum(test.sum() for test in tests.values())
    if n_train < MIN_TRAIN or n_test < MIN_TEST:
        found = f"{n_train} shown pictures train in a split, {n_test} test"
        raise InputError(f"{found}; expected {MIN_TRAIN} and {MIN_TEST} or more.")
    return tuple(Split(name, shown[~test], shown[test]) for name, test in tests.items())
