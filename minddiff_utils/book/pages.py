"""Pieces of pages that are made from a run's files: galleries, the first page, costs.

The pictures of one stimulus stand side by side in one small JPEG, a *strip*: the picture that was
seen, then one a method. Pages show a part of it for each. The numbers are those of `metrics.csv`.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import nbformat
import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, Template
from PIL import Image

from minddiff_utils.book import span
from minddiff_utils.book.plan import Plan
from minddiff_utils.evaluation.methods import FULL, METHODS, full_method, in_order
from minddiff_utils.evaluation.metrics import METRICS, main_metrics, read_metrics
from minddiff_utils.evaluation.tables import (
    FRONT,
    STAGE_2_PAIRS,
    difference_table,
    failure_note,
    front_table,
    markdown_table,
)

# What people read where the book's tables say "no stage 2" and "both stages, this book's solver".
LABELS = METHODS | {"stage1": "stage 1", "stage2": "stage 2", "algorithm_1": "Algorithm 1"}
ORDER = dict.fromkeys(("stage1", *FULL, *METHODS))
JUDGE = "clip_judge"
SIDE, MANY, SMALL_SIDE = 128, 200, 80  # px a picture at most; smaller if there are many
N_FRONT = 8
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
    card = (plan.place("models") or plan.run) / "MODEL_CARD.md"
    for path in (card, plan.run / "captions.md", plan.run / "ceilings.md"):
        pieces[path.stem] = path.read_text(encoding="utf-8") if path.is_file() else ""
    for name, text in pieces.items():
        (folder / f"{name}.md").write_text(text.strip() + "\n", encoding="utf-8")
    for path in [*plan.run.glob("world.png"), *results.glob("*.md")]:
        shutil.copy(path, folder)
    for profile in plan.root.glob("notebooks/profiles/*/config.yaml"):
        shutil.copy(profile, folder / f"{profile.parent.name}.yaml")


def has_gallery(folder: str | Path) -> bool:
    """Whether a subject's folder holds the files that a gallery is made from."""
    return all((Path(folder) / name).is_file() for name in ("reconstructions.h5", "metrics.csv"))


def add_gallery(run: Path, subject: str, book: Path) -> str:
    """Add a subject's gallery to an assembled book: its page and its strips.

    Parameters
    ----------
    run : Path
        Folder of the run.
    subject : str
    book : Path
        Folder of the book, with `static` and `templates`.

    Returns
    -------
    str
        From `front_page`: pictures of this subject for the first page.
    """
    place = f"gallery/{subject}"
    shown = write_strips(run / subject / "reconstructions.h5", book / "static" / place)
    gallery = {**read_gallery(run, subject, shown), "strips": f"../_static/{place}/"}
    page = gallery_page(gallery, subject, book)
    (book / subject / "gallery.md").write_text(page, encoding="utf-8")
    return front_page({**gallery, "strips": f"_static/{place}/"}, subject, book)


def write_strips(reconstructions: Path, folder: Path) -> list[str]:
    """Write one strip a test picture, `0000.jpg` and so on, in the order of the file.

    Parameters
    ----------
    reconstructions : Path
        `reconstructions.h5` of a subject. Each dataset of the shape of `truth` is a method.
    folder : Path
        Where the strips go.

    Returns
    -------
    list of str
        The methods, in the order in which their pictures follow the one that was seen.
    """
    folder.mkdir(parents=True)
    with h5py.File(reconstructions) as file:
        shape = file["truth"].shape
        found = [name for name in file if name != "truth" and file[name].shape == shape]
        methods = in_order(found, ORDER)
        side = SIDE if shape[0] <= MANY else SMALL_SIDE
        for row in range(shape[0]):
            pictures = [Image.fromarray(file[name][row]) for name in ("truth", *methods)]
            for picture in pictures:
                picture.thumbnail((side, side), Image.Resampling.LANCZOS)
            strip = Image.fromarray(np.concatenate([np.asarray(one) for one in pictures], axis=1))
            strip.save(folder / f"{row:04d}.jpg", quality=92, subsampling=0)
    return methods


