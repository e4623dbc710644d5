"""Every way of stage 2 that was tried, on held-out training pictures: quality and passes."""

import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import pandas as pd
import typer

from minddiff_utils.io import InputError, atomic_path
from studies.stage2 import METRICS, MODELS, count_unet

if TYPE_CHECKING:
    from minddiff_utils.models.stable_diffusion import Generator
    from studies.ways import Way


def compare_ways(
    generator: "Generator",
    decoded: Mapping[str, np.ndarray],
    truth: np.ndarray,
    embed: Mapping[str, object],
    ways: Mapping[str, tuple["Way", dict]],
    path: Path,
    batch: int = 8,
) -> pd.DataFrame:
    """Run every way on the same pictures.

    Parameters
    ----------
    generator : Generator
    decoded : mapping of str to array
        Of held-out training pictures; as for `reconstruct`.
    truth : uint8 array, shape (n, h, w, 3)
    embed : mapping of metric name to function
        As `metrics.evaluate` takes them.
    ways : mapping of name to way and changes of the settings
    path : Path
        CSV, to which each way is added when it is done; ways that it holds are not run again.
    batch : int

    Returns
    -------
    DataFrame
        A row a way, picture and metric: `way, equivalents, seconds, stimulus_id, metric, value`;
        UNet forward-equivalents and seconds of the processor are a picture's.
    """
    from minddiff_utils.evaluation.metrics import evaluate

    done = pd.read_csv(path) if path.exists() else pd.DataFrame({"way": []})
    order = {name: number for number, name in enumerate(ways)}
    for name in [name for name in ways if name not in set(done.way)]:
        started = time.process_time()
        with count_unet(generator.unet) as count:
            pictures = _paint(generator, decoded, *ways[name], batch)
        taken = (time.process_time() - started) / len(truth)
        found = evaluate(truth, {"made": pictures}, decoded["stimulus_id"], embed)
        found = found[found.metric.isin(METRICS)][["stimulus_id", "metric", "value"]]
        found.insert(0, "seconds", taken)
        found.insert(0, "equivalents", count.equivalents / len(truth))
        found.insert(0, "way", name)
        done = pd.concat([done, found.round({"value": 5, "seconds": 3})], ignore_index=True)
        done = done.sort_values("way", key=lambda names: names.map(order), kind="stable")
        with atomic_path(path) as temporary:
            done.to_csv(temporary, index=False)
        print(_line(name, found), file=sys.stderr, flush=True)
    return done[done.way.isin(ways)]


def _paint(generator, decoded, way: "Way", changes: dict, batch: int) -> np.ndarray:
    import torch

    from minddiff_utils.models.stable_diffusion import to_pictures
    from minddiff_utils.reconstruction.inputs import stage_inputs
    from minddiff_utils.settings import Settings

    settings, made = replace(Settings(), **changes), []
    for start in range(0, len(decoded["stimulus_id"]), batch):
        rows = slice(start, start + batch)
        made.append(way(generator, stage_inputs(generator, decoded, rows, settings), settings))
    return to_pictures(torch.cat([pictures.cpu() for pictures in made]))


def _line(name: str, found: pd.DataFrame) -> str:
    means = found.groupby("metric").value.mean()
    numbers = ", ".join(f"{metric} {means[metric]:.3f}" for metric in METRICS)
    return f"{name}: {found.equivalents.iloc[0]:.0f} passes, {numbers}"


def main(
    subject: Annotated[str, typer.Option(help="Whose brain.")] = "subj01",
    data: Annotated[Path, typer.Option(help="Folder of the recording.")] = Path(
        "runs/phantom/tree"
    ),
    pictures: Annotated[int, typer.Option(min=2, help="Held-out training pictures.")] = 48,
    models: Annotated[str, typer.Option(help="Folder or name.")] = str(MODELS),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    only: Annotated[str, typer.Option(help="Ways, with ; between; all by default.")] = "",
    work: Annotated[Path, typer.Option(help="For features.")] = Path("runs/bench/variants"),
    out: Annotated[Path, typer.Option(help="Folder of the result.")] = Path("book/results"),
) -> None:
    """Compare every way of stage 2 that was tried, on held-out training pictures of a subject."""
    from minddiff_utils.datasets import load_subject
    from minddiff_utils.decoding.decode import decode_subject, read_decoded
    from minddiff_utils.decoding.features import write_features
    from minddiff_utils.models.hub import clip_name
    from minddiff_utils.models.stable_diffusion import load_clip, load_generator
    from studies.stored import write_summary
    from studies.tuning import tuning_subject
    from studies.ways import WAYS

    chosen = [name.strip() for name in only.split(";") if name.strip()] or list(WAYS)
    if unknown := set(chosen) - set(WAYS):
        raise InputError(f"--only {sorted(unknown)[0]}: expected some of {'; '.join(WAYS)}.")
    folder = work / subject
    person = tuning_subject(load_subject("nsd", data, subject, cache=folder), pictures)
    generator = load_generator(models, device, "float32")
    features = write_features(folder / "features.h5", person, generator)
    decoded = read_decoded(decode_subject(person, features, folder / "decoded.h5"))
    truth = generator.resize(person.stimuli.pictures(decoded["stimulus_id"]))
    judge = load_clip(clip_name(models, "judge"), device, "float32")
    embed = {"clip_judge": judge.embed, "clip_guide": generator.guide.embed}
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"variants_{subject}.csv"
    ways = {name: WAYS[name] for name in chosen}
    compare_ways(generator, decoded, truth, embed, ways, path)
    print(f"wrote {path} and {write_summary(out)}")
