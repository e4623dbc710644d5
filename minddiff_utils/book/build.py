"""From executed notebooks and hand-written pages to HTML."""

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path

import nbformat
import yaml

from minddiff_utils.book.gallery import has_gallery
from minddiff_utils.book.pages import add_pages
from minddiff_utils.book.plan import Plan, Sheet
from minddiff_utils.io import BuildError, InputError, atomic_path
from minddiff_utils.settings import resolve

# Builders whose version shapes the HTML: a new one builds the book again.
BUILDERS = (
    "jupyter-book",
    "sphinx",
    "myst-nb",
    "sphinx-book-theme",
    "sphinxcontrib-bibtex",
    "sphinx-mathjax-offline",
)
# Pages that tell how to run the book on other data; they stand after the chapters.
GUIDES = ("run_nsd", "run_cluster", "own_data", "data_layouts")
# Pages of every book; they stand last.
REFERENCE = ("cost", "glossary", "references")


def finish_page(notebook: nbformat.NotebookNode, subject: str = "") -> nbformat.NotebookNode:
    """Make an executed notebook a page of the book.

    The parameters of this run are folded away, figures have alternative text, labels carry the
    subject's name (two subjects share each notebook, and a label may occur only once in a book),
    and so does the title.

    Parameters
    ----------
    notebook : NotebookNode
        As executed; it is changed in place and returned.
    subject : str
        "" for a page about all subjects, whose labels and title stay as they are.

    Raises
    ------
    InputError
        If the notebook stopped with an error.
    """
    if notebook.metadata.get("papermill", {}).get("exception"):
        raise InputError("the notebook stopped with an error, so it makes no page")
    labels = _labels(notebook)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "parameters" in tags:
            cell.metadata["tags"] = [*tags, "remove-cell"]
        if "injected-parameters" in tags:
            cell.metadata["tags"] = [*tags, "hide-input"]
            cell.metadata.setdefault("mystnb", {})["code_prompt_show"] = PROMPT
        settings = cell.metadata.get("mystnb", {})
        figure = settings.get("figure", {})
        if figure and not settings.get("image", {}).get("alt"):
            settings.setdefault("image", {})["alt"] = figure.get("caption", figure.get("name", ""))
        if figure.get("name") and subject:
            figure["name"] = f"{figure['name']}-{subject}"
        if cell.cell_type == "markdown" and subject:
            cell.source = _relabel(cell.source, labels, subject)
    if subject:
        _add_to_title(notebook, subject)
    return notebook


PROMPT = "Parameters of this run that differ from the defaults"  # on the button that unfolds them

# How a label is defined in a markdown cell: (name)=, :label: name, :name: name, $$ (name)
DEFINITIONS = (
    r"^\(([\w:.-]+)\)=",
    r"^:(?:label|name):[ \t]*([\w:.-]+)",
    r"^\$\$[ \t]*\(([\w:.-]+)\)",
)


def _labels(notebook: nbformat.NotebookNode) -> set[str]:
    found = set()
    for cell in notebook.cells:
        name = cell.metadata.get("mystnb", {}).get("figure", {}).get("name")
        found |= {name} if name else set()
        if cell.cell_type == "markdown":
            for pattern in DEFINITIONS:
                found |= set(re.findall(pattern, cell.source, flags=re.MULTILINE))
    return found


def _relabel(source: str, labels: set[str], subject: str) -> str:
    """Add the subject to labels where markdown defines or cites one, never to prose."""
    for label in labels:
        name = re.escape(label)
        for before, after in (
            (r"^\(", r"\)="),
            (r"^:(?:label|name):[ \t]*", r"[ \t]*$"),
            (r"^\$\$[ \t]*\(", r"\)"),
            (r"\}`", r"`"),
            (r"\}`[^`<]*<", r">`"),
            (r"\]\(#?", r"\)"),
        ):
            pattern = f"({before}){name}(?={after})"
            source = re.sub(pattern, rf"\g<1>{label}-{subject}", source, flags=re.MULTILINE)
    return source


def _add_to_title(notebook: nbformat.NotebookNode, subject: str) -> None:
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and re.search(r"^# ", cell.source, flags=re.MULTILINE):
            cell.source = re.sub(
                r"^(# .*?)[ \t]*$", rf"\1 — {subject}", cell.source, count=1, flags=re.MULTILINE
            )
            return


