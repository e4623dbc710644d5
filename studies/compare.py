"""Which settings of decoding and of both stages are best? Judged on held-out training pictures."""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer

from minddiff_utils.book.plan import parse_yaml
from minddiff_utils.decoding.decode import correlations, decode_subject, read_decoded
from minddiff_utils.decoding.decoders import Method
from minddiff_utils.decoding.features import feature_spaces, read_features
from minddiff_utils.evaluation.metrics import evaluate
from minddiff_utils.evaluation.statistics import paired_difference, resampled_correlation
from minddiff_utils.io import InputError, atomic_path
from minddiff_utils.models.stable_diffusion import Generator
from minddiff_utils.reconstruction import pictures_of
from minddiff_utils.reconstruction.results import read_pictures
from minddiff_utils.reconstruction.stage2 import reconstruct
from minddiff_utils.settings import Settings
from studies.changes import CHANGES as DECODED
from studies.changes import change_decoded, equal_tokens
from studies.held_out import METRICS, MODELS, TREE, HeldOut, open_held_out
from studies.stored import DEFAULTS, compare_table

STAGES = tuple(signature(Settings).parameters)
DECODING = tuple(signature(Method).parameters)
# Those of the page on design choices.
CHANGES = """
rescale_c=none true=c true=z+structure c_tokens=equal c_nearest=0.25 n_blocks=8 negative=1
guidance_scale=5 guidance_by_spread=1.5 n_guided_steps=2 n_guided_steps=4 gradient_decoder=tiny
early_band_scale=1 target_components=0
rescale_z=none rescale_power=1 rescale_z=target structure_target=values z_evidence_weight=0
gradient_through=both gradient_steps=1 gradient_steps=3 step_size=0.1 step_size=0.4
""".split()


def main(
    change: Annotated[list[str] | None, typer.Option(help="name=value,…; repeat.")] = None,
    subject: Annotated[str, typer.Option(help="Whose brain.")] = "subj01",
    data: Annotated[Path, typer.Option(help="A recording in NSD's layout.")] = TREE,
    pictures: Annotated[int, typer.Option(min=2, help="Held-out training pictures.")] = 48,
    models: Annotated[str, typer.Option(help="Folder or name.")] = str(MODELS),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    work: Annotated[Path, typer.Option(help="For features.")] = Path("runs/bench/compare"),
    out: Annotated[Path, typer.Option(help="For the tables.")] = Path("runs/bench/compare"),
) -> None:
    """Compare settings with the defaults, on held-out training pictures.

    Settings are those of `Method` (how features are decoded), of `changes.change_decoded` (what is
    done to them then), and `Settings` (both stages). Each
    --change is one comparison, of one setting or of several together; without any, those of the
    page on design choices are made. Compared are the correlation of decoded with true features,
    and metrics of both stages, each by its difference to the defaults with the 95 % interval of
    that over pictures. All of it is kept in `compare_<subject>.csv`, and `compare.md` has a short
    table.
    """
    variants = [{}, *map(parse_change, change or CHANGES)]
    n_blocks = max(one.get("n_blocks", 6) for one in variants)
    held = open_held_out(data, subject, pictures, models, device, work / subject, n_blocks)
    out.mkdir(parents=True, exist_ok=True)
    parts = []
    for part in compare_settings(held, variants):
        parts.append(part)
        print(part.drop(columns="settings").to_string(index=False, float_format="{:.3f}".format))
        with atomic_path(out / f"compare_{subject}.csv") as temporary:
            pd.concat(parts).to_csv(temporary, index=False, float_format="%.5g")
    (out / "compare.md").write_text(compare_table(out), encoding="utf-8")


def parse_change(text: str) -> dict:
    """Return the settings that `name=value,name=value` names.

    Raises
    ------
    InputError
        If a name is not that of a setting, or has no value.
    """
    found = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in (*DECODING, *DECODED, *STAGES) or not value:
            known = ", ".join((*DECODING, *DECODED, *STAGES))
            raise InputError(f"--change {text}: expected name=value,… with {known}.")
        found |= parse_yaml(f'"{name}": {value}', f"--change {text}")
    return found


