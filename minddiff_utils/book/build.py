"""From executed notebooks and hand-written pages to HTML."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from html import escape
from pathlib import Path

import nbformat
import yaml

from minddiff_utils.book import BookError, say
from minddiff_utils.book.address import chapter_links, clone_lines, find_repository
from minddiff_utils.book.pages import HEADING, add_pieces, has_gallery
from minddiff_utils.book.plan import Plan, Sheet
from minddiff_utils.book.record import file_digest
from minddiff_utils.io import InputError

# Builders whose version shapes the HTML: a new one builds the book again.
BUILDERS = ("jupyter-book", "sphinx", "myst-nb", "sphinx-book-theme")
# Pages that tell how to run the book on other data; they stand after the chapters.
GUIDES = ("run_nsd", "run_laion", "run_cluster", "own_data", "data_layouts", "evaluate")
# Pages of every book; they stand last.
REFERENCE = ("choices", "cost", "glossary", "references")
PROMPT = "Parameters of this run that differ from the defaults"  # on the button that unfolds them


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
            caption = figure.get("caption", figure.get("name", ""))
            settings.setdefault("image", {}).setdefault("alt", caption)
    if subject:
        _add_subject(notebook, subject)
    return notebook


def _without_empty(cells: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Drop code with the tag "optional" that has said nothing, and the text above it so tagged."""
    kept: list[nbformat.NotebookNode] = []
    said = ""
    for cell in reversed(cells):
        if cell.cell_type == "code":
            shown = [output.get("data", {}) for output in cell.get("outputs", [])]
            kinds = ("text/markdown", "image/png", "image/svg+xml")
            said = "".join(data.get(kind, "") for data in shown for kind in kinds)
        if said.strip() or "optional" not in cell.metadata.get("tags", []):
            kept.insert(0, cell)
    return kept


def _add_subject(notebook: nbformat.NotebookNode, subject: str) -> None:
    """Add the subject to the title, and to the names of figures, where they are cited as well."""
    for cell in notebook.cells:
        figure = cell.metadata.get("mystnb", {}).get("figure", {})
        if name := figure.get("name"):
            figure["name"] = f"{name}-{subject}"
            for other in notebook.cells:
                other.source = other.source.replace(f"`{name}`", f"`{name}-{subject}`")
    first = notebook.cells[0]
    first.source = HEADING.sub(rf"\g<0> — {subject}", first.source, count=1)


def table_of_contents(plan: Plan) -> dict:
    """The contents of `_toc.yml`: hand-written pages, a part a subject, the comparison."""
    pages = [{"file": page} for page in plan.values["pages"]]
    parts = {"The idea": [page for page in pages if page["file"] not in GUIDES]}
    for subject in plan.subjects:
        parts[f"Subject {subject}"] = [_entry(sheet, f"{subject}/") for sheet in plan.chapters]
        if has_gallery(plan.run / subject):
            parts[f"Subject {subject}"].append({"file": f"{subject}/gallery", "title": "Gallery"})
    caption = "Subjects compared" if len(plan.subjects) > 1 else "In short"
    parts[caption] = [_entry(sheet) for sheet in plan.group]
    parts["Run it on other data"] = [page for page in pages if page["file"] in GUIDES]
    parts["Reference"] = [{"file": page} for page in REFERENCE]
    filled = [{"caption": name, "chapters": files} for name, files in parts.items() if files]
    return {"format": "jb-book", "root": "index", "parts": filled}


def _entry(sheet: Sheet, folder: str = "") -> dict[str, str]:
    """A notebook in the side bar, its title up to a colon: the subject's name stands above."""
    found = HEADING.search(nbformat.read(sheet.path, as_version=4).cells[0].source)
    title = found[1].split(":")[0] if found else sheet.name
    return {"file": f"{folder}{sheet.name}", "title": title}


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

    Raises
    ------
    InputError
        If a page is missing.
    """
    pages, book = plan.root / "book", plan.run / "book"
    settings = yaml.safe_load((plan.root / "_config.yml").read_text(encoding="utf-8"))
    url = find_repository(plan.root, settings)
    shutil.rmtree(book, ignore_errors=True)
    for name in ("index", *REFERENCE, *plan.values["pages"]):
        if not (pages / f"{name}.md").is_file():
            raise InputError(f"{plan.name}: there is no page {pages / name}.md.")
    shutil.copytree(pages, book, ignore=shutil.ignore_patterns("results"))
    _copy_mathjax(book / "static" / "mathjax")
    for subject, sheet in plan.jobs:
        (book / subject).mkdir(exist_ok=True)
        executed = plan.run / subject / "notebooks" / f"{sheet.name}.ipynb"
        page = finish_page(nbformat.read(executed, as_version=4), subject)
        files = {"this notebook": executed.name}
        if (results := plan.run / subject / "results.csv").is_file():
            shutil.copy(results, book / subject)
            files["results.csv"] = results.name
        links = chapter_links(url, sheet.name, files)
        page.cells.append(nbformat.v4.new_markdown_cell(links, id="take-away"))
        nbformat.write(page, book / subject / executed.name)
    add_pieces(plan, book, pages / "results")
    (book / "generated" / "clone.md").write_text(clone_lines(url), encoding="utf-8")
    settings["title"] = title = str(plan.values.get("title") or plan.name)
    settings["sphinx"]["config"]["html_theme_options"]["logo"]["text"] = escape(title)
    for name, content in {"config": settings, "toc": table_of_contents(plan)}.items():
        (book / f"_{name}.yml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return book


def _copy_mathjax(folder: Path) -> None:
    """Put MathJax with its fonts into the book, so that formulas need no network."""
    package = importlib.metadata.distribution("sphinx-mathjax-offline")
    source = Path(str(package.locate_file("sphinx-mathjax-offline/static/mathjax")))
    fonts = "output/chtml/fonts/woff-v2"
    shutil.copytree(source / fonts, folder / fonts)
    shutil.copy(source / "tex-chtml-full.js", folder)


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
    versions = [f"{name} {importlib.metadata.version(name)}" for name in BUILDERS]
    digests = [f"{path.relative_to(book)} {file_digest(path)}" for path in files]
    source = "\n".join([*versions, *digests])
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
