"""Links from the words of the book to its glossary: each term where a page uses it first."""

import re
from pathlib import Path

import nbformat

from minddiff_utils.io import InputError

# What is no prose, where a word must stay as it is.
PROTECTED = (
    r"^[ \t]*(?P<fence>`{3,}|~{3,}).*?^[ \t]*(?P=fence)[`~]*[ \t]*$",  # code and directives
    r"\$\$.*?\$\$(?:[ \t]*\([\w:.-]+\))?",  # formulas on lines of their own
    r"^#{1,6} [^\n]*$",  # headings
    r"^[ \t]*\|[^\n]*$",  # rows of tables
    r"^[ \t]*:{3,}[^\n]*$|^[ \t]*:[\w-]+:[^\n]*$",  # fences of colons, options
    r"^\([\w:.-]+\)=$",  # labels
    r"(?:\{[\w:-]+\})?(?P<tick>`+)(?:(?!`).)+?(?P=tick)",  # code and roles within a line
    r"\$[^$\n]+(?:\n[^$\n]+)?\$",
    r"!?\[[^\]]*\]\([^)]*\)",
    r"<[^>\n]+>",
)


def read_terms(page: str | Path) -> list[str]:
    """The terms that a page defines in its `{glossary}` block, in their order.

    A line at the margin of the block is a term; indented lines are its definition.

    Raises
    ------
    InputError
        If the page has no such block.
    """
    text = Path(page).read_text(encoding="utf-8")
    block = re.search(r"^(`{3,})\{glossary\}\n(.*?)^\1", text, flags=re.MULTILINE | re.DOTALL)
    if not block:
        raise InputError(f"{page} has no block ```{{glossary}} with terms.")
    lines = block[2].splitlines()
    return [line.strip() for line in lines if re.match(r"[^\s:]", line)]


def link_text(text: str, terms: list[str]) -> tuple[str, list[str]]:
    """Link the first use of each term in a text of markdown.

    A plural with `s` is a use; so is any case of the letters, unless the term has capitals itself.
    Headings, code, formulas, tables and links stay as they are.

    Parameters
    ----------
    text : str
    terms : list of str

    Returns
    -------
    text : str
        With ``{term}`` roles.
    left : list of str
        The terms that did not occur.
    """
    spans = _protected(text)
    found: dict[str, re.Match] = {}
    for term in sorted(terms, key=len, reverse=True):  # "noise ceiling" before "noise"
        for match in _pattern(term).finditer(text):
            if not any(match.start() < end and begin < match.end() for begin, end in spans):
                found[term] = match
                spans.append(match.span())
                break
    for term, match in sorted(found.items(), key=lambda item: -item[1].start()):
        target = "" if match[0] == term else f" <{term}>"
        role = f"{{term}}`{match[0]}{target}`"
        text = text[: match.start()] + role + text[match.end() :]
    return text, [term for term in terms if term not in found]


def _pattern(term: str) -> re.Pattern:
    words = r"\s".join(map(re.escape, term.split()))
    flags = re.IGNORECASE if term.islower() else re.NOFLAG
    return re.compile(rf"(?<![\w{{`-]){words}s?(?![\w`-])", flags)


def _protected(text: str) -> list[tuple[int, int]]:
    flags = re.MULTILINE | re.DOTALL
    return [m.span() for pattern in PROTECTED for m in re.finditer(pattern, text, flags)]


def link_notebook(notebook: nbformat.NotebookNode, terms: list[str]) -> nbformat.NotebookNode:
    """Link the first use of each term in a notebook's markdown; it is changed in place."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and terms:
            cell.source, terms = link_text(cell.source, terms)
    return notebook
