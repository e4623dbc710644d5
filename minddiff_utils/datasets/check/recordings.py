"""Which files the recordings of Miyawaki et al. and of Kay et al. need."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError

from minddiff_utils.datasets.check.entry import (
    UNREADABLE,
    WRONG_SHAPE,
    WRONG_SIZE,
    Entry,
    Fault,
    examine,
    fault_of,
)
from minddiff_utils.datasets.kay import kay_path, load_kay
from minddiff_utils.datasets.miyawaki import load_miyawaki
from minddiff_utils.datasets.miyawaki_full import REGIONS, MiyawakiTree, read_labels
from minddiff_utils.datasets.reading import unreadable
from minddiff_utils.io import InputError

SMALL_BYTES = 494_782
KAY_BYTES = 249_000_000
# The archive has 153 MB, nearly all of it in the 32 runs; a part of it cannot be fetched.
RUN_BYTES = 4_775_000
TEXT_BYTES = 5_000


def kay_entries(
    path: Path, subjects: Sequence[str] = (), rois: str = "", sessions: int | None = None
) -> list[Entry]:
    """List the one file of Kay's photographs; the other arguments change nothing."""
    path = kay_path(path)
    fault = _unreadable(path, load_kay)
    return [examine(path, "kay", KAY_BYTES, fault)]


def miyawaki_entries(
    path: Path, subjects: Sequence[str] = (), rois: str = "", sessions: int | None = None
) -> list[Entry]:
    """List the small recording's file where a `.mat` is given, else the full recording's files."""
    if path.suffix == ".mat":
        return [examine(path, "vbcca", SMALL_BYTES, _unreadable(path, load_miyawaki))]
    tree = MiyawakiTree(path)
    masks = [tree.mask, *(mask for name in REGIONS for mask in tree.region(name))]
    shapes = {mask: _shape(mask) for mask in masks}
    known = Counter(shape for shape in shapes.values() if isinstance(shape, tuple))
    usual = known.most_common(1)[0][0] if known else None
    entries = [examine(m, "nilearn", TEXT_BYTES, _misfit(shapes[m], usual)) for m in masks]
    for kind in ("random", "figure"):
        entries += _run_entries(tree.runs(kind), usual)
    return entries


def _unreadable(path: Path, load: Callable) -> Fault | None:
    """Let the reader read the file, and turn its error into an entry's fault."""
    if not path.is_file():
        return None
    try:
        load(path)
    except InputError as error:
        fault = fault_of(path, error)
        note, size = fault.note, path.stat().st_size
        if fault.state == UNREADABLE:
            return fault
        if "has shape" in note:
            return Fault(WRONG_SHAPE, note)
        if "truncated" in note or not size:
            return Fault(WRONG_SIZE, f"{size} bytes: {note}")
        return fault
    return None


def _run_entries(runs: Sequence[tuple[Path, Path]], volume: tuple[int, ...] | None) -> list[Entry]:
    """Compare each run with its table; where they disagree, most others of the kind decide."""
    shapes = [_shape(volumes) for volumes, _ in runs]
    rows = [_rows(labels) for _, labels in runs]
    lengths = [shape[3] for shape in shapes if isinstance(shape, tuple) and len(shape) == 4]
    counted = Counter(lengths + [n for n in rows if isinstance(n, int)])
    usual = counted.most_common(1)[0][0] if counted else None
    entries = []
    for (volumes, labels), shape, n in zip(runs, shapes, rows, strict=True):
        length = shape[3] if isinstance(shape, tuple) and len(shape) == 4 else None
        fault = _misfit(shape, volume, 4)
        differ = isinstance(n, int) and length is not None and n != length
        if differ and length != usual:
            fault = Fault(
                WRONG_SHAPE, f"{length} volumes; expected {n}, as {labels.name} has lines"
            )
        entries.append(examine(volumes, "nilearn", RUN_BYTES, fault))
        fault = n if isinstance(n, Fault) else None
        if differ and n != usual:
            fault = Fault(WRONG_SHAPE, f"{n} lines; expected {length}, one a volume")
        entries.append(examine(labels, "nilearn", TEXT_BYTES, fault))
    return entries


def _shape(path: Path) -> tuple[int, ...] | Fault | None:
    """Return the shape of a NIfTI file that can be read to its end; None if it is missing."""
    if not path.is_file():
        return None
    try:
        image = nib.load(path)
        np.asarray(image.dataobj)
    except (EOFError, OSError, ValueError, ImageFileError) as error:
        damage = f"{path.stat().st_size} bytes, cut short ({error})"
        return fault_of(path, unreadable(path, error, damage), WRONG_SIZE)
    return tuple(image.shape)


def _misfit(
    shape: tuple[int, ...] | Fault | None, volume: tuple[int, ...] | None, axes: int = 3
) -> Fault | None:
    """Return what is wrong with a shape, given that of most masks."""
    if isinstance(shape, Fault) or shape is None:
        return shape
    if len(shape) != axes or (volume is not None and shape[:3] != volume):
        wanted = ", ".join(map(str, volume or ("X", "Y", "Z")))
        return Fault(
            WRONG_SHAPE, f"shape {shape}; expected ({wanted}{', volumes' if axes == 4 else ''})"
        )
    return None


def _rows(path: Path) -> int | Fault | None:
    """Return how many volumes a table of labels describes; None if it is missing."""
    if not path.is_file():
        return None
    try:
        return len(read_labels(path))
    except InputError as error:
        return fault_of(path, error)
