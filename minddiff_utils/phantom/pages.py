"""Pictures and tables for the book's page about the phantom, made from the phantom itself."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from minddiff_utils.datasets import load_subject
from minddiff_utils.datasets.subject import noise_ceiling
from minddiff_utils.io import atomic_path
from minddiff_utils.phantom import world
from minddiff_utils.phantom.brain import noise_ceiling_targets

GAP = 8  # px of white between pictures
SCALE = 2
EXAMPLE = 1  # the second picture of the sheet, whose captions are shown


def write_world_sheet(path: str | Path, ids: Sequence[int] = range(32), columns: int = 8) -> Path:
    """Draw a grid of the world's pictures into a PNG file.

    Parameters
    ----------
    path : str or Path
    ids : sequence of int
        Which pictures, row by row.
    columns : int

    Returns
    -------
    Path
        `path`.
    """
    side = world.SIZE * SCALE + GAP
    rows = -(-len(ids) // columns)
    sheet = Image.new("RGB", (columns * side - GAP, rows * side - GAP), "white")
    for place, i in enumerate(ids):
        picture = Image.fromarray(world.picture(i))
        picture = picture.resize((world.SIZE * SCALE,) * 2, Image.Resampling.LANCZOS)
        sheet.paste(picture, (place % columns * side, place // columns * side))
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")
    return Path(path)


def caption_list(i: int) -> str:
    """The five captions of picture `i` as a markdown list, set as people set punctuation."""
    captions = [re.sub(r" ([,:])", r"\1", caption) for caption in world.captions(i)]
    return "\n".join(f"- {caption}" for caption in captions) + "\n"


def ceiling_table(tree: str | Path, subjects: Sequence[str]) -> str:
    """Noise ceilings by area, aimed at and simulated, as a markdown table.

    Parameters
    ----------
    tree : str or Path
        Folder that `write_tree` wrote.
    subjects : sequence of str

    Returns
    -------
    str
        One row an area: the mean aimed at for a subject of average quality, then each subject's
        mean over voxels with their number. Per cent, for the mean of three repetitions.
    """
    found = {name: load_subject("nsd", tree, name) for name in subjects}
    lines = ["| Area | aimed at | " + " | ".join(found) + " |", "|---|---:|" + "---:|" * len(found)]
    for roi, aim in noise_ceiling_targets():
        cells = [_cell(subject, roi) for subject in found.values()]
        lines.append(f"| {roi or 'elsewhere'} | {aim:.0f} % | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(subject, roi: str) -> str:
    inside = np.logical_or.reduce(list(subject.roi.values()))
    mask = subject.roi.get(roi, np.zeros_like(inside)) if roi else ~inside
    if not mask.any():
        return "–"
    mean = noise_ceiling(subject.ncsnr[mask], 3).mean()
    return f"{mean:.0f} % ({mask.sum()} voxels)"


def write_pieces(run: str | Path, tree: str | Path | None, subjects: Sequence[str]) -> None:
    """Write `world.png`, `captions.md` and `ceilings.md` into the folder of a run.

    Parameters
    ----------
    run : str or Path
    tree : str or Path or None
        The phantom's tree; None in a book about another recording, which has no table of it.
    subjects : sequence of str
    """
    run = Path(run)
    write_world_sheet(run / "world.png")
    ceilings = (
        ceiling_table(tree, subjects) if tree else "The table is in the phantom's own book.\n"
    )
    for name, text in {"captions": caption_list(EXAMPLE), "ceilings": ceilings}.items():
        with atomic_path(run / f"{name}.md") as temporary:
            temporary.write_text(text, encoding="utf-8")