def read_gallery(run: Path, subject: str, shown: Sequence[str]) -> dict[str, Any]:
    """What the gallery of a subject shows, apart from the pictures themselves.

    Parameters
    ----------
    run : Path
        Folder of the run.
    subject : str
    shown : sequence of str
        The methods of the strips, from `write_strips`.

    Returns
    -------
    dict
        `methods` and `metrics`, name -> label; `shown`; `pictures`, a list of `id` and `values`:
        for each method a list of numbers, four digits each, in the order of `metrics` (None where
        there is none). Pictures are in the order of `reconstructions.h5`. It can be written as
        JSON.
    """
    frame = read_metrics(run, [subject])
    with h5py.File(run / subject / "reconstructions.h5") as file:
        ids = file["stimulus_id"][:].tolist()
    methods = [*shown, *in_order(set(frame["method"]) - set(shown), METHODS)]
    metrics = in_order(frame["metric"], METRICS)
    wide = frame.pivot(index="stimulus_id", columns=["method", "metric"], values="value")
    wide = wide.reindex(index=ids, columns=pd.MultiIndex.from_product([methods, metrics]))
    values = {
        name: json.loads(wide[name].to_json(orient="values", double_precision=4))
        for name in methods
    }
    return {
        "methods": {name: LABELS.get(name, name) for name in methods},
        "shown": list(shown),
        "metrics": {name: METRICS.get(name, name) for name in metrics},
        "pictures": [
            {"id": number, "values": {name: values[name][row] for name in methods}}
            for row, number in enumerate(ids)
        ],
    }


def _template(book: Path, name: str) -> Template:
    """A template of the book; its `tojson` escapes what could end an element of HTML."""
    templates = Environment(loader=FileSystemLoader(book / "templates"), autoescape=True)
    # Keys stay in their order: that of the tables.
    templates.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return templates.get_template(name)


def gallery_page(gallery: Mapping[str, Any], subject: str, book: Path) -> str:
    """The markdown of a subject's gallery.

    Parameters
    ----------
    gallery : mapping
        From `read_gallery`, and `strips`: the address of the strips' folder as seen from the page,
        with a slash at the end.
    subject : str
    book : Path
        Folder that holds `templates`.
    """
    return _template(book, "gallery.md").render(gallery=gallery, subject=subject)


def front_page(gallery: Mapping[str, Any], subject: str, book: Path) -> str:
    """Rows of pictures for the first page, and the rule by which they were chosen.

    Parameters are those of `gallery_page`.

    Returns
    -------
    str
        Markdown: pictures chosen by their place alone, every ⌊n/8⌋-th from the first on until
        there are eight; below them the best, the median and the worst by the judge, where it was
        asked.
    """
    pictures, shown = gallery["pictures"], gallery["shown"]
    step = max(1, len(pictures) // N_FRONT)
    by_id = sorted(range(len(pictures)), key=lambda row: pictures[row]["id"])
    chosen = [(row, f"no. {pictures[row]['id']}") for row in by_id[::step][:N_FRONT]]
    full = full_method(shown) or "stage1"
    stages = [name for name in ("stage1", "algorithm_1", "stage2") if name in shown]
    return _template(book, "front.md").render(
        gallery=gallery,
        subject=subject,
        step=step,
        figures=list(filter(None, [chosen, _extremes(gallery, full)])),
        judged=LABELS[full],
        rows=[("seen", 0), *((LABELS[name], shown.index(name) + 1) for name in stages)],
    )


def _extremes(gallery: Mapping[str, Any], method: str) -> list[tuple[int, str]]:
    """Row and name of the best, median and worst picture by the judge; none without a judge."""
    if JUDGE not in gallery["metrics"]:
        return []
    column = list(gallery["metrics"]).index(JUDGE)
    scores = [picture["values"][method][column] for picture in gallery["pictures"]]
    ranked = sorted((score, row) for row, score in enumerate(scores) if score is not None)
    places = {"best": -1, "median": len(ranked) // 2, "worst": 0} if ranked else {}
    return [(ranked[place][1], f"{name}, {ranked[place][0]:.2f}") for name, place in places.items()]


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
    paths = {subject: run / subject / "provenance.json" for subject in subjects}
    known = {who: json.loads(path.read_bytes()) for who, path in paths.items() if path.is_file()}
    if not known:
        return ""
    machines = dict[str, list[str]]()
    for who, record in known.items():
        torch = record["packages"].get("torch", "?")
        machine = f"{record['machine']}, Python {record['python']}, torch {torch}"
        machines.setdefault(machine, []).append(who)
    said = [f"{machine} ({', '.join(names)})" for machine, names in machines.items()]
    table = pd.DataFrame({who: _seconds(known[who], run / who / "notebooks") for who in known})
    table.loc[("**all chapters**", ""), :] = table.xs("", level=1).sum()
    text = table[table.max(axis=1) >= SHORTEST].map(span, na_action="ignore").fillna("–")
    whole = text.index.get_level_values(1) == ""
    text[whole] = "**" + text[whole] + "**"
    text.index = [f"&emsp;{step}" if step else chapter for chapter, step in text.index]
    aligned = ("left", *["right"] * len(known))
    text = text.rename_axis("chapter and step")
    rows = text.to_markdown(disable_numparse=True, colalign=aligned)
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
