"""Strips for galleries: the pictures of one stimulus side by side in one small JPEG.

The picture that was seen comes first, then one a method; pages show a part of it for each.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from minddiff_utils.io import method_file

SIDE, MANY, SMALL_SIDE = 128, 200, 80  # px a picture at most; smaller if there are many


def side_by_side(pictures: Iterable[np.ndarray], side: int = SIDE) -> Image.Image:
    """Join pictures, uint8 (h, w, 3) of one size, made smaller where they exceed `side` pixels."""
    images = [Image.fromarray(picture) for picture in pictures]
    for image in images:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return Image.fromarray(np.concatenate([np.asarray(image) for image in images], axis=1))


def write_strips(
    run: Path, methods: Sequence[str], folder: Path, rows: Sequence[int] = (), side: int = 0
) -> list[int]:
    """Write one strip a test picture, `0000.jpg` and so on, in the order of the files.

    Parameters
    ----------
    run : Path
        Folder of the subject.
    methods : sequence of str
        Whose pictures follow the one that was seen.
    folder : Path
        Where the strips go.
    rows : sequence of int
        Which pictures; all by default.
    side : int
        Pixels of a picture, at most; by default as many as suit how many there are.

    Returns
    -------
    list of int
        Ids of all pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        paths = [method_file(run, name) for name in ("truth", *methods)]
        files = [stack.enter_context(h5py.File(path)) for path in paths]
        stacks = [file["pictures"] for file in files]
        side = side or (SIDE if len(stacks[0]) <= MANY else SMALL_SIDE)
        for number in rows or range(len(stacks[0])):
            strip = side_by_side((stack[number] for stack in stacks), side)
            strip.save(folder / f"{number:04d}.jpg", quality=92, subsampling=0)
        return files[0]["stimulus_id"][:].tolist()
