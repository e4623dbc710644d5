"""Images as people have them: folders, arrays, tensors, HDF5 files. Read when asked for, noted.

Whatever is done to an image on its way (grey to three channels, transparency onto white, floats to
whole numbers, another size) is written down in `Pictures.notes`; nothing is guessed in silence.
"""

import re
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from minddiff_utils.datasets.nsd.design import PROTOCOLS, NsdStimuli, NsdTree, read_design
from minddiff_utils.datasets.reading import open_file, open_hdf5, reading
from minddiff_utils.io import InputError

SUFFIXES = (".png", ".jpg", ".jpeg")
BLOCK = 64  # pictures read at a time where a file is looked through
SLACK = 0.05  # share of the range by which resizing may overshoot it
FORMATS = "a folder of PNG or JPEG files, .npy, .npz, .pt, FILE.h5, FILE.h5:DATASET or an NSD tree"
GREY, CLEAR = "grey, in three equal channels", "with transparency, laid on white"
# Numbers of pictures that mean something in the field.
USUAL = {
    515: "NSD, the pictures that all eight subjects saw three times",
    982: "NSD, shared pictures of 37 sessions",
    1000: "NSD, shared pictures of all 40 sessions",
}


@dataclass(frozen=True)
class Pictures:
    """Images of one size, each read when it is asked for: `pictures[3]`, `pictures[8:16]`.

    Parameters
    ----------
    path : str
        Where they are.
    names : tuple of str
        Of each: the file's stem, its number in the recording, or its place.
    size : tuple of int
        Height and width that they are returned in, resized where they are stored in another.
    read : function
        From a place to one image as stored, uint8 (h, w, 3).
    notes : tuple of str
        What is done to them.
    named : bool
        False where the names are but places.
    """

    path: str
    names: tuple[str, ...]
    size: tuple[int, ...]
    read: Callable[[int], np.ndarray]
    notes: tuple[str, ...] = ()
    named: bool = True

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shape(self) -> tuple[int, ...]:
        """As of the array uint8 (n, height, width, 3) that all of them would be."""
        return (len(self), *self.size, 3)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Return one image uint8 (h, w, 3) for a number, else uint8 (n, h, w, 3)."""
        places = np.arange(len(self))[rows]
        found = [resized(self.read(int(place)), self.size) for place in np.atleast_1d(places)]
        return np.stack(found) if np.ndim(places) else found[0]

    def take(self, rows: np.ndarray) -> "Pictures":
        """Return some of them, or all in another order."""
        names = tuple(self.names[row] for row in rows)
        return replace(self, names=names, read=lambda place: self.read(int(rows[place])))

    def fitted(self, size: tuple[int, ...]) -> "Pictures":
        """Return them in another size."""
        note = "resized from {} × {} to {} × {} pixels (bicubic)".format(*self.size, *size)
        return replace(self, size=size, notes=self.notes + (note,) * (size != self.size))


def resized(picture: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Return an image uint8 (h, w, 3) in another size, bicubic, smoothed where it shrinks."""
    if picture.shape[:2] == size:
        return picture
    height, width = size
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


def open_pictures(
    path: str, subject: str = "subj01", protocol: int | None = None, train: bool = False
) -> Pictures:
    """Open images in any of the forms that they come in.

    Parameters
    ----------
    path : str
        A folder of PNG or JPEG files; `.npy`, `.npz` (one array, no pickles); `.pt` (one tensor);
        `FILE.h5` with a dataset `pictures`, or `FILE.h5:DATASET`; a tree in NSD's layout. Arrays
        are (n, h, w), (n, h, w, c) or (n, c, h, w) of 1, 3 or 4 channels, uint8, other whole
        numbers to 255, or floats in 0 to 1 or 0 to 255.
    subject : str
        Whose test images of an NSD tree.
    protocol : {982, 1000, None}
        Of an NSD tree: sessions whose shared images are taken; all that were planned without.
    train : bool
        Of an NSD tree: the images that are not shared, instead of those that are.

    Returns
    -------
    Images

    Raises
    ------
    InputError
        If there is nothing of these, or it cannot be read.
    """
    place, dataset = Path(path), re.fullmatch(r"(.+\.(?:h5|hdf5))(?::(.+))?", path)
    if dataset:
        found = _hdf5(Path(dataset[1]), dataset[2] or "pictures")
    elif (place / "nsddata").is_dir():
        found = _nsd(NsdTree(place, subject), protocol, train)
    elif place.is_dir():
        found = _folder(place)
    elif place.suffix in ARRAYS and place.exists():
        values = ARRAYS[place.suffix](place)
        found = _stack(path, values.shape, lambda rows: np.asarray(values[rows]))
    else:
        raise InputError(f"{path}: there is no such picture file or folder; expected {FORMATS}.")
    if protocol and not train and len(found) != protocol:
        raise InputError(f"{path} has {_count(found)}, not the {protocol} of the protocol.")
    return found


