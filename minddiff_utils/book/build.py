"""From executed notebooks and hand-written pages to HTML."""

import os
import re
import shutil
import subprocess
import sys
from html import escape
from pathlib import Path
from typing import Any

import nbformat
from markdown_it import MarkdownIt
from ruamel.yaml import YAML

from minddiff_utils.book import BookError, ask_git, say
from minddiff_utils.book.pages import add_pieces, has_gallery, render
from minddiff_utils.book.plan import Plan
from minddiff_utils.book.record import digest_files
from minddiff_utils.io import write_text

# Pages of every book; they stand last.
REFERENCE = ("choices", "cost", "glossary", "references")
PROMPT = "Parameters of this run that differ from the defaults"  # on the button that unfolds them
IMAGES = ("image/png", "image/svg+xml", "image/jpeg")


def finish_page(notebook: nbformat.NotebookNode, subject: str = "") -> nbformat.NotebookNode:
    """Make an executed notebook a page of the book.

    The parameters of this run are folded away, what stands in a cell with the tag "caption" becomes
    the caption of the figure above it, cells with the tag "outcome" go up to the beginning, figures
    have alternative text, their names carry the subject's (two subjects share each notebook, and a
    name may occur only once in a book), and so does the title.

    Parameters
    ----------
    notebook : NotebookNode
        As executed; it is changed in place and returned.
    subject : str
        "" for a page about all subjects, whose names and title stay as they are.

    Raises
    ------
    BookError
        If a cell that makes a figure of the book has drawn none.
    """
    for cell, below in zip(notebook.cells, notebook.cells[1:], strict=False):
        if "caption" in below.metadata.get("tags", []):
            cell.metadata["mystnb"]["figure"]["caption"] = below.source
    kept = [cell for cell in notebook.cells if "caption" not in cell.metadata.get("tags", [])]
    first, *rest = _without_empty(kept)
    rest.sort(key=lambda cell: "outcome" not in cell.metadata.get("tags", []))
    notebook.cells = [first, *rest]
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "parameters" in tags:
            cell.metadata["tags"] = [*tags, "remove-cell"]
        if "injected-parameters" in tags:
            cell.metadata["tags"] = [*tags, "hide-input"]
            cell.metadata["mystnb"] = {"code_prompt_show": PROMPT}
        settings = cell.metadata.get("mystnb", {})
        if figure := settings.get("figure"):
            name = figure.get("name", "")
            settings.setdefault("image", {}).setdefault("alt", figure.get("caption", name))
            if name and "optional" not in tags and not _shown(cell, *IMAGES):
                raise BookError(
                    f"the cell of {name} has drawn no figure: its last line must be one."
                )
            if subject and name:
                figure["name"] = f"{name}-{subject}"
                for other in notebook.cells:
                    other.source = other.source.replace(f"`{name}`", f"`{name}-{subject}`")
    if subject:
        first.source = re.sub(r"^# .*\S", rf"\g<0> — {subject}", first.source)
    return notebook


def _shown(cell: nbformat.NotebookNode, *kinds: str) -> str:
    """What a cell has left of some kinds, such as "image/png"."""
    found = [output.get("data", {}) for output in cell.get("outputs", [])]
    return "".join(data.get(kind, "") for data in found for kind in kinds)


