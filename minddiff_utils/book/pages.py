"""Pages of the book that are made from a run's files: galleries, costs, links to the glossary."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import nbformat
import pandas as pd

from minddiff_utils.book.gallery import (
    front_html,
    gallery_page,
    has_gallery,
    read_gallery,
    write_strips,
)
from minddiff_utils.book.glossary import link_notebook, link_text, read_terms
from minddiff_utils.book.plan import Plan
from minddiff_utils.evaluation.metrics import main_metrics, read_metrics
from minddiff_utils.evaluation.pictures import DEFAULT_WAY, failure_note
from minddiff_utils.evaluation.tables import (
    FRONT,
    STAGE_2_PAIRS,
    difference_table,
    front_table,
    markdown_table,
)
from minddiff_utils.figures.reconstruction import ways_figure

SHORTEST = 1.0  # seconds of a step that the table of costs shows
UNLINKED = ("index.md", "glossary.md", "references.md", "gallery.md")


def add_pages(plan: Plan, book: Path, measured: Path) -> None:
    """Add what the run's files give to an assembled book.

    Parameters
    ----------
    plan : Plan
    book : Path
        Folder that holds the hand-written pages, the notebooks, `static` and `generated`.
    measured : Path
        Folder of the small files of what was measured once.
    """
    front = ""
    for subject in plan.subjects:
        if has_gallery(plan.run / subject):
            strips = f"_static/gallery/{subject}/"
            write_strips(
                plan.run / subject / "reconstructions.h5", book / "static" / "gallery" / subject
            )
            gallery = read_gallery(plan.run, subject)
            page = gallery_page(gallery, subject, f"../{strips}", "../_static/gallery.js")
            (book / subject / "gallery.md").write_text(page, encoding="utf-8")
            front = front or front_html(gallery, subject, strips)
    raw = f"```{{raw}} html\n{front}\n```\n" if front else ""
    (book / "generated" / "front.md").write_text(raw, encoding="utf-8")
    (book / "generated" / "results.md").write_text(front_results(plan), encoding="utf-8")
    costs = cost_table(plan.run, plan.subjects)
    (book / "generated" / "costs.md").write_text(costs, encoding="utf-8")
    add_measured(book / "generated", measured)
    _link_terms(book)


def add_measured(folder: Path, measured: Path) -> None:
    """Add tables and a figure of what was measured once: stage 2's solvers and the ways tried.

    Parameters
    ----------
    folder : Path
        For `solvers.md`, `ways.md` and `ways.png`.
    measured : Path
        Folder of the small files.
    """
    for name in ("solvers.md", "ways.md"):
        shutil.copy(measured / name, folder)
    summary = pd.read_csv(measured / "ways.csv")
    ways_figure(summary, DEFAULT_WAY).savefig(folder / "ways.png", dpi=150, bbox_inches="tight")


def front_results(plan: Plan) -> str:
    """What came out, as the first page says it: a few rows of the run's `results.csv`.

    Returns
    -------
    str
        Markdown with a heading; "" without the file. Below the table, what stage 2 adds: by this
        book's solver, and by Algorithm 1 as published, where both ran.
    """
    path = plan.run / "results.csv"
    if not path.is_file():
        return ""
    text = f"## What came out\n\n{markdown_table(front_table(pd.read_csv(path)))}"
    text += failure_note({who: plan.run / who for who in plan.subjects}, FRONT, quiet=True)
    values = main_metrics(read_metrics(plan.run, plan.subjects))
    added = difference_table(values, STAGE_2_PAIRS)
    text += f"\n{markdown_table(added)}" if len(added) else ""
    if plan.group:
        more = f"[]({plan.group[0].name}.ipynb)"
        text += f"\nEvery method and control, with intervals and paired tests: {more}.\n"
    return text


def _link_terms(book: Path) -> None:
    terms = read_terms(book / "glossary.md")
    for path in sorted(book.glob("*.md")) + sorted(book.glob("*/*.ipynb")):
        if path.name in UNLINKED:
            continue
        if path.suffix == ".ipynb":
            page = link_notebook(nbformat.read(path, as_version=4), terms)
            nbformat.write(page, path)
        else:
            text, _ = link_text(path.read_text(encoding="utf-8"), terms)
            path.write_text(text, encoding="utf-8")
    for path in sorted(book.glob("*.ipynb")):
        nbformat.write(link_notebook(nbformat.read(path, as_version=4), terms), path)


def step_times(notebook: nbformat.NotebookNode) -> dict[str, float]:
    """Seconds that the cells below each heading of an executed notebook took.

    Parameters
    ----------
    notebook : NotebookNode
        As papermill executed it, which notes how long each cell took.

    Returns
    -------
    dict
        Heading -> seconds, in the order of the notebook; headings of one name are added up.
    """
    heading, seconds = "", {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            found = re.findall(r"^#{1,6} +(.+?)[ \t]*$", cell.source, flags=re.MULTILINE)
            heading = found[-1] if found else heading
        else:
            took = cell.metadata.get("papermill", {}).get("duration") or 0.0
            seconds[heading] = seconds.get(heading, 0.0) + took
    return seconds


def cost_table(run: str | Path, subjects: Sequence[str]) -> str:
    """What each chapter and each of its steps took, as markdown.

    Parameters
    ----------
    run : str or Path
        Folder of the run, with `provenance.json` and executed notebooks in the subjects' folders.
    subjects : sequence of str

    Returns
    -------
    str
        A sentence about the machine and a table with a column a subject; "" where nothing is
        recorded. Steps below a second are left out.
    """
    run = Path(run)
    files = {name: run / name / "provenance.json" for name in subjects}
    records = {n: json.loads(p.read_text(encoding="utf-8")) for n, p in files.items() if p.exists()}
    if not records:
        return ""
    head = ["| chapter and step | " + " | ".join(records) + " |", "|---|" + "---:|" * len(records)]
    totals = [sum(_taken(record).values()) for record in records.values()]
    lines = []
    for chapter in dict.fromkeys(name for record in records.values() for name in _taken(record)):
        taken = [_taken(record).get(chapter) for record in records.values()]
        lines.append(_row(f"**`{chapter}`**", taken, bold=True))
        lines += _step_rows(run, chapter, list(records))
    lines.append(_row("**all chapters**", totals, bold=True))
    return f"{_machines(records)}\n\n" + "\n".join(head + lines) + "\n"


def _taken(record: dict) -> dict[str, float]:
    """Seconds of each notebook of a provenance record, in the order of the chapters."""
    return {name: facts["wall_time_s"] for name, facts in sorted(record["notebooks"].items())}


def _step_rows(run: Path, chapter: str, subjects: Sequence[str]) -> list[str]:
    paths = [run / subject / "notebooks" / f"{chapter}.ipynb" for subject in subjects]
    times = [step_times(nbformat.read(p, as_version=4)) if p.exists() else {} for p in paths]
    rows = []
    for heading in dict.fromkeys(name for steps in times for name in steps):
        taken = [steps.get(heading) for steps in times]
        if max(seconds or 0.0 for seconds in taken) >= SHORTEST:
            rows.append(_row(f"&emsp;{heading or 'before the first heading'}", taken))
    return rows


def _row(name: str, taken: Sequence[float | None], bold: bool = False) -> str:
    mark = "**" if bold else ""
    cells = [f"{mark}{_span(seconds)}{mark}" for seconds in taken]
    return f"| {name.replace('|', '/')} | " + " | ".join(cells) + " |"


def _span(seconds: float | None) -> str:
    """Seconds as people say them: 3 s, 2 min 05 s, 1 h 02 min."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def _machines(records: dict[str, dict]) -> str:
    found = {}
    for name, record in records.items():
        torch = record["packages"].get("torch", "?")
        words = f"{record['machine']}, Python {record['python']}, torch {torch}"
        found.setdefault(words, []).append(name)
    if len(found) == 1:
        return f"The machine: {next(iter(found))}."
    return " ".join(f"{', '.join(names)}: {words}." for words, names in found.items())
