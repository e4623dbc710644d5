"""Anyone's own recording: one HDF5 file a subject, with the datasets of `LAYOUT`."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from minddiff_utils.datasets import reading
from minddiff_utils.datasets.content import check_content, content_faults, listed
from minddiff_utils.datasets.published import EVERY, choose_regions
from minddiff_utils.datasets.subject import Split, Subject, check_ids
from minddiff_utils.io import Ids, InputError


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
MIN_TRAIN = 4  # pictures; a cross-validated decoder needs as many
MIN_TEST = 2  # pictures, over all splits; a correlation needs as many
FIRST = 32  # trials by which two files are told apart

Values = dict[str, Any]


class OwnStimuli:
    """Pictures and captions of an own recording; pictures are read when asked for.

    Parameters
    ----------
    path : Path
        The HDF5 file.
    ids : int64 array
        Rows of `pictures` that were shown, sorted.
    texts : sequence of tuple of str
        Captions of every row of `pictures`.
    """

    def __init__(self, path: Path, ids: np.ndarray, texts: Sequence[tuple[str, ...]]):
        self.path, self.ids, self.texts = path, ids, texts

    def pictures(self, ids: Ids) -> np.ndarray:
        """Return uint8 (n, side, side, 3), in the order of `ids`.

        Raises
        ------
        InputError
            If there is no such picture.
        """
        with reading.open_hdf5(self.path, "pictures") as stored:
            found = reading.read_rows(stored, check_ids(ids, len(self.texts)))
        return found if found.ndim == 4 else np.repeat(found[..., None], 3, axis=3)

    def captions(self, ids: Ids) -> list[tuple[str, ...]]:
        """Return the captions of each picture, in the order of `ids`."""
        return [self.texts[i] for i in check_ids(ids, len(self.texts))]


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
    path, faults = Path(path), []
    files = _files(path).values() if path.is_dir() else [path]
    if not files:
        return [f"{path} holds no file *.h5; expected one a subject, such as {path}/S1.h5."]
    for file in files:
        values, wrong = _read(file)
        try:
            if not wrong:
                subject = _subject(file, values, "", "all")
                wrong = [f"{file}: {fault}" for fault in content_faults(subject)]
        except InputError as error:  # pictures are read only now
            wrong = [str(error)]
        faults += wrong
    return faults + (_same_brains(files) if len(files) > 1 else [])


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
    path, twins = Path(path), []
    if path.is_dir():
        files = _files(path)
        if subject not in files:
            there = f"subjects in {path}: {', '.join(files) or 'none'}"
            raise InputError(f"{path / subject}.h5 is missing; {there}. Name them with `subjects`.")
        path, twins = files[subject], _same_brains(files.values())
    values, faults = _read(path)
    faults += twins
    if faults:
        more = len(faults) - 1
        rest = f" And {more} more: `minddiff check own {path}` names them all." if more else ""
        raise InputError(faults[0] + rest)
    if values["subject"] not in (None, subject):
        raise InputError(
            f"{path} is of subject {values['subject']!r}, not {subject!r}. Ask for that one: "
            f'make book PARAMS=own OWN={path} SET="subjects={values["subject"]}".'
        )
    return check_content(path, _subject(path, values, subject, rois))


def _subject(path: Path, values: Values, name: str, rois: str) -> Subject:
    """Put together the record of the voxels that are in a region of `rois` and change."""
    label, stimulus = values["roi"], values["stimulus_id"]
    known = [region for region in dict.fromkeys(label.tolist()) if region]
    roi = {region: label == region for region in choose_regions(rois, known)}
    inside = np.any(list(roi.values()), axis=0)
    keep = inside & values["keep"]
    of_voxels = {key: values[key][keep] for key in ("ncsnr", "voxel_ijk") if key in values}
    return Subject(
        name=name,
        dataset="own",
        responses=np.ascontiguousarray(values["responses"][:, keep]),
        stimulus_id=stimulus,
        session=values["session"],
        roi={region: mask[keep] for region, mask in roi.items()},
        splits=tuple(Split(*parts) for parts in _splits(values)),
        stimuli=OwnStimuli(path, np.unique(stimulus), values["captions"]),
        n_dropped=int((inside & ~values["keep"]).sum()),
        affine=values.get("affine"),
        volume_shape=tuple(values.get("volume_shape", np.empty(0)).tolist()) or None,
        **of_voxels,
    )


def _files(folder: Path) -> dict[str, Path]:
    """The HDF5 files of a folder by name of the subject, sorted."""
    found = [p for p in sorted(folder.iterdir()) if p.suffix in SUFFIXES and p.is_file()]
    return {p.stem: p for p in found if p.name[0] != "."}  # macOS writes ._S1.h5 beside S1.h5


def _same_brains(files: Iterable[Path]) -> list[str]:
    """Say which files begin with the same responses, so are of one brain."""
    faults, seen = [], dict[tuple, Path]()
    for path in files:
        try:
            with reading.open_hdf5(path, "responses") as data:
                start = data.astype(np.float32)[:FIRST]
        except (InputError, ValueError, TypeError):  # a fault of that file, not of this pair
            continue
        other = seen.setdefault((start.shape, start.tobytes()), path)
        if other != path:
            faults.append(f"{path}: `responses` are those of {other}: one brain as two subjects.")
    return faults


# ------------------------------------------------------------------- what a file holds


def _read(path: Path) -> tuple[Values, list[str]]:
    """Read a file and check it: first each dataset by itself, then what they say together.

    Returns
    -------
    values : dict
        The arrays by the names of `LAYOUT`, `captions` as a list of tuples of str, `pictures` as
        their row numbers; also `subject` (str or None) and `keep`, bool (n_voxels,): which voxels
        change in the training trials of every session. Not complete if there are faults.
    faults : list of str
        What is wrong, a sentence or two each.
    """
    values: Values = {}
    try:
        with reading.open_file(path, HINT) as file:
            faults = [*_missing(file), *_read_datasets(file, values)]
    except InputError as error:
        return values, [str(error)]
    for check in (_wrong_lengths, _wrong_values, _wrong_splits, _wrong_voxels):
        # Each takes for granted what those before it have found right.
        faults = faults or list(check(values))
    return values, [f"{path}: {fault.removeprefix(f'{path}: ')}" for fault in faults]


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


def _read_dataset(data: h5py.Dataset | h5py.Group, name: str) -> Any:
    """Read a dataset into memory; pictures stay in the file. Raise InputError if it is no such."""
    form = LAYOUT[name]
    if isinstance(data, h5py.Group):
        raise InputError(f"`{name}` is a group; expected {form.words}.")
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
    dtype = np.dtype(np.int64 if form.kind == "whole numbers" else np.float64)
    dtype = np.dtype(np.float32) if name in ("responses", "ncsnr") else dtype
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
    (n, v), n_pictures = values["responses"].shape, len(values["pictures"])
    if (len(values["roi"]), len(values["stimulus_id"])) == (n, v) != (v, n):
        yield f"`responses` {(n, v)} lies on its side: {v} trials, {n} voxels. Write responses.T."
        return
    sizes: dict[str | int, int] = {"n_trials": n, "n_voxels": v, "n_pictures": n_pictures}
    for name in (name for name in LAYOUT if name in values):
        first, found = LAYOUT[name].axes[0], values[name]
        expected = tuple(sizes.get(axis, axis) for axis in LAYOUT[name].axes)
        if len(found) != expected[0] and first in sizes:
            by_trial = first == "n_pictures" and len(found) == n
            hint = " It looks like one a trial: give one a picture." if by_trial else ""
            unit = str(first).removeprefix("n_").removesuffix("s")
            yield f"`{name}` has {len(found)} entries; expected {expected[0]}, one a {unit}.{hint}"
        elif isinstance(found, np.ndarray) and found.shape != expected:
            yield f"`{name}` has shape {found.shape}; expected {expected}."


def _wrong_values(values: Values) -> Iterator[str]:
    """Say which numbers and words mean nothing."""
    bad = ~np.isfinite(values["responses"])
    partly = bad.any(axis=0) & ~bad.all(axis=0)
    if partly.any():
        yield (
            f"`responses` are NaN or infinite in some trials for {partly.sum()} of {bad.shape[1]} "
            f"voxels, first in trial {bad[:, partly].any(axis=1).argmax()} counted from 0. Leave "
            "such trials out, or set these voxels to NaN throughout to have them left out."
        )
    low, high, n = values["stimulus_id"].min(), values["stimulus_id"].max(), len(values["pictures"])
    if low < 0 or high >= n:
        hint = " They seem to count from 1: subtract 1." if (low, high) == (1, n) else ""
        yield f"`stimulus_id` goes from {low} to {high}; `pictures` has rows 0 to {n - 1}.{hint}"
    empty = [row for row, texts in enumerate(values["captions"]) if not texts]
    if empty:
        yield f"`captions` has none for {listed('picture', empty)}; expected at least one."
    for word in sorted({*values.get("split", ())} - {"train", "test"})[:1]:
        yield f'`split` has {word!r}; expected "train" or "test" for every picture.'
    names = {*values["roi"]} - {""}
    if not names or names & {*EVERY} or "," in "".join(names):
        yield f"`roi` names {sorted(names)}; expected some, without a comma, and not 'all'."
    if PLACES[0] in values:
        ijk, affine, shape = (values[name] for name in PLACES)
        outside = np.flatnonzero(((ijk < 0) | (ijk >= shape)).any(axis=1))
        if outside.size:
            size = f"`volume_shape` {tuple(shape.tolist())}"
            yield f"`voxel_ijk` of {listed('voxel', outside)} lies outside {size}, counted from 0."
        if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            yield "`affine` cannot be inverted; expected millimetres from voxel places."


def _splits(values: Values) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Return name, training pictures and test pictures of each split; only pictures shown count.

    One split called "own", or one a fold that holds a shown picture, "fold_0" and so on.
    """
    shown = np.unique(values["stimulus_id"])
    if "split" in values:
        word = values["split"][shown]
        return [("own", shown[word == "train"], shown[word == "test"])]
    fold = values["fold"][shown]
    return [(f"fold_{n}", shown[fold != n], shown[fold == n]) for n in np.unique(fold)]


