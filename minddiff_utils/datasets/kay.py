"""Natural photographs in grey, seen by one person: the recording of Kay et al. (2008).

The file is `kay_images.npz` as hosted for teaching: responses already averaged over repetitions and
z-scored by those who made it, one row a picture.
"""

import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minddiff_utils.datasets.content import check_content
from minddiff_utils.datasets.reading import existing, unreadable
from minddiff_utils.datasets.subject import Split, Subject, check_ids
from minddiff_utils.io import InputError

SUBJECT = "S1"
FILE = "kay_images.npz"
CAPTIONS_FILE = "kay_captions.json"
KEYS = ("stimuli", "stimuli_test", "responses", "responses_test", "roi", "roi_names")
SOURCE = "Fetch it (249 MB): minddiff fetch kay FOLDER."
NO_CAPTION = ("",)
OUTSIDE = "Other"  # voxels of no region
# What numpy and zipfile were seen to raise for a damaged file.
DAMAGED = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class KayStimuli:
    """Photographs in grey; training pictures come first, test pictures after them.

    Parameters
    ----------
    grey : uint8 array of shape (n, height, width)
    texts : mapping of int to tuple of str
        Captions by stimulus id; empty where the recording has none.
    """

    grey: np.ndarray
    texts: Mapping[int, tuple[str, ...]]

    @property
    def ids(self) -> np.ndarray:
        """int64 (n,), from 0."""
        return np.arange(len(self.grey))

    def pictures(self, ids: Sequence[int]) -> np.ndarray:
        """Return uint8 (n, height, width, 3), three equal channels, in the order of `ids`."""
        return np.repeat(self.grey[check_ids(ids, len(self.grey))][..., None], 3, axis=3)

    def captions(self, ids: Sequence[int]) -> list[tuple[str, ...]]:
        """Return the captions of each picture, in the order of `ids`.

        Without a file of captions every picture has the empty one. The text condition `c` is then
        the same for all pictures, that of no text, and guidance does nothing: what is
        reconstructed comes from `z` and the structure alone.
        """
        return [self.texts.get(int(i), NO_CAPTION) for i in check_ids(ids, len(self.grey))]


def kay_path(path: str | Path) -> Path:
    """Return the file, given itself or the folder that holds it as `kay_images.npz`."""
    path = Path(path)
    return path if path.suffix == ".npz" else path / FILE


def load_kay(path: str | Path, subject: str = SUBJECT, *, rois: str = "kastner2015") -> Subject:
    """Read `kay_images.npz`: 1,750 photographs to train, 120 to test, 8,428 voxels.

    Parameters
    ----------
    path : str or Path
        The file, or its folder. If `kay_captions.json` lies beside it, captions are read from
        there: `{"0": ["a caption", …], …}`, ids from 0, test pictures after the training pictures.
    subject : str
        "S1"; the file holds one subject.
    rois : str
        "kastner2015" for all regions of the file, or names among V1, V2, V3, V3A, V3B, V4 and
        LatOcc with commas between.

    Returns
    -------
    Subject
        One split, "photographs". One trial a picture (its mean over repetitions, which the file
        does not hold singly), so no noise ceiling can be estimated. Pictures are brought to 0 to
        255 by one scale for all of them.

    Raises
    ------
    InputError
        If the subject or region is unknown, or the file is missing, damaged or not the expected.
    """
    if subject != SUBJECT:
        raise InputError(f"subject={subject!r} is unknown; this recording has {SUBJECT} only")
    path = kay_path(path)
    content = _read(path)
    n_train, n_test = len(content["responses"]), len(content["responses_test"])
    responses = np.concatenate([content["responses"], content["responses_test"]])
    roi = _regions(path, content, rois)
    wanted = np.any(list(roi.values()), axis=0)
    finite = np.isfinite(responses).all(axis=0)
    # Constant in training is what counts: that is what standardises.
    changes = np.ptp(np.where(finite, content["responses"], 0), axis=0) > 0
    keep = wanted & finite & changes
    for name, mask in roi.items():
        if not (mask & keep).any():
            raise InputError(f"{path}: every voxel of {name} is constant or not finite. {SOURCE}")
    grey = _grey(np.concatenate([content["stimuli"], content["stimuli_test"]]))
    ids = np.arange(n_train + n_test)
    subject = Subject(
        name=SUBJECT,
        dataset="kay",
        responses=np.ascontiguousarray(responses[:, keep], np.float32),
        stimulus_id=ids,
        session=np.ones(len(ids), np.int64),
        roi={name: mask[keep] for name, mask in roi.items()},
        splits=(Split("photographs", train=ids[:n_train], test=ids[n_train:]),),
        stimuli=KayStimuli(grey, _texts(path.with_name(CAPTIONS_FILE), len(ids))),
        n_dropped=int((wanted & ~keep).sum()),
    )
    return check_content(path, subject, SOURCE)