def compare_settings(held: HeldOut, variants: Sequence[Mapping]) -> Iterator[pd.DataFrame]:
    """Decode and rebuild the held-out pictures with each of several settings.

    Parameters
    ----------
    held : HeldOut
    variants : sequence of mapping
        Changes of the defaults; the first is what the others are compared with.

    Yields
    ------
    DataFrame
        For each of them, a row a measure: `settings`; `of`, a feature space or stage; `metric`;
        `value`; `gain`, `low` and `high`, the difference to the first with its 95 %
        interval over pictures. Costs have a value alone.
    """
    first: dict[tuple[str, str], tuple] = {}
    empty, train = held.generator.empty, held.subject.splits[0].train
    mean = torch.from_numpy(read_features(held.features, "c", train).mean(0)).to(empty)
    with tempfile.TemporaryDirectory() as folder:
        for changes in variants:
            decoded, settings = prepare(held, changes, Path(folder))
            held.generator.empty = torch.lerp(empty, mean, changes.get("negative", 0.0))
            by = changes.get("guidance_by_spread", 1.0)
            made, seconds = paint_by_spread(held.generator, decoded, settings, by)
            rows = [*_rows_of_features(held, decoded, first)]
            rows += _rows_of_pictures(held, decoded, made, first)
            rows.append({"of": "stage 2", "metric": "processor seconds", "value": seconds})
            text = ", ".join(f"{name}={value}" for name, value in changes.items()) or DEFAULTS
            print(text)
            yield pd.DataFrame(rows).assign(settings=text)


def prepare(held: HeldOut, changes: Mapping, folder: Path) -> tuple[dict, Settings]:
    """Decode the held-out pictures with changed settings; return what `reconstruct` is given.

    `folder` keeps what was decoded, for changes that decode in the same way.
    """
    method, then, stages = (
        {name: value for name, value in changes.items() if name in known}
        for known in (DECODING, DECODED, STAGES)
    )
    how = ",".join(f"{name}={value}" for name, value in method.items())
    train, features, spread = held.subject.splits[0].train, held.features, np.float32(1)
    if changes.get("c_tokens") == "equal":
        features = folder / "equal_tokens.h5"
        spread = equal_tokens(held.features, train, features)
    path = folder / f"decoded {how} {features.stem}.h5"
    if not path.exists():
        decode_subject(held.subject, features, path, Method(**method))
    decoded = read_decoded(path)
    decoded["c"] = decoded["c"] * spread
    return change_decoded(decoded, held.features, train, then), Settings(**stages)


def paint_by_spread(
    generator: Generator, decoded: Mapping, settings: Settings, factor: float
) -> tuple[dict[str, np.ndarray], float]:
    """Do as `paint`, with another guidance scale for images of which `c` is decoded far off."""
    if factor == 1:
        return paint(generator, decoded, settings)
    distance = np.square(decoded["c"] - decoded["c"].mean(0)).sum((1, 2))
    rows, made = np.argsort(distance), list[dict]()
    for half, scale in zip(np.array_split(rows, 2), (1 / factor, factor), strict=True):
        used = replace(settings, guidance_scale=settings.guidance_scale * scale)
        pictures, seconds = paint(generator, pictures_of(decoded, half), used)
        made.append(pictures)
    order = np.argsort(rows)
    return {k: np.concatenate([one[k] for one in made])[order] for k in made[0]}, seconds


def paint(
    generator: Generator, decoded: Mapping, settings: Settings
) -> tuple[dict[str, np.ndarray], float]:
    """Return the pictures of both stages, and seconds of the processor of the second for each."""
    alone = replace(settings, solver="algorithm_1", iterations=0)
    made = {}
    with tempfile.TemporaryDirectory() as folder:
        for stage, used in (("stage 1", alone), ("stage 2", settings)):
            began, path = time.process_time(), Path(folder) / f"{stage}.h5"
            reconstruct(generator, decoded, used, path, n_kept=0)
            seconds = time.process_time() - began
            made[stage] = read_pictures(path)
    return made, seconds / len(made[stage])


def _rows_of_features(held: HeldOut, decoded, first: dict) -> Iterator[dict]:
    """Compare decoded with true features, one feature space after the other."""
    ids = decoded["stimulus_id"]
    for name in (name for name in feature_spaces(held.features) if name in decoded):
        true, found = (
            values.reshape(len(ids), -1)
            for values in (read_features(held.features, name, ids), decoded[name])
        )
        mean = np.nanmean(correlations(true, found))
        drawn = resampled_correlation(true, found)
        reference, its_drawn = first.setdefault((name, "correlation"), (mean, drawn))
        low, high = np.percentile(drawn - its_drawn, [2.5, 97.5])
        row = {"of": name, "metric": "correlation", "value": mean, "gain": mean - reference}
        yield row | {"low": low, "high": high}


def _rows_of_pictures(held: HeldOut, decoded, made: Mapping, first: dict) -> Iterator[dict]:
    values = evaluate(held.truth, made, decoded["stimulus_id"], held.embed)
    shown = values[values.metric.isin(METRICS)]
    for key, part in shown.groupby(["method", "metric"], sort=False):
        found = part.value.to_numpy()
        gain = paired_difference(found, first.setdefault(key, found))
        row = {"of": key[0], "metric": key[1], "value": found.mean(), "gain": gain["mean"]}
        yield row | {"low": gain["low"], "high": gain["high"]}
