"""Natural photographs in grey, seen by one person: the recording of Kay et al. (2008).

The file is `kay_images.npz` as hosted for teaching: responses already averaged over repetitions and
z-scored by those who made it, one row a picture.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from minddiff_utils.datasets.reading import reading
from minddiff_utils.datasets.recording import checked, choose_regions, single_session, wrong_shapes
from minddiff_utils.datasets.subject import Split, Subject
from minddiff_utils.io import InputError

FILE = "kay_images.npz"
CAPTIONS_FILE = "kay_captions.json"
# The arrays of the file, and their axes.
AXES: dict[str, tuple[str, ...]]
AXES = {"stimuli": ("n_train", "height", "width"), "stimuli_test": ("n_test", "height", "width")}
AXES |= {"responses": ("n_train", "n_voxels"), "responses_test": ("n_test", "n_voxels")}
AXES |= {"roi": ("n_voxels",), "roi_names": ("n_regions",)}
SOURCE = "Fetch it (249 MB): minddiff fetch kay FOLDER."
OUTSIDE = "Other"  # voxels of no region


def kay_path(path: str | Path) -> Path:
    """Return the file, given itself or the folder that holds it as `kay_images.npz`."""
    path = Path(path)
    return path if path.suffix == ".npz" else path / FILE


def load_kay(path: str | Path, subject: str = "S1", *, rois: str = "kastner2015") -> Subject:
    """Read `kay_images.npz`: 1,750 photographs to train, 120 to test, 8,428 voxels.

    Parameters
    ----------
    path : str or Path
        The file, or its folder. If `kay_captions.json` lies beside it, captions are read from
        there: `{"0": ["a caption", …], …}`, ids from 0, test pictures after the training pictures.
        Without it every picture has the empty caption. The text condition `c` is then the same
        for all pictures, that of no text, and guidance does nothing: what is reconstructed comes
        from `z` and the structure alone.
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
    path = kay_path(path)
    content = _read(path)
    responses = np.concatenate([content["responses"], content["responses_test"]])
    grey = _grey(np.concatenate([content["stimuli"], content["stimuli_test"]]))
    ids, n_train = np.arange(len(grey)), len(content["responses"])
    split = Split("photographs", train=ids[:n_train], test=ids[n_train:])
    texts, roi = _texts(path.with_name(CAPTIONS_FILE), len(ids)), _regions(path, content, rois)
    found = single_session(subject, "kay", responses, ids, roi, [split], grey, texts)
    return checked(path, found, SOURCE)


def _read(path: Path) -> dict[str, np.ndarray]:
    """Return the six arrays, of shapes that fit one another."""
    with reading(path, "archive of these arrays", SOURCE), np.load(path) as file:
        content = {key: file[key] for key in AXES}
    shapes = {key: values.shape for key, values in content.items()}
    for _, fault in wrong_shapes(shapes, AXES):
        raise InputError(f"{path}: {fault} {SOURCE}")
    return content


def _regions(path: Path, content: Mapping[str, np.ndarray], rois: str) -> dict[str, np.ndarray]:
    """Return the mask of each region asked for, bool (n_voxels,)."""
    numbers, names = content["roi"].astype(np.int64), content["roi_names"].astype(str).tolist()
    if numbers.min() < 0 or numbers.max() >= len(names):
        held = f"{numbers.min()} to {numbers.max()}, roi_names {len(names)} names"
        raise InputError(f"{path}: roi holds {held}. {SOURCE}")
    masks = {name: numbers == number for number, name in enumerate(names)}
    known = [name for name, mask in masks.items() if mask.any() and name != OUTSIDE]
    return {name: masks[name] for name in choose_regions(rois, known)}


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


def _texts(path: Path, n: int) -> list[tuple[str, ...]]:
    """Read the captions of each picture, if there are any; all pictures must have some."""
    if not path.is_file():
        return [("",)] * n
    form = 'Expected {"0": ["a caption", …], …} with one entry a picture'
    with reading(path, "file of captions", f"{form}."):
        texts = TypeAdapter(dict[int, tuple[str, ...]]).validate_json(path.read_bytes())
    missing = [i for i in range(n) if not texts.get(i)]
    if missing:
        raise InputError(f"{path} has no caption for picture {missing[0]}. {form} (0 to {n - 1}).")
    return [texts[i] for i in range(n)]
