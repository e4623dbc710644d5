"""Anyone's own recording: one HDF5 file a subject, in the layout of `own_file`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minddiff_utils.datasets.content import check_content, content_faults
from minddiff_utils.datasets.own_file import PLACES, OwnFile, examine, make_splits
from minddiff_utils.datasets.reading import open_hdf5, read_rows
from minddiff_utils.datasets.subject import Subject
from minddiff_utils.io import InputError

SUFFIXES = (".h5", ".hdf5")
FIRST = 32  # trials by which two files are told apart


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
        self.path = path
        self.ids = ids
        self.texts = texts

    def pictures(self, ids: Sequence[int]) -> np.ndarray:
        """Return uint8 (n, side, side, 3), in the order of `ids`.

        Raises
        ------
        InputError
            If there is no such picture.
        """
        with open_hdf5(self.path, "pictures") as stored:
            found = read_rows(stored, self._checked(ids))
        return found if found.ndim == 4 else np.repeat(found[..., None], 3, axis=3)

    def captions(self, ids: Sequence[int]) -> list[tuple[str, ...]]:
        """Return the captions of each picture, in the order of `ids`."""
        return [self.texts[i] for i in self._checked(ids)]

    def _checked(self, ids: Sequence[int]) -> np.ndarray:
        """Return `ids` as an array, or raise InputError if one is not there."""
        ids = np.atleast_1d(np.asarray(ids, dtype=np.int64))
        if ids.size == 0 or ids.min() < 0 or ids.max() >= len(self.texts):
            raise InputError(
                f"{self.path} has pictures 0 to {len(self.texts) - 1}; asked for {ids.tolist()}"
            )
        return ids


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
    path = Path(path)
    if not path.is_dir():
        return _faults(path)
    files = _files(path)
    if not files:
        return [f"{path} holds no file *.h5; expected one a subject, such as {path}/S1.h5."]
    return [fault for file in files for fault in _faults(file)] + _same_brains(files)


def _faults(path: Path) -> list[str]:
    """All faults of one file: first those of its form, and where it has none, of its content."""
    found = examine(path)
    if found.faults:
        return found.faults
    subject = _subject(found, "", _regions(found, "all"))
    return [f"{path}: {fault}" for fault in content_faults(subject)]


def _same_brains(files: Sequence[Path]) -> list[str]:
    """Say which files begin with the same responses, so are of one brain."""
    faults, seen = [], {}
    for path in files:
        try:
            with open_hdf5(path, "responses") as data:
                if data.ndim != 2 or data.dtype.kind not in "iuf":
                    continue
                start = data.astype(np.float32)[:FIRST]
        except InputError:  # a fault of that file, not of this pair
            continue
        other = seen.setdefault((start.shape, start.tobytes()), path)
        if other != path:
            faults.append(
                f"{path}: `responses` are those of {other}: one brain as two subjects. Give each "
                "subject its own recording."
            )
    return faults


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
    folder, path = Path(path), _file_of(Path(path), subject)
    found = examine(path)
    if folder.is_dir():
        found.faults += _same_brains(_files(folder))
    if found.faults:
        more = len(found.faults) - 1
        rest = f" And {more} more: `minddiff check own {path}` names them all." if more else ""
        raise InputError(found.faults[0] + rest)
    if found.subject not in (None, subject):
        raise InputError(
            f"{path} is of subject {found.subject!r}, not {subject!r}. Ask for that one: "
            f'make book PARAMS=own OWN={path} SET="subjects={found.subject}".'
        )
    return check_content(path, _subject(found, subject, _regions(found, rois)))


def _subject(found: OwnFile, name: str, roi: Mapping[str, np.ndarray]) -> Subject:
    """Put together the record of the voxels that are in a region of `roi` and change."""
    values = found.values
    inside = np.logical_or.reduce(list(roi.values()))
    keep = inside & found.keep
    places: dict[str, Any] = {}
    if found.has(*PLACES):
        places = {
            "voxel_ijk": values["voxel_ijk"][keep],
            "volume_shape": tuple(int(n) for n in values["volume_shape"]),
            "affine": values["affine"].astype(float),
        }
    stimulus = values["stimulus_id"]
    session = values.get("session", np.ones(len(stimulus), np.int64))
    return Subject(
        name=name,
        dataset="own",
        responses=np.ascontiguousarray(values["responses"][:, keep]),
        stimulus_id=stimulus,
        session=session,
        roi={region: mask[keep] for region, mask in roi.items()},
        splits=make_splits(values),
        stimuli=OwnStimuli(found.path, np.unique(stimulus), values["captions"]),
        ncsnr=values["ncsnr"][keep].astype(np.float32) if "ncsnr" in values else None,
        n_dropped=int((inside & ~found.keep).sum()),
        **places,
    )


def _regions(found: OwnFile, rois: str) -> dict[str, np.ndarray]:
    """Return a mask over the file's voxels for each region asked for."""
    label = found.values["roi"]
    known = [name for name in dict.fromkeys(label.tolist()) if name]
    every = rois in ("all", "kastner2015")
    names = known if every else [name.strip() for name in rois.split(",")]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(
            f"rois={rois!r}: {found.path} has no region {unknown[0]!r}; give all, or some of "
            f"{','.join(known)}"
        )
    return {name: label == name for name in names}


def _files(folder: Path) -> list[Path]:
    """The HDF5 files of a folder, sorted."""
    return sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES and p.is_file())


def _file_of(path: Path, subject: str) -> Path:
    """The file of a subject: `path` itself, or the one of that name in the folder `path`."""
    if not path.is_dir():
        return path
    named = [file for file in _files(path) if file.stem == subject]
    if not named:
        there = ", ".join(file.stem for file in _files(path)) or "none"
        raise InputError(
            f"{path / subject}.h5 is missing; subjects in {path}: {there}. Name them with "
            '`subjects`, for example SET="subjects=anna,ben".'
        )
    return named[0]
