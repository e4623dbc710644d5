"""Does stage 1 gain when decoded `z` is stretched to the spread of real ones?

`python -m minddiff_utils.shrinkage` decodes held-out *training* pictures with each choice of
`rescale_z` and prints how much the decoded `z` varies and what stage 1 makes of it.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from minddiff_utils.checkpoints import clip_name
from minddiff_utils.controls import first_pictures
from minddiff_utils.datasets import Subject, load_subject, prepare_fold
from minddiff_utils.decoders import RESCALE, Method, fit_family
from minddiff_utils.decoding import training_design
from minddiff_utils.features import read_features, write_features
from minddiff_utils.generator import Generator, load_clip, load_generator
from minddiff_utils.metrics import evaluate
from minddiff_utils.settings import Settings
from minddiff_utils.tuning import tuning_subject
from minddiff_utils.uncertainty import paired_difference

__all__ = ["compare_rescaling", "decode_choices"]


def decode_choices(subject: Subject, features: str | Path) -> dict[str, dict[str, np.ndarray]]:
    """Decode the test stimuli of a subject's only split with each choice of `rescale_z`.

    Returns
    -------
    dict of choice to dict
        `stimulus_id`, `z` and `c`, as in `decoded.h5`.
    """
    (split,) = subject.splits
    fold = prepare_fold(subject, split)
    ids, design = training_design(subject, split, fold)
    y = {name: read_features(features, name, ids) for name in ("z", "c")}

    def decode(name: str, rescale: str) -> np.ndarray:
        flat = y[name].reshape(len(ids), -1)
        decoder = fit_family(design, flat, name, Method(rescale_z=rescale))[0]
        return decoder.predict(fold.test_x).reshape(-1, *y[name].shape[1:])

    c = decode("c", "none")
    return {how: {"stimulus_id": fold.test_id, "z": decode("z", how), "c": c} for how in RESCALE}


def compare_rescaling(
    generator: Generator,
    choices: Mapping[str, Mapping[str, np.ndarray]],
    true_z: np.ndarray,
    truth: np.ndarray,
    embed: Mapping[str, object],
    settings: Settings,
    seed: int = 0,
) -> pd.DataFrame:
    """Paint stage 1 from each choice and compare it with the first.

    Parameters
    ----------
    generator : Generator
    choices : mapping
        From `decode_choices`.
    true_z : float array, shape (n, channels, h, w)
    truth : uint8 array, shape (n, h, w, 3)
    embed : mapping of metric name to function
        As `metrics.evaluate` takes them.
    settings : Settings
        Of both stages; stage 1 alone is painted.
    seed : int
        Of the diffusion noise.

    Returns
    -------
    DataFrame
        One row a choice: `rescale`, `spread` (SD of decoded over that of true `z`), `error`
        (mean squared error over the variance of `z`), and each metric's mean, `_gain`, `_low` and
        `_high` to the first choice with a 95 % interval over pictures.
    """
    rows, first = [], {}
    for how, decoded in choices.items():
        pictures = first_pictures(generator, decoded, settings, seed)
        values = evaluate(truth, {"made": pictures}, decoded["stimulus_id"], embed)
        found = {name: part.value.to_numpy() for name, part in values.groupby("metric")}
        first = first or found
        error = np.square(decoded["z"] - true_z).mean() / true_z.var(0).mean()
        row = {"rescale": how, "spread": np.sqrt(decoded["z"].var(0).mean() / true_z.var(0).mean())}
        row["error"] = error
        for name, each in found.items():
            gain = paired_difference(each, first[name])
            row |= {name: each.mean(), f"{name}_gain": gain["mean"]}
            row |= {f"{name}_low": gain["low"], f"{name}_high": gain["high"]}
        rows.append(row)
    return pd.DataFrame(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare the choices on held-out training pictures of one subject."""
    parser = argparse.ArgumentParser(prog="python -m minddiff_utils.shrinkage")
    parser.add_argument("--dataset", default="nsd")
    parser.add_argument("--data", default="runs/phantom/tree")
    parser.add_argument("--subject", default="subj01")
    parser.add_argument("--models", default=str(Path(__file__).parent / "phantom" / "weights"))
    parser.add_argument("--features", type=Path, help="features.h5; computed if not given")
    parser.add_argument("--work", type=Path, default=Path("runs/shrinkage"))
    parser.add_argument("--pictures", type=int, default=100, help="held-out training pictures")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    out = options.work / options.subject
    person = load_subject(options.dataset, options.data, options.subject, cache=out)
    person = tuning_subject(person, options.pictures)
    generator = load_generator(options.models, options.device)
    features = options.features or write_features(out / "features.h5", person, generator)
    choices = decode_choices(person, features)
    ids = person.splits[0].test
    truth = generator.resize(person.stimuli.pictures(ids))
    names = {f"clip_{role}": clip_name(options.models, role) for role in ("judge", "guide")}
    embed = {metric: load_clip(name, options.device).embed for metric, name in names.items()}
    true_z = read_features(features, "z", ids)
    table = compare_rescaling(generator, choices, true_z, truth, embed, Settings())
    print(f"{options.subject}, {len(ids)} held-out training pictures, stage 1")
    print(table.set_index("rescale").T.round(3).to_string())


if __name__ == "__main__":
    main()