def _without_empty(cells: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Drop code with the tag "optional" that has said nothing, and the text above it so tagged."""
    kept: list[nbformat.NotebookNode] = []
    said = ""
    for cell in reversed(cells):
        if cell.cell_type == "code":
            said = _shown(cell, "text/markdown", *IMAGES)
        if said.strip() or "optional" not in cell.metadata.get("tags", []):
            kept.insert(0, cell)
    return kept


def assemble(plan: Plan) -> Path:
    """Gather everything that Jupyter Book needs in `<run>/book`.

    Parameters
    ----------
    plan : Plan
        Its notebooks must have been executed. Hand-written pages come from the project's folder
        `book`, settings from its `_config.yml`.

    Returns
    -------
    Path
        The folder, built anew.
    """
    pages, book = plan.root / "book", plan.run / "book"
    config = YAML(typ="safe", pure=True)
    settings = config.load(plan.root / "_config.yml")
    url = find_repository(plan.root, settings)
    shutil.rmtree(book, ignore_errors=True)
    shutil.copytree(pages, book, ignore=shutil.ignore_patterns("results"))
    for subject, sheet in plan.jobs:
        (book / subject).mkdir(exist_ok=True)
        executed = plan.run / subject / "notebooks" / f"{sheet.name}.ipynb"
        page = finish_page(nbformat.read(executed, as_version=4), subject)
        files = {"this notebook": executed.name}
        if (results := plan.run / subject / "results.csv").is_file():
            shutil.copy(results, book / subject)
            files["results.csv"] = results.name
        given = {"url": url, "name": sheet.name, "files": files}
        links = render(pages, "take_away.md", given)
        page.cells.append(nbformat.v4.new_markdown_cell(links, id="take-away"))
        nbformat.write(page, book / subject / executed.name)
    add_pieces(plan, book, url)
    settings["title"] = title = str(plan.values.get("title") or plan.name)
    settings["sphinx"]["config"]["html_theme_options"]["logo"]["text"] = escape(title)
    config.dump(settings, book / "_config.yml")
    given = {"plan": plan, "has_gallery": has_gallery, "reference": REFERENCE}
    (book / "_toc.yml").write_text(render(pages, "toc.yml", given), encoding="utf-8")
    return book


def find_repository(root: Path, settings: dict[str, Any]) -> str:
    """Return where people read the project on the web; "" if it is on this machine alone.

    Parameters
    ----------
    root : Path
        The project's folder.
    settings : dict
        Of `_config.yml`: `url` in `repository`, or else the remote that was cloned from. Both forms
        that git knows are understood, https://host/name.git and git@host:name.git. A name or
        password in it is left out.
    """
    url = (settings.get("repository") or {}).get("url")
    remote = str(url or ask_git(root, "remote", "get-url", "origin"))
    form = r"(?:https://|ssh://git@|git@)(?:[^@/]*@)?([^/:]+)[/:](.+?)(\.git)?/?"
    found = re.fullmatch(form, remote)
    return f"https://{found[1]}/{found[2]}" if found else ""


def build_html(book: Path, html: Path) -> bool:
    """Build the pages with warnings as errors; the last good HTML stays until this one is clean.

    Parameters
    ----------
    book : Path
        What `assemble` made.
    html : Path
        Where the HTML goes.

    Returns
    -------
    bool
        False if nothing had changed, so that nothing was done.

    Raises
    ------
    BookError
        With the warnings of Jupyter Book.
    """
    files = [path for path in sorted(book.rglob("*")) if path.is_file()]
    source = digest_files(book, files)
    stamp, new = html / ".built-from", html.with_name(".html-new")
    built = stamp.is_file() and (html / "index.html").is_file()
    if built and stamp.read_text(encoding="utf-8") == source:
        return False
    say("Building the pages.")
    shutil.rmtree(new, ignore_errors=True)
    _jupyter_book(book, new)
    (new / "_build" / "html" / stamp.name).write_text(source, encoding="utf-8")
    shutil.rmtree(html, ignore_errors=True)
    os.replace(new / "_build" / "html", html)
    shutil.rmtree(new, ignore_errors=True)
    return True


def _jupyter_book(book: Path, output: Path) -> None:
    start = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", start, "build", str(book)]
    command += ["--path-output", str(output), "-W", "-n", "--keep-going", "--all"]
    answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if answer.returncode:
        lines = answer.stdout.splitlines()
        faults = [line for line in lines if re.search(r"WARNING|ERROR|Error:|Exception", line)]
        shown = "\n".join(dict.fromkeys(faults or lines[-10:]))
        raise BookError(f"Jupyter Book found faults:\n{shown}")


def write_page(executed: Path, book: Path, out: Path) -> Path:
    """Write an executed notebook as one HTML file: prose, tables and figures, without code."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table").render
    cells = finish_page(nbformat.read(executed, as_version=4)).cells
    page = render(book, "evaluate.html", {"cells": cells, "markdown": markdown})
    return write_text(out / "index.html", page)
