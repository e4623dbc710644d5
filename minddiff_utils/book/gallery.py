"""Every test picture with its reconstructions and numbers: what the gallery and first page show.

The pictures of one stimulus stand side by side in one small JPEG, a *strip*: the picture that was
seen, then one a method. Pages show a part of it for each. The numbers are those of `metrics.csv`.
"""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from PIL import Image

from minddiff_utils.datasets.reading import unreadable
from minddiff_utils.evaluation.methods import FULL, METHODS, full_method, in_order
from minddiff_utils.evaluation.metrics import METRICS, read_metrics
from minddiff_utils.io import InputError, atomic_path

# What people read where the book's tables say "no stage 2" and "both stages, this book's solver".
LABELS = METHODS | {"stage1": "stage 1", "stage2": "stage 2", "algorithm_1": "Algorithm 1"}
STAGES = ("stage1", *FULL)
SEEN = "seen"
JUDGE = "clip_judge"
SIDE, MANY, SMALL_SIDE = 128, 200, 80  # px a picture at most; smaller if there are many
QUALITY = 92
N_FRONT = 8


def has_gallery(folder: str | Path) -> bool:
    """Whether a subject's folder holds the files that a gallery is made from."""
    return all((Path(folder) / name).is_file() for name in ("reconstructions.h5", "metrics.csv"))


def write_strips(reconstructions: str | Path, folder: str | Path) -> list[str]:
    """Write one strip a test picture, `0000.jpg` and so on, in the order of the file.

    Parameters
    ----------
    reconstructions : str or Path
        `reconstructions.h5` of a subject.
    folder : str or Path
        Where the strips go.

    Returns
    -------
    list of str
        The methods, in the order in which their pictures follow the one that was seen.

    Raises
    ------
    InputError
        If the file is damaged or holds no reconstruction.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with h5py.File(reconstructions) as file:
            methods = _methods(file)
            n = len(file["truth"])
            side = SIDE if n <= MANY else SMALL_SIDE
            for row in range(n):
                pictures = [_small(file[name][row], side) for name in ("truth", *methods)]
                with atomic_path(folder / f"{row:04d}.jpg") as temporary:
                    strip = Image.fromarray(np.concatenate(pictures, axis=1))
                    strip.save(temporary, quality=QUALITY, subsampling=0)
    except (OSError, KeyError) as error:
        damage = f"cannot be read ({error}). Delete it and run 03_stage1 and 04_stage2 again."
        raise unreadable(reconstructions, error, damage) from None
    return methods


def _methods(file: h5py.File) -> list[str]:
    """Datasets of the shape of `truth`, in the order of the book's tables."""
    shape = file["truth"].shape
    found = [name for name in file if name != "truth" and file[name].shape == shape]
    if not found:
        raise InputError(
            f"{file.filename} holds no reconstructions of the shape of `truth`, {shape}. Run "
            "notebooks 03_stage1 and 04_stage2 first."
        )
    return [m for m in STAGES if m in found] + [
        m for m in in_order(found, METHODS) if m not in STAGES
    ]


def _small(picture: np.ndarray, side: int) -> np.ndarray:
    """A picture uint8 (h, w, 3), no side longer than `side` pixels."""
    image = Image.fromarray(picture)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(image)


def read_gallery(run: str | Path, subject: str) -> dict[str, Any]:
    """What the gallery of a subject shows, apart from the pictures themselves.

    Parameters
    ----------
    run : str or Path
        Folder of the run.
    subject : str

    Returns
    -------
    dict
        `methods` and `metrics`, name -> label; `pictures`, a list of `id` and `values`, one list
        of numbers a method in the order of `metrics` (None where there is none); in the order of
        `reconstructions.h5`. It can be written as JSON.

    Raises
    ------
    InputError
        If `metrics.csv` has no number for a picture of `reconstructions.h5`.
    """
    frame = read_metrics(run, [subject])
    path = Path(run) / subject / "reconstructions.h5"
    with h5py.File(path) as file:
        ids = file["stimulus_id"][:].tolist()
        shown = _methods(file)
    absent = set(ids) - set(frame["stimulus_id"])
    if absent:
        raise InputError(
            f"{path.with_name('metrics.csv')} has no numbers for stimulus {min(absent)}, which is "
            f"in {path.name}. Run notebook 05_metrics again."
        )
    metrics = in_order(frame["metric"], METRICS)
    methods = [*shown, *[m for m in in_order(frame["method"], METHODS) if m not in shown]]
    known = frame.groupby(["stimulus_id", "method", "metric"])["value"].mean().to_dict()
    return {
        "methods": {name: LABELS.get(name, name) for name in methods},
        "shown": shown,
        "metrics": {name: METRICS.get(name, name) for name in metrics},
        "pictures": [_numbers(number, methods, metrics, known) for number in ids],
    }


def _numbers(number: int, methods: Sequence[str], metrics: Sequence[str], known: Mapping) -> dict:
    values = {
        method: [_json_number(known.get((number, method, metric))) for metric in metrics]
        for method in methods
    }
    return {"id": number, "values": values}


def _json_number(value: float | None) -> float | None:
    """Four digits; None for what is missing, since JSON has no NaN."""
    return None if value is None or pd.isna(value) else round(float(value), 4)