# --- forms ---------------------------------------------------------------------------------


def _folder(folder: Path) -> Pictures:
    files = [path for path in folder.glob("[!.]*") if path.suffix.lower() in SUFFIXES]
    parts = {path: re.split(r"(\d+)", path.stem) for path in files}
    files.sort(key=lambda path: [int(p) if p.isdecimal() else p for p in parts[path]])
    stems = [path.stem for path in files]
    if not files or len(set(stems)) < len(stems):
        twice = next((s for s in stems if stems.count(s) > 1), "no picture")
        raise InputError(f"{folder} holds {twice} (as PNG and as JPEG?); expected {FORMATS}.")
    sizes, kinds = (list(column) for column in zip(*map(_header, files), strict=True))
    notes = [f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds) if kind]
    size = max(dict.fromkeys(sizes), key=sizes.count)
    if other := len(sizes) - sizes.count(size):
        notes.append(f"{other} of another size, resized to {size[0]} × {size[1]} pixels (bicubic)")
    return Pictures(str(folder), tuple(stems), size, lambda row: _decoded(files[row]), tuple(notes))


def _header(path: Path) -> tuple[tuple[int, ...], str]:
    """Height and width of an image, and what its colours need; without decoding it."""
    with reading(path, "PNG or JPEG picture", ""), Image.open(path) as image:
        if image.mode.startswith(("I", "F")):
            raise InputError(f"{path} has {image.mode} values; expected 8 bits a channel.")
        kind = {"RGB": "", "L": GREY}.get(image.mode, f"{image.mode} to RGB")
        return image.size[::-1], CLEAR if image.has_transparency_data else kind


