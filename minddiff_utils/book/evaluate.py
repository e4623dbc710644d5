"""Any method's pictures judged: the notebook `evaluate` run, its page and gallery written."""

import base64
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
from markdown_it import MarkdownIt
from papermill.exceptions import PapermillExecutionError
from PIL import Image

from minddiff_utils.book import KEEP_MEMORY, BookError
from minddiff_utils.book.build import finish_page
from minddiff_utils.book.pages import gallery_of, load_template
from minddiff_utils.book.run import run_notebook
from minddiff_utils.io import InputError, atomic_path, claim_run


def judge_pictures(root: Path, out: Path, given: Mapping[str, Any]) -> Path:
    """Run the notebook `evaluate`, and make its page.

    Parameters
    ----------
    root : Path
        The project's folder.
    out : Path
        Where results go: a new folder, or one of an earlier call.
    given : mapping
        Parameters of the notebook.

    Returns
    -------
    Path
        Of the page.

    Raises
    ------
    InputError, BookError
        With what the notebook has said.
    """
    source = root / "notebooks" / "evaluate.ipynb"
    for name in KEEP_MEMORY:  # pictures of many sizes would leave gaps in what is kept
        os.environ.pop(name, None)
    try:
        with atomic_path(claim_run(out) / source.name) as running:
            run_notebook(source, running, {**given, "out": str(out)})
    except PapermillExecutionError as error:
        kind = InputError if error.ename == "InputError" else BookError
        raise kind(error.evalue if kind is InputError else str(error)) from None
    return write_page(nbformat.read(out / source.name, as_version=4), root / "book", out)


def write_page(notebook: nbformat.NotebookNode, book: Path, out: Path) -> Path:
    """Write an executed notebook as one HTML file: prose, tables and figures, without code."""
    markdown, parts = MarkdownIt("commonmark", {"html": False}).enable("table"), []
    for cell in finish_page(notebook).cells:
        if cell.cell_type == "markdown":
            parts.append({"html": markdown.render(cell.source)})
        for data in (output.get("data", {}) for output in cell.get("outputs", [])):
            if "text/markdown" in data:
                parts.append({"html": markdown.render(data["text/markdown"])})
            elif "image/png" in data:
                caption = markdown.render(cell.metadata["mystnb"]["figure"]["caption"])
                alt = cell.metadata["mystnb"]["image"]["alt"]
                parts.append({"png": data["image/png"], "alt": alt, "caption": caption})
    return _write(book, out / "index.html", parts=parts)


def write_gallery(
    book: Path, path: Path, values: pd.DataFrame, names: Sequence[str], stacks: Mapping
) -> Path:
    """Write every picture with its scores as one HTML file that can be sorted.

    Parameters
    ----------
    book : Path
        Folder with `templates` and `static`.
    path : Path
        Of the file.
    values : DataFrame
        `method, stimulus_id, metric, value`.
    names : sequence of n str
        Of the pictures.
    stacks : dict of uint8 (n, h, w, 3)
        "seen" first, then each method.
    """
    gallery = gallery_of(values, names, [name for name in stacks if name != "seen"])
    for row, picture in enumerate(gallery["pictures"]):
        strip = Image.fromarray(np.concatenate([part[row] for part in stacks.values()], axis=1))
        strip.save(buffer := io.BytesIO(), "JPEG", quality=85)
        data = base64.b64encode(buffer.getvalue()).decode()
        picture["strip"] = f"data:image/jpeg;base64,{data}"
    return _write(book, path, gallery=gallery)


def _write(book: Path, path: Path, **content: Any) -> Path:
    text = load_template(book, "evaluate.html").render(**content)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
