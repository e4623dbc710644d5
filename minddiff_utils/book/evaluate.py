"""Any method's pictures judged: the notebook `evaluate` run, and its page written."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from markdown_it import MarkdownIt
from papermill.exceptions import PapermillExecutionError

from minddiff_utils.book import KEEP_MEMORY, BookError
from minddiff_utils.book.build import finish_page
from minddiff_utils.book.pages import load_template
from minddiff_utils.book.run import run_notebook
from minddiff_utils.io import InputError, atomic_path, claim_run, write_text


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
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table").render
    cells = finish_page(notebook).cells
    page = load_template(book, "evaluate.html").render(cells=cells, markdown=markdown)
    return write_text(out / "index.html", page)
