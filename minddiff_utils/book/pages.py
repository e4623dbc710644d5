"""Pieces of pages that are made from a run's files: galleries, the first page, costs.

Their pictures are strips (`figures.strips`), their numbers those of `metrics.csv` and
`controls.csv`.
"""

import base64
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader

from minddiff_utils.book import span
from minddiff_utils.book.plan import Plan
from minddiff_utils.evaluation import FULL, METHODS, findings, full_method, in_order, tables
from minddiff_utils.evaluation.metrics import METRICS, main_metrics, read_metrics
from minddiff_utils.figures.strips import side_by_side, write_strips
from minddiff_utils.io import method_file, write_text

# What people read where the book's tables say "no stage 2" and "both stages, this book's solver".
LABELS = METHODS | {"stage1": "stage 1", "stage2": "stage 2", "algorithm_1": "Algorithm 1"}
ORDER = dict.fromkeys(("stage1", *FULL, *METHODS))
JUDGE = "clip_judge"
LARGE = 640  # px of the one on the first page
N_FRONT = 8


def add_pieces(plan: Plan, book: Path, url: str) -> None:
    """Add galleries, and all that pages include from `generated`; what a run lacks is empty.

    Parameters
    ----------
    plan : Plan
    book : Path
        Folder that holds the hand-written pages, the notebooks, `static` and `templates`.
    url : str
        Of the repository; "" where it is not known.
    """
    folder = book / "generated"
    folder.mkdir()
    subjects = [name for name in plan.subjects if has_gallery(plan.run / name)]
    fronts = [add_gallery(plan.run, name, book) for name in subjects]
    pieces = {
        "about": str(plan.values.get("about") or ""),
        "front": fronts[0] if fronts else "",
        "clone": render(book, "clone.md", {"url": url}),
        "costs": cost_table(plan.run, plan.subjects, book),
    } | front_results(plan, book)
    card = (plan.place("models") or plan.run) / "MODEL_CARD.md"
    pieces[card.stem] = card.read_text(encoding="utf-8") if card.is_file() else ""
    for name, text in pieces.items():
        (folder / f"{name}.md").write_text(text.strip() + "\n", encoding="utf-8")
    made = [*plan.run.glob("*.png"), *plan.run.glob("captions.md")]
    for path in [*made, *plan.root.glob("book/results/*.md")]:
        shutil.copy(path, folder)
    for profile in plan.root.glob("notebooks/profiles/*/config.yaml"):
        shutil.copy(profile, folder / f"{profile.parent.name}.yaml")


def has_gallery(folder: str | Path) -> bool:
    """Whether a subject's folder holds the files that a gallery is made from."""
    return method_file(folder, "truth").is_file() and (Path(folder) / "metrics.csv").is_file()


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
    folder, values = book / "static" / "gallery" / subject, read_metrics(run, [subject])
    methods = in_order(values["method"], ORDER)
    shown = [name for name in methods if method_file(run / subject, name).is_file()]
    ids = write_strips(run / subject, shown, folder)
    gallery = gallery_of(values, ids, shown)
    text = render(book, "gallery.md", {"gallery": gallery, "subject": subject})
    (book / subject / "gallery.md").write_text(text, encoding="utf-8")
    write_strips(run / subject, shown, folder / "large", [typical(gallery)], LARGE)
    return front_page(gallery, subject, book)


def gallery_of(
    frame: pd.DataFrame, ids: Sequence[int | str], shown: Sequence[str]
) -> dict[str, Any]:
    """What a gallery shows, apart from the pictures themselves.

    Parameters
    ----------
    frame : DataFrame
        Tidy: `method, stimulus_id, metric, value`.
    ids : sequence of int or str
        Of the pictures, in the order that they are shown in.
    shown : sequence of str
        The methods whose pictures are shown; the others have numbers alone.

    Returns
    -------
    dict
        `methods` and `metrics`, name -> label; `shown`; `pictures`, a list of `id` and `values`:
        for each method a list of numbers, four digits each, in the order of `metrics` (None where
        there is none). It can be written as JSON.
    """
    methods = [*shown, *in_order(set(frame["method"]) - set(shown), METHODS)]
    metrics = in_order(frame["metric"], METRICS)
    wide = frame.pivot(index="stimulus_id", columns=["method", "metric"], values="value")
    wide = wide.reindex(index=ids, columns=pd.MultiIndex.from_product([methods, metrics]))
    known = wide.round(4).astype(object).where(wide.notna(), None).to_numpy()
    rows = known.reshape(len(ids), len(methods), len(metrics)).tolist()
    numbers = [dict(zip(methods, row, strict=True)) for row in rows]
    return {
        "methods": {name: LABELS.get(name, name) for name in methods},
        "shown": list(shown),
        "metrics": {name: METRICS.get(name, name) for name in metrics},
        "pictures": [{"id": n, "values": row} for n, row in zip(ids, numbers, strict=True)],
    }


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
        strip = side_by_side(part[row] for part in stacks.values())
        strip.save(buffer := io.BytesIO(), "JPEG", quality=85)
        data = base64.b64encode(buffer.getvalue()).decode()
        picture["strip"] = f"data:image/jpeg;base64,{data}"
    return write_text(path, render(book, "evaluate.html", {"gallery": gallery}))