def _read(path: Path) -> dict[str, np.ndarray]:
    """Return the six arrays, of shapes that fit one another."""
    existing(path, SOURCE)
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in KEYS if key not in file]
            if missing:
                raise InputError(f"{path} lacks {', '.join(missing)}. {SOURCE}")
            content = {key: file[key] for key in KEYS}
    except InputError:
        raise
    except DAMAGED as error:
        damage = f"is truncated or no npz file ({error}). {SOURCE}"
        raise unreadable(path, error, damage) from None
    fault = _misfit({key: values.shape for key, values in content.items()})
    if fault:
        raise InputError(f"{path}: {fault}. {SOURCE}")
    return content


def _misfit(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Say which array does not fit; empty if all do."""
    for key, axes in (("stimuli", 3), ("responses", 2), ("roi", 1), ("roi_names", 1)):
        if len(shapes[key]) != axes:
            return f"{key} has shape {shapes[key]}; expected {axes} axes"
    pictures, voxels = shapes["stimuli"], shapes["roi"]
    expected = {
        "responses": (pictures[0], *voxels),
        "responses_test": (shapes["responses_test"][0], *voxels),
        "stimuli_test": (shapes["responses_test"][0], *pictures[1:]),
    }
    for key, shape in expected.items():
        if shapes[key] != shape:
            return f"{key} has shape {shapes[key]}; expected {shape}"
    return ""


def _regions(path: Path, content: Mapping[str, np.ndarray], rois: str) -> dict[str, np.ndarray]:
    """Return the mask of each region asked for, bool (n_voxels,)."""
    numbers = np.asarray(content["roi"]).astype(np.int64)
    names = [str(name) for name in content["roi_names"]]
    if numbers.min() < 0 or numbers.max() >= len(names):
        raise InputError(
            f"{path}: roi holds {numbers.min()} to {numbers.max()}, roi_names {len(names)} names. "
            f"{SOURCE}"
        )
    masks = {name: numbers == number for number, name in enumerate(names)}
    masks = {name: mask for name, mask in masks.items() if mask.any() and name != OUTSIDE}
    if rois == "kastner2015":
        return masks
    wanted = [name.strip() for name in rois.split(",")]
    unknown = [name for name in wanted if name not in masks]
    if unknown:
        raise InputError(
            f"rois={rois!r}: {unknown[0]!r} is unknown; give kastner2015 or some of "
            f"{','.join(masks)}"
        )
    return {name: masks[name] for name in wanted}


def _grey(values: np.ndarray) -> np.ndarray:
    """Bring luminances to 0 to 255 by one scale for all pictures: their contrast stays."""
    low, high = float(values.min()), float(values.max())
    cast = values.dtype.kind in "iu" and high - low <= 1
    if not np.isfinite([low, high]).all() or high <= low or cast:
        raise InputError(f"the pictures hold {values.dtype} {low:g} to {high:g}. {SOURCE}")
    # Luminance is stored from 0 to 1 or 0 to 255; where the mean was taken off, the extremes count.
    if low >= 0:
        low, high = 0.0, 1.0 if high <= 1 else max(high, 255.0)
    return np.rint((values.astype(np.float32) - low) * (255 / (high - low))).astype(np.uint8)


def _texts(path: Path, n: int) -> dict[int, tuple[str, ...]]:
    """Read captions by stimulus id, if there are any; all pictures must have some."""
    if not path.is_file():
        return {}
    form = 'expected {"0": ["a caption", …], …} with one entry a picture'
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        texts = {int(key): tuple(str(text) for text in value) for key, value in content.items()}
    except (json.JSONDecodeError, UnicodeDecodeError, ValueError, AttributeError, TypeError):
        raise InputError(f"{path} is no file of captions; {form}.") from None
    missing = [i for i in range(n) if not texts.get(i)]
    if missing:
        raise InputError(f"{path} has no caption for picture {missing[0]}; {form} (0 to {n - 1}).")
    return texts
