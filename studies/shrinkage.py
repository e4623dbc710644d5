"""Do both stages gain when decoded `z` is stretched to the spread of real ones?

`python -m studies.shrinkage` decodes held-out *training* pictures with several choices of
`rescale_z` and `rescale_power` and prints how much the decoded `z` varies and what stage 1 and
stage 2 make of it.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from minddiff_utils.datasets import Subject, load_subject, prepare_fold
from minddiff_utils.decoding.decode import decode_subject, read_decoded, training_design
from minddiff_utils.decoding.decoders import Method, fit_family
from minddiff_utils.decoding.features import read_features, read_values, write_features
from minddiff_utils.evaluation.metrics import evaluate
from minddiff_utils.models.hub import clip_name
from minddiff_utils.models.stable_diffusion import Generator, load_clip, load_generator
from minddiff_utils.reconstruction.results import read_pictures
from minddiff_utils.reconstruction.stage2 import reconstruct
from minddiff_utils.settings import Settings
from studies.tuning import gains_on, tuning_subject

Decoded = dict[str, np.ndarray]
# The first is what the others are compared with.
CHOICES = {
    "none": Method(rescale_z="none"),
    "global, power 0.5": Method(rescale_z="global", rescale_power=0.5),
    "global, power 0.7": Method(rescale_z="global", rescale_power=0.7),
    "global": Method(rescale_z="global", rescale_power=1.0),
    "target": Method(rescale_z="target", rescale_power=1.0),
}


def decode_choices(subject: Subject, features: str | Path, out: Path) -> dict[str, Decoded]:
    """Decode the test stimuli of a subject's only split with each of `CHOICES`.

    Parameters
    ----------
    subject : Subject
    features : str or Path
        From `write_features`.
    out : Path
        Folder for `decoded.h5`, in which nothing is stretched.

    Returns
    -------
    dict of choice to dict
        What `read_decoded` returns; all but `z` is the same.
    """
    (split,) = subject.splits
    path = decode_subject(subject, features, out / "decoded.h5", method=CHOICES["none"])
    plain = read_decoded(path)
    fold = prepare_fold(subject, split)
    design = training_design(subject, split, fold)
    y = read_values(features, "z", split.train)

    def stretched(method: Method) -> np.ndarray:
        decoder = fit_family(design, y, "z", method)[0]
        return decoder.predict(fold.test_x).reshape(plain["z"].shape)

    return {name: {**plain, "z": stretched(method)} for name, method in CHOICES.items()}


def compare_rescaling(
    generator: Generator,
    choices: Mapping[str, Mapping[str, np.ndarray]],
    true_z: np.ndarray,
    truth: np.ndarray,
    embed: Mapping[str, object],
    settings: Settings,
    out: Path,
    seed: int = 0,
    batch: int = 16,
) -> pd.DataFrame:
    """Paint both stages from each choice and compare them with the first.

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
        Of both stages.
    out : Path
        Folder for the pictures, one file a choice and stage.
    seed : int
        Of the diffusion noise.
    batch : int

    Returns
    -------
    DataFrame
        One row a choice and stage: `rescale`, `stage`, `spread` (SD of decoded over that of true
        `z`), `error` (mean squared error over the variance of `z`), and each metric's mean,
        `_gain`, `_low` and `_high` to the first choice of the same stage with a 95 % interval over
        pictures.
    """
    rows: list[dict] = []
    first: dict[str, dict[str, np.ndarray]] = {}
    alone = replace(settings, solver="algorithm_1", iterations=0)
    for number, (how, decoded) in enumerate(choices.items()):
        made = {}
        for stage, used in (("stage 1", alone), ("stage 2", settings)):
            path = out / f"{stage.replace(' ', '')}-{number}.h5"
            reconstruct(generator, decoded, used, path, seed=seed, batch=batch, n_films=0)
            made[stage] = read_pictures(path)
        values = evaluate(truth, made, decoded["stimulus_id"], embed)
        known = {"rescale": how, **_shrunk(decoded["z"], true_z)}
        for stage in made:
            part = values[values.method == stage].groupby("metric")
            found = {name: each.value.to_numpy() for name, each in part}
            gains = gains_on(found, first.setdefault(stage, found))
            rows.append(known | {"stage": stage} | gains)
    return pd.DataFrame(rows)


def _shrunk(z: np.ndarray, true_z: np.ndarray) -> dict[str, float]:
    variance = true_z.var(0).mean()
    return {
        "spread": np.sqrt(z.var(0).mean() / variance),
        "error": np.square(z - true_z).mean() / variance,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare the choices on held-out training pictures of one subject."""
    parser = argparse.ArgumentParser(prog="python -m studies.shrinkage")
    parser.add_argument("--dataset", default="nsd")
    parser.add_argument("--data", default="runs/phantom/tree")
    parser.add_argument("--subject", default="subj01")
    parser.add_argument(
        "--models",
        default=str(Path(__file__).parents[1] / "minddiff_utils" / "phantom" / "weights"),
    )
    parser.add_argument("--features", type=Path, help="features.h5; computed if not given")
    parser.add_argument("--work", type=Path, default=Path("runs/shrinkage"))
    parser.add_argument("--pictures", type=int, default=200, help="held-out training pictures")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    out = options.work / options.subject
    person = load_subject(options.dataset, options.data, options.subject, cache=out)
    person = tuning_subject(person, options.pictures)
    generator = load_generator(options.models, options.device)
    features = options.features or write_features(out / "features.h5", person, generator)
    choices = decode_choices(person, features, out)
    ids = person.splits[0].test
    truth = generator.resize(person.stimuli.pictures(ids))
    names = {f"clip_{role}": clip_name(options.models, role) for role in ("judge", "guide")}
    embed = {metric: load_clip(name, options.device).embed for metric, name in names.items()}
    true_z = read_features(features, "z", ids)
    table = compare_rescaling(generator, choices, true_z, truth, embed, Settings(), out)
    print(f"{options.subject}, {len(ids)} held-out training pictures")
    print(table.set_index(["stage", "rescale"]).T.round(3).to_string())


if __name__ == "__main__":
    main()
