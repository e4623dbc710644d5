"""Choose the settings of both stages on training pictures, so that test pictures stay unseen.

`python -m studies.tuning --vary strength=0.4,0.6 --vary step_size=0,0.2,0.3` decodes held-out
*training* pictures of a subject and prints what every combination of values reaches on them.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd

from minddiff_utils.datasets import Split, Subject, load_subject
from minddiff_utils.decoding.decode import decode_subject, read_decoded
from minddiff_utils.decoding.decoders import Method
from minddiff_utils.decoding.features import write_features
from minddiff_utils.evaluation.metrics import evaluate
from minddiff_utils.evaluation.statistics import paired_difference
from minddiff_utils.io import InputError
from minddiff_utils.models.hub import clip_name
from minddiff_utils.models.stable_diffusion import Generator, load_clip, load_generator
from minddiff_utils.reconstruction.results import read_trace
from minddiff_utils.reconstruction.stage2 import reconstruct
from minddiff_utils.settings import Settings


def tuning_subject(subject: Subject, n: int, seed: int = 0) -> Subject:
    """Return the subject with some of its training stimuli in the place of the test stimuli.

    Parameters
    ----------
    subject : Subject
    n : int
        How many training stimuli to hold out.
    seed : int

    Returns
    -------
    Subject
        With one split, "tuning"; no test stimulus of `subject` is in it, and no copy of a picture
        that is held out trains.

    Raises
    ------
    InputError
        If too few training stimuli would be left.
    """
    train = subject.splits[0].train
    if not 1 <= n <= len(train) - 4:
        raise InputError(f"n={n}: expected from 1 to {len(train) - 4} held-out training pictures.")
    held_out = np.random.default_rng(seed).choice(np.sort(train), n, replace=False)
    copies = np.isin(subject.picture_of(train), subject.picture_of(held_out))
    split = Split("tuning", np.sort(train[~copies]), held_out)
    return replace(subject, splits=(split,))


def compare_settings(
    generator: Generator,
    decoded: Mapping[str, np.ndarray],
    truth: np.ndarray,
    embed: Mapping[str, object],
    variants: Sequence[Settings],
    batch: int = 8,
    seed: int = 0,
) -> pd.DataFrame:
    """Reconstruct the same pictures with different settings.

    Parameters
    ----------
    generator : Generator
    decoded : mapping of str to array
        Of the held-out training pictures.
    truth : uint8 array, shape (n, h, w, 3)
    embed : mapping of metric name to function
        As `metrics.evaluate` takes them.
    variants : sequence of Settings
    batch, seed : int

    Returns
    -------
    DataFrame
        One row a variant: its settings, seconds a picture, the loss at the end as a share of that
        at the start, the mean of every metric, and `<metric>_gain`, `_low` and `_high`: the mean
        difference to the first variant and its 95 % bootstrap interval over pictures.
    """
    rows: list[dict] = []
    first: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, settings in enumerate(variants):
            path, started = Path(folder) / f"{number}.h5", time.monotonic()
            reconstruct(generator, decoded, settings, path, seed=seed, batch=batch, n_films=0)
            seconds = (time.monotonic() - started) / len(truth)
            losses, _, pictures = read_trace(path)
            total = losses.sum(2)
            values = evaluate(truth, {"made": pictures}, decoded["stimulus_id"], embed)
            found = {name: part.value.to_numpy() for name, part in values.groupby("metric")}
            first = first or found
            fall = float((total[:, -1] / total[:, 0]).mean())
            row = {**vars(settings), "seconds": seconds, "loss": fall}
            rows.append(row | gains_on(found, first))
            print(_line(rows[-1], settings, variants), flush=True)
    return pd.DataFrame(rows)


def _line(row: Mapping[str, object], settings: Settings, variants: Sequence[Settings]) -> str:
    """Say what sets a variant apart and what it reached."""
    varied = [
        name for name in vars(settings) if len({getattr(variant, name) for variant in variants}) > 1
    ]
    parts = [f"{name}={row[name]}" for name in varied]
    parts += [f"{row['seconds']:.2f} s a picture, loss x {row['loss']:.2f}"]
    for name in [name.removesuffix("_gain") for name in row if name.endswith("_gain")]:
        low, gain, high = (row[f"{name}_{part}"] for part in ("low", "gain", "high"))
        parts.append(f"{name} {row[name]:.3f} ({gain:+.3f} [{low:+.3f}, {high:+.3f}])")
    return "; ".join(parts)


def gains_on(found: Mapping[str, np.ndarray], first: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Mean of every metric over pictures, and the mean paired difference to another variant.

    Parameters
    ----------
    found, first : mapping of metric to float array, shape (n_pictures,)

    Returns
    -------
    dict of str to float
        `<metric>`, `<metric>_gain`, `<metric>_low` and `<metric>_high`, a 95 % bootstrap interval.
    """
    row = {name: values.mean() for name, values in found.items()}
    for name, values in found.items():
        gain = paired_difference(values, first[name])
        parts = {"gain": gain["mean"], "low": gain["low"], "high": gain["high"]}
        row |= {f"{name}_{part}": value for part, value in parts.items()}
    return row


def _variants(varied: Sequence[str]) -> list[Settings]:
    """Every combination of `name=value,value` over the default settings."""
    kinds = {item.name: item.type for item in fields(Settings)}
    choices: dict[str, list] = {}
    for text in varied:
        name, _, values = text.partition("=")
        if name not in kinds or not values:
            raise InputError(f"--vary {text}: expected name=value,value with {', '.join(kinds)}.")
        kind = kinds[name]
        choices[name] = [
            value == "True" if kind is bool else kind(value) for value in values.split(",")
        ]
    return [
        Settings(**dict(zip(choices, values, strict=True)))
        for values in itertools.product(*choices.values())
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Decode held-out training pictures and print what each combination of settings reaches."""
    parser = argparse.ArgumentParser(prog="python -m studies.tuning")
    parser.add_argument("--dataset", default="nsd")
    parser.add_argument("--data", default="runs/phantom/tree")
    parser.add_argument("--subject", default="subj01")
    parser.add_argument(
        "--models",
        default=str(Path(__file__).parents[1] / "minddiff_utils" / "phantom" / "weights"),
    )
    parser.add_argument("--work", type=Path, default=Path("runs/tuning"))
    parser.add_argument("--pictures", type=int, default=32, help="held-out training pictures")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--keep", default="1", help="shares of the structure to decode: 0.25,1")
    parser.add_argument("--vary", action="append", default=[], help="name=value,value")
    options = parser.parse_args(arguments)
    variants = _variants(options.vary)
    out = options.work / options.subject
    person = load_subject(options.dataset, options.data, options.subject, cache=out)
    person = tuning_subject(person, options.pictures)
    generator = load_generator(options.models, options.device)
    write_features(out / "features.h5", person, generator)
    names = {f"clip_{role}": clip_name(options.models, role) for role in ("judge", "guide")}
    embed = {metric: load_clip(name, options.device).embed for metric, name in names.items()}
    tables = []
    for keep in map(float, options.keep.split(",")):
        path = out / f"decoded-{keep:g}.h5"
        decoded = read_decoded(
            decode_subject(person, out / "features.h5", path, Method(keep_structure=keep))
        )
        truth = generator.resize(person.stimuli.pictures(decoded["stimulus_id"]))
        print(f"keep_structure = {keep:g}")
        table = compare_settings(generator, decoded, truth, embed, variants, options.batch)
        tables.append(table.assign(keep_structure=keep))
    pd.concat(tables).to_csv(out / "settings.csv", index=False)


if __name__ == "__main__":
    main()