def render(book: Path, name: str, given: Mapping[str, Any]) -> str:
    """Fill in a template of the book, which may include files of `static`; `tojson` is safe."""
    folders = [book / "templates", book / "static"]
    templates = Environment(loader=FileSystemLoader(folders), autoescape=True)
    # Keys stay in their order: that of the tables.
    templates.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return templates.get_template(name).render(given)


def front_page(gallery: Mapping[str, Any], subject: str, book: Path) -> str:
    """Rows of pictures for the first page, and the rule by which they were chosen.

    Parameters
    ----------
    gallery : mapping
        From `gallery_of`.
    subject : str
    book : Path
        Folder that holds `templates`.

    Returns
    -------
    str
        Markdown: pictures chosen by their place alone, every ⌊n/8⌋-th from the first on until
        there are eight; below them the best, the median and the worst by the judge.
    """
    pictures, shown = gallery["pictures"], gallery["shown"]
    step = max(1, len(pictures) // N_FRONT)
    by_id = sorted(range(len(pictures)), key=lambda row: pictures[row]["id"])
    chosen = [(row, f"no. {pictures[row]['id']}") for row in by_id[::step][:N_FRONT]]
    figures = [chosen, extremes(gallery)]
    stages = [name for name in ("stage1", *reversed(FULL)) if name in shown]
    rows = [("seen", 0), *((LABELS[name], shown.index(name) + 1) for name in stages)]
    given = {"gallery": gallery, "subject": subject, "figures": figures, "rows": rows}
    return render(book, "front.md", given | {"step": step, "typical": typical(gallery)})


def ranked(gallery: Mapping[str, Any], gain: bool = False) -> list[tuple[float, int]]:
    """Score by the judge and row of every picture, ascending; or what stage 2 adds to the score."""
    method, column = full_method(gallery["shown"]) or "stage1", [*gallery["metrics"]].index(JUDGE)
    scores = [
        (picture["values"][method][column], picture["values"]["stage1"][column] if gain else 0.0)
        for picture in gallery["pictures"]
    ]
    known = [(pair, row) for row, pair in enumerate(scores) if None not in pair]
    return sorted((after - before, row) for (after, before), row in known)


def typical(gallery: Mapping[str, Any]) -> int:
    """Row of the picture to whose score stage 2 adds the median."""
    gains = ranked(gallery, gain=True)
    return gains[len(gains) // 2][1]


def extremes(gallery: Mapping[str, Any]) -> list[tuple[int, str]]:
    """Row and name of the best, median and worst picture of both stages by the judge."""
    scores = ranked(gallery)
    places = {"best": -1, "median": len(scores) // 2, "worst": 0}
    return [(scores[place][1], f"{name}, {scores[place][0]:.2f}") for name, place in places.items()]


def front_results(plan: Plan, book: Path) -> dict[str, str]:
    """What came out, as the first page says it.

    Returns
    -------
    dict of str
        Markdown, "" without the run's `results.csv`. `headline`: what stage 2 adds, a sentence a
        subject. `results`, with a heading: a few rows of that file, and in sentences what stage 2
        adds, by this book's solver and by Algorithm 1 as published, where both ran.
    """
    path = plan.run / "results.csv"
    if not path.is_file():
        return {"headline": "", "results": ""}
    values = main_metrics(read_metrics(plan.run, plan.subjects))
    found = tables.differences(values, (*tables.STAGE_2_PAIRS, ("stage2", "retrieval")))
    folders = {who: plan.run / who for who in plan.subjects}
    table = tables.markdown_table(tables.front_table(pd.read_csv(path)))
    table += tables.failure_note(folders, tables.FRONT, quiet=True)
    given = {"table": table, "said": findings.sentences(found), "sheets": plan.sheets}
    return {"headline": findings.headline(found), "results": render(book, "results.md", given)}


def cost_table(run: Path, subjects: Sequence[str], book: Path) -> str:
    """What each chapter took, and on which machine, as markdown.

    Parameters
    ----------
    run : Path
        Folder of the run, with `provenance.json` in the subjects' folders.
    subjects : sequence of str
    book : Path
        Folder that holds `templates`.
    """
    texts = {name: (run / name / "provenance.json").read_bytes() for name in subjects}
    records = {name: json.loads(text) for name, text in texts.items()}
    return render(book, "costs.md", {"records": records, "span": span})