def gallery_page(gallery: Mapping[str, Any], subject: str, strips: str, script: str) -> str:
    """The markdown of a subject's gallery.

    Parameters
    ----------
    gallery : mapping
        From `read_gallery`.
    subject : str
    strips : str
        Address of the strips' folder as seen from the page, with a slash at the end.
    script : str
        Address of `gallery.js`.
    """
    n = len(gallery["pictures"])
    text = json.dumps({**gallery, "strips": strips}, ensure_ascii=False, separators=(",", ":"))
    data = text.replace("<", "\\u003c")  # nothing in the data may begin or end an element
    return f"""# Gallery: every test picture — {subject}

All {n} test pictures of this subject, with what each method made of them: none is left out. Sort
them by any number to see what goes well and what goes wrong; show a control to see what would be
painted without the brain. The numbers below the pictures are those of the measure that is chosen.

```{{raw}} html
<div class="gallery" id="gallery"><noscript>Sorting needs JavaScript. The same numbers are in
<code>{html.escape(subject)}/metrics.csv</code>.</noscript></div>
<script type="application/json" id="gallery-data">{data}</script>
<script src="{html.escape(script)}"></script>
```
"""


def spread(n: int, k: int = N_FRONT) -> tuple[range, int]:
    """Which of n things to show, chosen by place alone: every ⌊n/k⌋-th until there are k.

    Returns
    -------
    places : range
    step : int
    """
    step = max(1, n // k)
    return range(0, n, step)[:k], step


def front_html(gallery: Mapping[str, Any], subject: str, strips: str) -> str:
    """Rows of pictures for the first page, and the rule by which they were chosen.

    Parameters
    ----------
    gallery : mapping
        From `read_gallery`.
    subject : str
    strips : str
        Address of the strips' folder as seen from the page, with a slash at the end.

    Returns
    -------
    str
        HTML. Without reconstructions of both stages, what there is.
    """
    pictures = gallery["pictures"]
    by_id = np.argsort([picture["id"] for picture in pictures], kind="stable").tolist()
    places, step = spread(len(pictures))
    chosen = [by_id[place] for place in places]
    named = [(row, f"no. {pictures[row]['id']}") for row in chosen]
    rule = (
        f"{_which(len(pictures), len(places), step)} of {subject}, in the order of their numbers."
    )
    parts = [_tiles(gallery, named, strips, rule)]
    extremes = _extremes(gallery)
    if extremes:
        last = LABELS[full_method(gallery["shown"]) or "stage1"]
        rule = f"The best, the median and the worst of all {len(pictures)}, by the judge's CLIP "
        parts.append(_tiles(gallery, extremes, strips, f"{rule}cosine of {last}."))
    return '<div class="front-pictures">\n' + "\n".join(parts) + "\n</div>"


def _which(n: int, shown: int, step: int) -> str:
    """Say which of n pictures `spread` has chosen."""
    if step > 1:
        more = ", from the first on until there are eight," if shown * step < n else ""
        return f"Every {_ordinal(step)} test picture{more}"
    return "Every test picture" if shown == n else f"The first {shown} of the {n} test pictures"


def _ordinal(number: int) -> str:
    """Such as "eighth" or "22nd"."""
    words = "zeroth first second third fourth fifth sixth seventh eighth ninth tenth".split()
    if number < len(words):
        return words[number]
    teen = number // 10 % 10 == 1
    return f"{number}{'th' if teen else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


def _extremes(gallery: Mapping[str, Any]) -> list[tuple[int, str]]:
    """Row and name of the best, median and worst picture by the judge; none without a judge."""
    method = next((m for m in (*FULL, "stage1") if m in gallery["shown"]), None)
    if method is None or JUDGE not in gallery["metrics"]:
        return []
    column = list(gallery["metrics"]).index(JUDGE)
    scores = [picture["values"][method][column] for picture in gallery["pictures"]]
    ranked = sorted((s, row) for row, s in enumerate(scores) if s is not None)
    if len(ranked) < 3:
        return []
    places = {"best": -1, "median": len(ranked) // 2, "worst": 0}
    return [(ranked[place][1], f"{name}, {ranked[place][0]:.2f}") for name, place in places.items()]


def _tiles(
    gallery: Mapping[str, Any], chosen: Sequence[tuple[int, str]], strips: str, rule: str
) -> str:
    """A figure with a column a picture: what was seen, and below it both stages."""
    stages = [name for name in ("stage1", "algorithm_1", "stage2") if name in gallery["shown"]]
    rows = [(0, SEEN)] + [(gallery["shown"].index(m) + 1, LABELS[m]) for m in stages]
    columns = []
    for row, name in chosen:
        number = gallery["pictures"][row]["id"]
        images = [
            _image(f"{strips}{row:04d}.jpg", part, len(gallery["shown"]) + 1, label, number)
            for part, label in rows
        ]
        columns.append("".join(images) + f'<span class="front-name">{name}</span>')
    # Four columns and their labels make a band: a narrow screen shows one below the other.
    labels = "".join(f'<span class="front-label">{label}</span>' for _, label in rows)
    labels = f'<div class="front-labels" aria-hidden="true">{labels}<span></span></div>'
    bands = [labels + "".join(columns[start : start + 4]) for start in range(0, len(columns), 4)]
    text = "".join(f'<div class="front-band">{band}</div>' for band in bands)
    style = f"--rows:{len(rows) + 1}"
    return f'<figure><div style="{style}">{text}</div><figcaption>{rule}</figcaption></figure>'


def _image(source: str, part: int, n_parts: int, label: str, number: int) -> str:
    """One picture of a strip. CSS shows the part; the alternative text says whose it is."""
    place = 100 * part / (n_parts - 1)
    words = f"Picture {number}: {'as seen' if label == SEEN else label}"
    return (
        f'<img class="strip" src="{html.escape(source)}" alt="{words}" '
        f'style="object-position:{place:.4g}% 0">'
    )