def table_of_contents(plan: Plan) -> dict:
    """The contents of `_toc.yml`: hand-written pages, a part a subject, the comparison."""
    idea = [page for page in plan.pages if page not in GUIDES]
    guides = [page for page in plan.pages if page in GUIDES]
    parts = [{"caption": "The idea", "chapters": [{"file": page} for page in idea]}]
    for subject in plan.subjects:
        # The caption names the subject, so the side bar leaves it out of the chapters' titles.
        files = [
            {"file": f"{subject}/{sheet.name}", "title": _short_title(sheet)}
            for sheet in plan.chapters
        ]
        if has_gallery(plan.run / subject):
            files.append({"file": f"{subject}/gallery", "title": "Gallery"})
        parts.append({"caption": f"Subject {subject}", "chapters": files})
    if plan.group:
        files = [{"file": sheet.name, "title": _short_title(sheet)} for sheet in plan.group]
        caption = "Subjects compared" if len(plan.subjects) > 1 else "In short"
        parts.append({"caption": caption, "chapters": files})
    if guides:
        chapters = [{"file": page} for page in guides]
        parts.append({"caption": "Run it on other data", "chapters": chapters})
    parts.append({"caption": "Reference", "chapters": [{"file": page} for page in REFERENCE]})
    return {"format": "jb-book", "root": "index", "parts": parts}


def _short_title(sheet: Sheet) -> str:
    """The title of a notebook up to a colon; its file's name if it has none."""
    for cell in nbformat.read(sheet.path, as_version=4).cells:
        found = re.search(r"^# +(.+?)[ \t]*$", cell.source, flags=re.MULTILINE)
        if cell.cell_type == "markdown" and found:
            return found[1].split(":")[0]
    return sheet.name


def demote_headings(text: str, levels: int = 1) -> str:
    """Push markdown headings down, so that a file can be included below a heading."""
    lines, fenced = [], False
    for line in text.splitlines():
        fenced ^= line.lstrip().startswith(("```", "~~~"))
        is_heading = re.match(r"#{1,6} ", line) and not fenced
        lines.append("#" * levels + line if is_heading else line)
    return "\n".join(lines) + "\n"


def assemble(plan: Plan, pages: Path, config: Path) -> Path:
    """Gather everything that Jupyter Book needs in `<run>/book`.

    Parameters
    ----------
    plan : Plan
        Its notebooks must have been executed.
    pages : Path
        Folder of the hand-written pages.
    config : Path
        The `_config.yml`.

    Returns
    -------
    Path
        The folder, built anew.

    Raises
    ------
    InputError
        If a page is missing, or an executed notebook is missing or holds an error.
    """
    book = plan.run / "book"
    shutil.rmtree(book, ignore_errors=True)
    book.mkdir(parents=True)
    for name in ("index", *REFERENCE, *plan.pages):
        if not (pages / f"{name}.md").is_file():
            raise InputError(f"{plan.name}: there is no page {pages / name}.md.")
        shutil.copy(pages / f"{name}.md", book)
    shutil.copy(pages / "references.bib", book)
    shutil.copytree(pages / "static", book / "static")
    _copy_mathjax(book / "static" / "mathjax")
    for subject in ("", *plan.subjects):
        for sheet in plan.chapters if subject else plan.group:
            _place_notebook(plan.run / subject / "notebooks", book / subject, sheet.name, subject)
    _write_generated(plan, book / "generated")
    add_pages(plan, book, pages / "results")
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    settings["title"] = plan.title
    # The theme's page of the search lacks the `|e` that every other page escapes the title with.
    (book / "templates").mkdir()
    (book / "templates" / "search.html").write_text(SEARCH, encoding="utf-8")
    settings["sphinx"]["config"]["templates_path"] = ["templates"]
    settings["sphinx"]["config"]["html_theme_options"]["logo"]["text"] = escape(plan.title)
    _write_yaml(book / "_config.yml", settings)
    _write_yaml(book / "_toc.yml", table_of_contents(plan))
    return book


def _copy_mathjax(folder: Path) -> None:
    """Put MathJax with its fonts into the book, so that formulas need no network."""
    for file in importlib.metadata.files("sphinx-mathjax-offline") or ():
        *_, above, name = file.parts
        if name == "tex-chtml-full.js" or above == "woff-v2":
            target = folder / str(file).split("/mathjax/")[1]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file.locate(), target)


def _place_notebook(source: Path, target: Path, name: str, subject: str) -> None:
    path = source / f"{name}.ipynb"
    if not path.is_file():
        raise InputError(f"{path} is missing: the notebook has not been executed.")
    try:
        notebook = finish_page(nbformat.read(path, as_version=4), subject)
    except InputError as error:
        raise InputError(f"{path}: {error}.") from None
    target.mkdir(exist_ok=True)
    nbformat.write(notebook, target / f"{name}.ipynb")


