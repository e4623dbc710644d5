"""What Sphinx does more for this book: figures numbered by chapter, terms explained in place.

Formulas need no network: MathJax with its fonts is copied into the HTML.
"""

import importlib.metadata
import re
import shutil
from pathlib import Path
from typing import Any


def setup(app: Any) -> None:
    """Be asked by Sphinx, which calls this by its name."""
    app.connect("env-get-updated", number_figures, priority=900)  # when Sphinx has numbered them
    app.connect("doctree-resolved", explain_terms)
    app.connect("build-finished", copy_mathjax)


def number_figures(_: Any, env: Any) -> list[str]:
    """Number the figures of chapter `04_stage2` as 4.1, 4.2, …, for each subject anew."""
    for page, numbers in env.toc_fignumbers.items():
        if chapter := re.search(r"(?:^|/)0*(\d+)_\w+$", page):
            names = numbers.get("figure", {})
            numbers["figure"] = {name: (int(chapter[1]), n + 1) for n, name in enumerate(names)}
    return []


def explain_terms(app: Any, page: Any, _: str) -> None:
    """Give each link to a term of the glossary what stands there as its title."""
    links = [link for link in _found(page, "reference") if "#term-" in link.get("refuri", "")]
    entries = _found(app.env.get_doctree("glossary"), "definition_list_item") if links else []
    said: dict[str, str] = {}
    for entry in entries:
        text = entry[-1].astext().replace("\n", " ")
        said |= {name: text for term in _found(entry, "term") for name in term["ids"]}
    for link in links:
        link["reftitle"] = said[link["refuri"].rsplit("#", 1)[1]]


def copy_mathjax(app: Any, error: Exception | None) -> None:
    """Put the one script of MathJax that the pages load, and its fonts, beside them."""
    package = importlib.metadata.distribution("sphinx-mathjax-offline")
    source = Path(str(package.locate_file("sphinx-mathjax-offline/static/mathjax")))
    folder, fonts = Path(app.outdir) / "_static" / "mathjax", "output/chtml/fonts/woff-v2"
    if not error:
        shutil.copytree(source / fonts, folder / fonts, dirs_exist_ok=True)
        shutil.copy(source / "tex-chtml-full.js", folder)


def _found(part: Any, kind: str) -> list[Any]:
    return list(part.findall(lambda node: node.tagname == kind))
