"""Pictures and tables for the book's page about the phantom, made from the phantom itself."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from minddiff_utils.datasets import load_subject, noise_ceiling, single_trial_ncsnr
from minddiff_utils.evaluation.tables import markdown_table
from minddiff_utils.figures.reconstruction import mosaic
from minddiff_utils.io import atomic_path
from minddiff_utils.phantom import world
from minddiff_utils.phantom.brain import AREAS


def caption_list(i: int = 1) -> str:
    """The five captions of picture `i`, the second of the sheet, as a markdown list.

    Punctuation is set as people set it.
    """
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
    table = {"aimed at": {roi: f"{area.ceiling:.0f} %" for roi, area in AREAS.items() if roi}}
    for name in subjects:
        subject = load_subject("nsd", tree, name)
        ceiling = noise_ceiling(single_trial_ncsnr(subject), 3)
        table[name] = {
            roi: f"{ceiling[mask].mean():.0f} % ({mask.sum()} voxels)"
            for roi, mask in subject.roi.items()
        }
    return markdown_table(pd.DataFrame(table).rename_axis("Area"))


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
    rows = np.stack([world.picture(i) for i in range(32)]).reshape(4, 8, 64, 64, 3)
    with atomic_path(run / "world.png") as temporary:
        Image.fromarray(mosaic(rows, zoom=2, gap=8)).save(temporary)
    elsewhere = "The table is in the phantom's own book.\n"
    ceilings = ceiling_table(tree, subjects) if tree else elsewhere
    for name, text in {"captions": caption_list(), "ceilings": ceilings}.items():
        with atomic_path(run / f"{name}.md") as temporary:
            temporary.write_text(text, encoding="utf-8")