def _write_generated(plan: Plan, folder: Path) -> None:
    """Pieces that the hand-written pages include: what is missing becomes an empty piece."""
    folder.mkdir()
    pieces = {"about": str(plan.values.get("about") or ""), "model_card": ""}
    for name, before in TEXTS.items():
        path = plan.run / f"{name}.md"
        pieces[name] = before + path.read_text(encoding="utf-8") if path.is_file() else ""
    for image, caption in PICTURES.items():
        if (plan.run / f"{image}.png").is_file():
            shutil.copy(plan.run / f"{image}.png", folder)
            pieces[image] = _figure(image, caption)
        else:
            pieces[image] = ""
    for profile in plan.root.glob("notebooks/profiles/*/config.yaml"):
        shutil.copy(profile, folder / f"{profile.parent.name}.yaml")
    card = resolve(plan.values.get("models", ""), plan.root) / "MODEL_CARD.md"
    if card.is_file():
        pieces["model_card"] = demote_headings(card.read_text(encoding="utf-8"), 1)
    for name, text in pieces.items():
        (folder / f"{name}.md").write_text(text.strip() + "\n", encoding="utf-8")


SEARCH = """{% extends "!search.html" %}
{% block htmltitle %}<title>{{ _("Search") }} - {{ docstitle|e }}</title>{% endblock %}
"""
# Texts that a run may leave, and what goes above them.
TEXTS = {"captions": "Five people, so to speak, describe the second picture:\n\n", "ceilings": ""}
# Pictures that a run may leave: (caption, alternative text)
PICTURES = {
    "overview": (
        "The whole idea. Top: what the subject saw. Below: the picture of stage 1 and that of "
        "stage 2, both made from brain activity alone.",
        "Rows of pictures: those that the subject saw, their reconstructions after stage 1 and "
        "after stage 2.",
    ),
    "world": (
        "Pictures of the phantom's world, each drawn from an integer alone.",
        "A grid of small drawings: things such as trees, boats and cats in landscapes, and a few "
        "black-and-white contrast patterns.",
    ),
}


def _figure(name: str, texts: tuple[str, str]) -> str:
    # Paths inside an included file count from the page that includes it.
    caption, alternative = texts
    return (
        f"```{{figure}} generated/{name}.png\n:name: fig-{name}\n:alt: {alternative}\n"
        f":width: 100%\n\n{caption}\n```"
    )


def _write_yaml(path: Path, content: Mapping) -> None:
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True), "utf-8")


def build_html(book: Path, html: Path, say: Callable[[str], None] = print) -> bool:
    """Build the pages with warnings as errors; the last good HTML stays until this one is clean.

    Parameters
    ----------
    book : Path
        What `assemble` made.
    html : Path
        Where the HTML goes.
    say : callable
        Takes lines about the progress.

    Returns
    -------
    bool
        False if nothing had changed, so that nothing was done.

    Raises
    ------
    BuildError
        With the warnings of Jupyter Book.
    """
    digest = _folder_digest(book)
    stamp, new, old = html / ".built-from", html.with_name(".html-new"), html.with_name(".html-old")
    if not html.exists() and old.exists():  # stopped between the two renames below
        os.replace(old, html)
    built = stamp.is_file() and (html / "index.html").is_file()
    if built and stamp.read_text(encoding="utf-8") == digest:
        return False
    say("Building the pages.")
    shutil.rmtree(new, ignore_errors=True)
    _jupyter_book(book, new)
    pages = new / "_build" / "html"
    (pages / stamp.name).write_text(digest, encoding="utf-8")
    shutil.rmtree(old, ignore_errors=True)
    if html.exists():
        os.replace(html, old)
    os.replace(pages, html)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(new, ignore_errors=True)
    return True


def _jupyter_book(book: Path, output: Path) -> None:
    start = "import sys; from jupyter_book.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", start, "build", str(book)]
    command += ["--path-output", str(output), "-W", "-n", "--keep-going", "--all"]
    answer = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    log = output.with_name("jupyter-book.log")
    with atomic_path(log) as temporary:
        temporary.write_text(answer.stdout + answer.stderr, encoding="utf-8")
    if answer.returncode:
        lines = (answer.stdout + answer.stderr).splitlines()
        faults = [line for line in lines if re.search(r"WARNING|ERROR|Error:|Exception", line)]
        shown = "\n".join(dict.fromkeys(faults or lines[-10:]))
        raise BuildError(f"Jupyter Book found faults:\n{shown}\nAll it said: {log}")


def _folder_digest(folder: Path) -> str:
    total = hashlib.sha256()
    versions = {name: importlib.metadata.version(name) for name in BUILDERS}
    total.update(json.dumps(versions).encode())
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            total.update(str(path.relative_to(folder)).encode() + b"\0")
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()