def _wrong_splits(values: Values) -> Iterator[str]:
    """Find the voxels that change wherever they are standardised; say where that is too little."""
    x, stimulus = values["responses"], values["stimulus_id"]
    keep = values["keep"] = np.isfinite(x).all(axis=0)
    session = values.setdefault("session", np.ones(len(x), np.int64))
    n_test = 0
    for name, train, test in _splits(values):
        n_test += len(test)
        if len(train) < MIN_TRAIN:
            yield f"{len(train)} shown pictures train in split {name}; expected {MIN_TRAIN}."
        for number in np.unique(session):
            some = x[(session == number) & np.isin(stimulus, train)][:, keep]
            if len(some) < 2:
                n = f"{len(some)} trials with a training picture of split {name}"
                yield f"session {number} has {n}; expected 2 or more. Give it a neighbour's number."
                return
            # As `prepare_fold` asks of them.
            mean, sd = some.mean(axis=0, dtype=np.float64), some.std(axis=0, dtype=np.float64)
            keep[keep] = sd > 1e-6 * np.abs(mean)
    if n_test < MIN_TEST:
        yield f"{n_test} shown pictures test; expected {MIN_TEST} or more."


def _wrong_voxels(values: Values) -> Iterator[str]:
    """Say which voxels or regions that are of use lack something."""
    label, keep = values["roi"], values["keep"]
    # NaN may stand for a voxel outside the field of view, which has no responses either.
    ratio = np.where(keep & (label != ""), values.get("ncsnr", 0), 0)
    bad = np.flatnonzero(~np.isfinite(ratio) | (ratio < 0))
    if bad.size:
        yield f"`ncsnr` of {listed('voxel', bad)} is not finite or below zero; expected 0 or more."
    for name in sorted({*label[label != ""]} - {*label[keep]}):
        yield (
            f"every voxel of region {name} is NaN or constant in the training trials of a session. "
            "Mend its `responses`, or leave it out (an empty text in `roi`)."
        )
