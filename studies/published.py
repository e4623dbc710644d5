"""Where does Algorithm 1 as published lose to stage 1? One setting changed at a time.

On held-out training pictures, so that what is found says nothing about the test pictures.
"""

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from minddiff_utils.evaluation.metrics import evaluate
from minddiff_utils.io import atomic_path
from minddiff_utils.reconstruction.results import read_trace
from minddiff_utils.reconstruction.stage2 import reconstruct
from minddiff_utils.settings import Settings
from studies.compare import prepare
from studies.held_out import METRICS, MODELS, TREE, HeldOut, open_held_out
from studies.stage2 import solver_settings
from studies.stored import course_table

STEPS = 9  # of the whole schedule; the published 50 would take six times as long
# What is changed, in the words of `compare`.
CHANGES: dict[str, dict] = {
    "as published": {},
    "best quarter of the values": {"keep_structure": 0.25},
    "z alone": {"optimise": "z"},
    "c alone": {"optimise": "c"},
    "components for values": {"structure_target": "components"},
    "true values": {"true": "structure"},
}


def main(
    subject: Annotated[str, typer.Option(help="Whose brain.")] = "subj01",
    data: Annotated[Path, typer.Option(help="A recording in NSD's layout.")] = TREE,
    pictures: Annotated[int, typer.Option(min=2, help="Held-out training pictures.")] = 32,
    iterations: Annotated[int, typer.Option(min=1)] = 300,
    models: Annotated[str, typer.Option(help="Folder or name.")] = str(MODELS),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    work: Annotated[Path, typer.Option(help="For features.")] = Path("runs/bench/published"),
    out: Annotated[Path, typer.Option(help="Folder of the result.")] = Path("book/results"),
) -> None:
    """Change one setting of Algorithm 1 at a time, on held-out training pictures of a subject.

    Each change takes its time (300 iterations, 32 pictures: half an hour on a processor);
    those that `published_<subject>.csv` holds are not run again.
    """
    folder = work / subject
    held = open_held_out(data, subject, pictures, models, device, folder)
    published = {"rescale_c": "none", **asdict(solver_settings(iterations, STEPS)["algorithm_1"])}
    shown = sorted({0, iterations // 10, iterations // 3, iterations})
    path = out / f"published_{subject}.csv"
    found = pd.read_csv(path) if path.exists() else pd.DataFrame({"change": []})
    for name in [name for name in CHANGES if name not in set(found.change)]:
        with tempfile.TemporaryDirectory() as scratch:
            decoded, settings = prepare(held, {**published, **CHANGES[name]}, Path(scratch))
        course = follow_course(held, decoded, settings, shown, folder / "course.h5")
        course.insert(0, "change", name)
        found = pd.concat([found, course.round({"value": 5})], ignore_index=True)
        with atomic_path(path) as temporary:
            found.to_csv(temporary, index=False)
        means = course.groupby(["iteration", "metric"]).value.mean().unstack().round(3)
        print(f"{name}\n{means.to_string()}", file=sys.stderr, flush=True)
    (out / "published.md").write_text(course_table(out), encoding="utf-8")
    print(f"wrote {path}")


def follow_course(
    held: HeldOut, decoded: Mapping, settings: Settings, shown: list[int], path: Path
) -> pd.DataFrame:
    """Run Algorithm 1 and score the pictures of some of its iterations.

    Parameters
    ----------
    held : HeldOut
    decoded : mapping of str to array
        As for `reconstruct`.
    settings : Settings
    shown : list of int
        Iterations; 0 is the picture of stage 1.
    path : Path
        For the pictures of all iterations; a run that was stopped goes on from it.

    Returns
    -------
    DataFrame
        Tidy: `iteration, stimulus_id, metric, value`; the metric "loss" is that of the settings.
    """
    ids, parts = decoded["stimulus_id"], []
    reconstruct(held.generator, decoded, settings, path, batch=16, n_kept=len(ids))
    losses, iterates, _ = read_trace(path)
    for iteration in shown:
        found = evaluate(held.truth, {"made": iterates[:, iteration]}, ids, held.embed)
        loss = losses[:, iteration].sum(1)
        lost = pd.DataFrame({"stimulus_id": ids, "metric": "loss", "value": loss})
        part = pd.concat([found[found.metric.isin(METRICS)], lost])
        parts.append(part.assign(iteration=iteration))
    return pd.concat(parts)[["iteration", "stimulus_id", "metric", "value"]]