def _decoded(path: Path) -> np.ndarray:
    with reading(path, "PNG or JPEG picture", ""), Image.open(path) as image:
        return _rgb(np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB")))


def _rgb(picture: np.ndarray) -> np.ndarray:
    """Three channels of a uint8 image (h, w, c) of one, three or four."""
    if picture.shape[2] == 4:
        alpha = picture[..., 3:] / 255
        return np.rint(picture[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(picture, (*picture.shape[:2], 3)))


def _numpy(path: Path) -> np.ndarray:
    with reading(path, "NumPy file", "Write it with numpy.save, without pickled objects."):
        return np.load(path, mmap_mode="r", allow_pickle=False)


def _archive(path: Path) -> np.ndarray:
    """The array of an archive, mapped into memory by way of a file that is gone again."""
    with reading(path, "NumPy archive", ""), zipfile.ZipFile(path) as archive:
        (name, *more) = archive.namelist()
        if more:
            raise InputError(f"{path} holds {name}, {', '.join(more)}; expected one array.")
        with tempfile.TemporaryDirectory() as scratch:
            return _numpy(Path(archive.extract(name, scratch)))


def _tensor(path: Path) -> np.ndarray:
    with reading(path, "file of torch.save with one tensor", ""):
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return (values.float() if values.dtype == torch.bfloat16 else values.detach()).numpy()


ARRAYS = {".npy": _numpy, ".npz": _archive, ".pt": _tensor, ".pth": _tensor}


def _hdf5(path: Path, name: str) -> Pictures:
    with open_file(path, "Run `make book` for the phantom's, or give your own pictures.") as file:
        if name not in file:
            raise InputError(f"{path} has no {name!r}; give {path}:NAME, of {', '.join(file)}.")
        ids = file["stimulus_id"][:] if "stimulus_id" in file else ()
        shape = file[name].shape

    def fetch(rows: Any) -> np.ndarray:
        with open_hdf5(path, name) as data:
            return data[rows]

    found = _stack(f"{path}:{name}", shape, fetch)
    named = len(ids) == len(found)
    return replace(found, names=tuple(map(str, ids)), named=True) if named else found


def _nsd(tree: NsdTree, protocol: int | None, train: bool) -> Pictures:
    ids, shared = read_design(tree)
    if protocol is not None:  # every session has as many trials
        n = len(ids) // PROTOCOLS[1000] * PROTOCOLS[protocol]
        ids, shared = ids[:n], shared[:n]
    ids = np.unique(ids[shared != train])
    stimuli, names = NsdStimuli(tree, ids), tuple(map(str, ids))
    size = stimuli.pictures(ids[:1]).shape[1:3]
    return Pictures(str(tree.root), names, size, lambda row: stimuli.pictures(ids[[row]])[0])


def _stack(path: str, shape: tuple[int, ...], fetch: Callable[[Any], np.ndarray]) -> Pictures:
    """Images of one array: which of its axes are what, and what its values mean."""
    axis = next((k for k in (1, 3) if len(shape) == 4 and shape[k] in (1, 3, 4)), None)
    if 0 in shape or (len(shape) != 3 and axis is None):
        expected = "(n, h, w), (n, h, w, c) or (n, c, h, w) with 1, 3 or 4 channels c"
        raise InputError(f"{path} has shape {shape}; expected {expected}.")
    scale, floats = _scale(path, shape[0], fetch)
    notes = {3: (), 4: (CLEAR,)}.get(shape[axis] if axis else 1, (GREY,))
    if floats:
        notes += (f"floats in 0 to {255 // scale}, rounded to whole numbers in 0 to 255",)

    def read(row: int) -> np.ndarray:
        values = fetch(row) if axis else fetch(row)[..., None]
        values = values.transpose(1, 2, 0) if axis == 1 else values
        if values.dtype != np.uint8:
            values = np.rint(np.clip(values * float(scale), 0, 255)).astype(np.uint8)
        return _rgb(values)

    size = shape[2:4] if axis == 1 else shape[1:3]
    return Pictures(path, tuple(map(str, range(shape[0]))), size, read, notes, named=False)


def _scale(path: str, n: int, fetch: Callable[[Any], np.ndarray]) -> tuple[int, bool]:
    """What values are multiplied with, 255 where they are in 0 to 1, and whether they are floats.

    The whole file is looked through, a block at a time.
    """
    ends = []
    for start in range(0, n, BLOCK):
        block = fetch(slice(start, start + BLOCK))
        bad = ~np.isfinite(block.reshape(len(block), -1)).all(axis=1)
        if bad.any():
            which = f"picture {start + bad.argmax()} (counted from 0) holds values that are no"
            raise InputError(f"{path}: {which} numbers; put a grey picture in its place.")
        ends += [float(block.min()), float(block.max())]
    low, high, floats = min(ends), max(ends), block.dtype.kind == "f"
    if floats and low >= -SLACK and high <= 1 + SLACK:
        return 255, True
    slack = 255 * SLACK * floats
    if low < -slack or high > 255 + slack or high <= 1:
        expected = "expected 0 to 255, or floats in 0 to 1. Of values in -1 to 1 write (x + 1) / 2."
        raise InputError(f"{path} holds values from {low:.4g} to {high:.4g}; {expected}")
    return 1, floats


# --- which belongs to which ------------------------------------------------------------------


def matched(truth: Pictures, made: Pictures, label: str) -> Pictures:
    """Put a method's images into the order and size of those that were seen.

    By their names where both have some: the same stems, or the same numbers in them. By their
    place where not; `order_test` then tells whether that can be.

    Parameters
    ----------
    truth, made : Pictures
    label : str
        Of the method, for messages.

    Returns
    -------
    Images
        `notes` say how they were matched.

    Raises
    ------
    InputError
        If there are more or fewer than were seen, or most names but not all are the same.
    """
    if len(truth) != len(made):
        n, m = _count(made), _count(truth)
        raise InputError(f"{label} has {n}, the truth {m}: give one for each that was seen.")
    lacking, how = [], "matched by place, for there are no names to go by"
    for key in KEYS if truth.named and made.named else ():
        there = {key(name): row for row, name in enumerate(made.names)}
        rows = [there.get(key(name), -1) for name in truth.names]
        lacking.append([name for name, row in zip(truth.names, rows, strict=True) if row < 0])
        if len(set(rows)) == len(truth) and not lacking[-1]:
            return _fitted(truth, made.take(np.array(rows)), "matched by name")
        how = f"matched by place, for names differ ({truth.names[0]} …, {made.names[0]} …)"
    if lacking and len(least := min(lacking, key=len)) < len(truth) / 2 and least:
        raise InputError(f"{label} ({made.path}) has no picture for {least[0]} of the truth.")
    return _fitted(truth, made, how)


def _count(pictures: Pictures) -> str:
    n = len(pictures)
    return f"{n} pictures" + (f" ({USUAL[n]})" if n in USUAL else "")


def _fitted(truth: Pictures, made: Pictures, how: str) -> Pictures:
    made = made.fitted(truth.size)
    return replace(made, names=truth.names, notes=(how, *made.notes))


def _number(name: str, place: int) -> int | str:
    """A whole number in a name, by its place or the last one; the name where there is none."""
    found = re.findall(r"\d+", name)
    return int(found[min(place, len(found) - 1)]) if found else name


# What names may share: all of them, or one of their numbers.
KEYS: list[Callable[[str], int | str]] = [str, *(partial(_number, place=k) for k in (-1, 0, 1, 2))]
