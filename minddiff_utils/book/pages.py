"""Pieces of pages that are made from a run's files: the first page's pictures and table, costs."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import nbformat
import pandas as pd

from minddiff_utils.book.gallery import add_gallery, has_gallery
from minddiff_utils.book.plan import Plan
from minddiff_utils.evaluation.metrics import main_metrics, read_metrics
from minddiff_utils.evaluation.pictures import failure_note
from minddiff_utils.evaluation.tables import (
    FRONT,
    STAGE_2_PAIRS,
    difference_table,
    front_table,
    markdown_table,
)
from minddiff_utils.settings import resolve

SHORTEST = 1.0  # seconds of a step that the table of costs shows
HEADING = re.compile(r"^#{1,6} +(.+?)[ \t]*$", re.MULTILINE)


def add_pieces(plan: Plan, book: Path, results: Path) -> None:
    """Add galleries, and all that pages include from `generated`; what a run lacks is empty.

    Parameters
    ----------
    plan : Plan
    book : Path
        Folder that holds the hand-written pages, the notebooks, `static` and `templates`.
    results : Path
        Folder of the small files of what was measured once.
    """
    folder = book / "generated"
    folder.mkdir()
    subjects = [name for name in plan.subjects if has_gallery(plan.run / name)]
    fronts = [add_gallery(plan.run, name, book) for name in subjects]
    pieces = {
        "about": str(plan.values.get("about") or ""),
        "front": fronts[0] if fronts else "",
        "results": front_results(plan),
        "costs": cost_table(plan.run, plan.subjects),
    }
    card = resolve(plan.values.get("models", ""), plan.root) / "MODEL_CARD.md"
    for path in (card, plan.run / "captions.md", plan.run / "ceilings.md"):
        pieces[path.stem] = path.read_text(encoding="utf-8") if path.is_file() else ""
    for name, text in pieces.items():
        (folder / f"{name}.md").write_text(text.strip() + "\n", encoding="utf-8")
    if (plan.run / "world.png").is_file():
        shutil.copy(plan.run / "world.png", folder)
    for profile in plan.root.glob("notebooks/profiles/*/config.yaml"):
        shutil.copy(profile, folder / f"{profile.parent.name}.yaml")
    for path in results.glob("*.md"):
        shutil.copy(path, folder)


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
    heading, seconds = "before the first heading", dict[str, float]()
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = (HEADING.findall(cell.source) or [heading])[-1]
        else:
            took = cell.metadata.get("papermill", {}).get("duration") or 0.0
            seconds[heading] = seconds.get(heading, 0.0) + took
    return seconds


def cost_table(run: Path, subjects: Sequence[str]) -> str:
    """What each chapter and each of its steps took, as markdown.

    Parameters
    ----------
    run : Path
        Folder of the run, with `provenance.json` and executed notebooks in the subjects' folders.
    subjects : sequence of str

    Returns
    -------
    str
        A sentence about the machine and a table with a column a subject; "" where nothing is
        recorded. Steps below a second are left out.
    """
    columns, machines = dict[str, dict](), dict[str, list[str]]()
    for subject in subjects:
        path = run / subject / "provenance.json"
        if path.is_file():
            record = json.loads(path.read_text(encoding="utf-8"))
            machine = f"{record['machine']}, Python {record['python']}, torch "
            machine += record["packages"].get("torch", "?")
            machines.setdefault(machine, []).append(subject)
            columns[subject] = _seconds(record, run / subject / "notebooks")
    if not columns:
        return ""
    table = pd.DataFrame(columns)
    table.loc[("**all chapters**", ""), :] = table.xs("", level=1).sum()
    text = table[table.max(axis=1) >= SHORTEST].map(_span)
    whole = text.index.get_level_values(1) == ""
    text[whole] = "**" + text[whole] + "**"
    text.index = [f"&emsp;{step}" if step else chapter for chapter, step in text.index]
    said = [f"{machine} ({', '.join(names)})" for machine, names in machines.items()]
    rows = text.rename_axis("chapter and step").to_markdown(
        disable_numparse=True, colalign=("left", *["right"] * len(columns))
    )
    return f"The machine: {'; '.join(said)}.\n\n{rows}\n"


def _seconds(record: dict, notebooks: Path) -> dict[tuple[str, str], float]:
    """Seconds of each chapter of a subject, named ("**`chapter`**", ""), and of its steps."""
    seconds = {}
    for name, facts in sorted(record["notebooks"].items()):
        chapter = f"**`{name}`**"
        seconds[chapter, ""] = facts["wall_time_s"]
        steps = step_times(nbformat.read(notebooks / f"{name}.ipynb", as_version=4))
        seconds |= {(chapter, step.replace("|", "/")): took for step, took in steps.items()}
    return seconds


def _span(seconds: float) -> str:
    """Seconds as people say them: 3 s, 2 min 05 s, 1 h 02 min."""
    if pd.isna(seconds):
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
