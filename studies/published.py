"""Where does Algorithm 1 as published lose to stage 1? One setting changed at a time.

On held-out training pictures, so that what is found says nothing about the test pictures.
"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from minddiff_utils.decoding.decode import decode_subject, read_decoded
from minddiff_utils.decoding.decoders import Method
from minddiff_utils.evaluation.baselines import true_features
from minddiff_utils.evaluation.metrics import evaluate
from minddiff_utils.io import atomic_path
from minddiff_utils.models.clip import to_pictures
from minddiff_utils.models.stable_diffusion import Generator
from minddiff_utils.reconstruction import stage_inputs
from minddiff_utils.reconstruction.stage2 import stage2
from minddiff_utils.settings import Settings
from studies.held_out import METRICS, MODELS, TREE, HeldOut, open_held_out
from studies.stage2 import solver_settings
from studies.stored import course_table

STEPS = 9  # of the whole schedule; the published 50 would take six times as long
# What is changed: the settings of stage 2, and which target it is given.
CHANGES: dict[str, tuple[dict, str]] = {
    "as published": ({}, "decoded"),
    "best quarter of the values": ({}, "quarter"),
    "z alone": ({"optimise": "z"}, "decoded"),
    "c alone": ({"optimise": "c"}, "decoded"),
    "components for values": ({"structure_target": "components"}, "decoded"),
    "true values": ({}, "true"),
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
    targets = decoded_targets(held, folder)
    published = solver_settings(iterations, STEPS)["algorithm_1"]
    shown = sorted({0, iterations // 10, iterations // 3, iterations})
    path = out / f"published_{subject}.csv"
    found = pd.read_csv(path) if path.exists() else pd.DataFrame({"change": []})
    for name in [name for name in CHANGES if name not in set(found.change)]:
        changes, target = CHANGES[name]
        settings = replace(published, **changes)
        given = (targets[target], held.truth, held.embed, settings, shown)
        course = follow_course(held.generator, *given)
        course.insert(0, "change", name)
        found = pd.concat([found, course.round({"value": 5})], ignore_index=True)
        with atomic_path(path) as temporary:
            found.to_csv(temporary, index=False)
        means = course.groupby(["iteration", "metric"]).value.mean().unstack().round(3)
        print(f"{name}\n{means.to_string()}", file=sys.stderr, flush=True)
    (out / "published.md").write_text(course_table(out), encoding="utf-8")
    print(f"wrote {path}")


def decoded_targets(held: HeldOut, folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Decode the held-out pictures: all values, the best quarter; and true values of structure."""
    person, features = held.subject, held.features
    plain = Method(rescale_c="none")
    decoded = read_decoded(decode_subject(person, features, folder / "decoded.h5", plain))
    plain = Method(rescale_c="none", keep_structure=0.25)
    quarter = decode_subject(person, features, folder / "quarter.h5", plain)
    true = {**true_features(decoded, features), "z": decoded["z"], "c": decoded["c"]}
    return {"decoded": decoded, "quarter": read_decoded(quarter), "true": true}


def follow_course(
    generator: Generator,
    decoded: Mapping[str, np.ndarray],
    truth: np.ndarray,
    embed: Mapping[str, object],
    settings: Settings,
    shown: list[int],
    batch: int = 16,
) -> pd.DataFrame:
    """Run Algorithm 1 and score the pictures of some of its iterations.

    Parameters
    ----------
    generator : Generator
    decoded : mapping of str to array
        As for `reconstruct`.
    truth : uint8 array, shape (n, h, w, 3)
    embed : mapping of metric name to function
        As `metrics.evaluate` takes them.
    settings : Settings
    shown : list of int
        Iterations; 0 is the picture of stage 1.
    batch : int

    Returns
    -------
    DataFrame
        Tidy: `iteration, stimulus_id, metric, value`; the metric "loss" is that of the settings.
    """
    parts = []
    for start in range(0, len(truth), batch):
        rows = slice(start, start + batch)
        ids = decoded["stimulus_id"][rows]
        inputs = stage_inputs(generator, decoded, rows, settings)
        result = stage2(generator, inputs, settings)
        for iteration in shown:
            made = {"made": to_pictures(result.iterates[iteration])}
            found = evaluate(truth[rows], made, ids, embed)
            loss = result.losses[:, iteration].sum(1).numpy()
            lost = pd.DataFrame({"stimulus_id": ids, "metric": "loss", "value": loss})
            part = pd.concat([found[found.metric.isin(METRICS)].drop(columns="method"), lost])
            parts.append(part.assign(iteration=iteration))
    return pd.concat(parts)[["iteration", "stimulus_id", "metric", "value"]]
