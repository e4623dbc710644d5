"""Does decoding generalise? The same subject on further test sets, near to training or far."""

import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pandas as pd

from minddiff_utils.datasets import Split
from minddiff_utils.decoding.decode import decode_tests, read_decoded, same_training, test_set_file
from minddiff_utils.evaluation import tables
from minddiff_utils.evaluation.baselines import Bench
from minddiff_utils.evaluation.metrics import METRICS, evaluate, main_metrics
from minddiff_utils.evaluation.statistics import bootstrap_interval, finite, group_difference
from minddiff_utils.io import require
from minddiff_utils.reconstruction import pictures_of

OWN, WRONG = "with its own stimulus", "with another stimulus of the set"
NOTE = (
    "Mean of the full method with its 95 % bootstrap interval; then how far it lies above the same "
    "reconstructions scored with another stimulus of the set."
)


def set_name(split: str) -> str:
    """Return what the parts of a test set share: "random" for `random_0` to `random_4`."""
    return re.sub(r"_\d+$", "", split)


def decode_sets(bench: Bench, n: int) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Decode further test sets with the settings of the run, some images of each.

    Sets with the training stimuli of the book's split were decoded in chapter 02. Others need
    decoders of their own, which those with a training set in common share.

    Parameters
    ----------
    bench : Bench
    n : int
        Images of each set, at even distances; all if it has fewer.

    Yields
    ------
    name : str
    decoded : dict
        As `read_decoded` returns it.
    """
    known = same_training(bench.person)
    groups: dict[bytes, list[Split]] = {}
    for split in bench.person.test_sets:
        groups.setdefault(np.sort(split.train).tobytes(), []).append(split)
    for splits in groups.values():
        if splits[0] in known:
            paths = (test_set_file(bench.folder, split.name) for split in splits)
            found = [read_decoded(require(path, "02_decoding")) for path in paths]
        else:
            found = decode_tests(bench.person, bench.features, splits, bench.decoding())
        for split, decoded in zip(splits, found, strict=True):
            yield split.name, pictures_of(decoded, spread(len(split.test), n))


def spread(n: int, most: int) -> np.ndarray:
    """Return `most` of `n` places at even distances, or all; int64."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64))


def score_sets(
    bench: Bench, embed: Mapping[str, Callable], size: int | None, own: np.ndarray, n: int
) -> pd.DataFrame:
    """Paint every test set by the full method and score it, with right and with wrong images.

    Images of one set may be more alike, or more blurred, than those of another, and score higher
    whatever is decoded. So each reconstruction is also scored with two others of its set, the next
    and the one half the set further on.

    Parameters
    ----------
    bench : Bench
    embed, size
        As for `evaluate`.
    own : uint8 array, shape (n_test, H, W, 3)
        What the full method painted of the book's own test images.
    n : int
        Images of each further set, as for `decode_sets`; 0 for nothing at all.

    Returns
    -------
    DataFrame
        `test_set, stimulus_id, scored_with, metric, value, kind`; empty without further sets.
        `kind` is "" where the recording names none.
    """
    if not n or not bench.person.test_sets:
        return pd.DataFrame(columns=["test_set", "scored_with", "metric", "value", "kind"])
    painted = {bench.person.splits[0].name: (bench.decoded["stimulus_id"], own)}
    for name, decoded in decode_sets(bench, n):
        pictures = bench.run(decoded, bench.full, f"test_set_{name}")
        painted[name] = decoded["stimulus_id"], pictures
    parts = []
    for name, (ids, pictures) in painted.items():
        seen = bench.seen(ids)
        for shift in (0, 1, len(ids) // 2):
            truth = np.roll(seen, shift, axis=0)
            part = evaluate(truth, {set_name(name): pictures}, ids, embed, size)
            parts.append(main_metrics(part).assign(scored_with=WRONG if shift else OWN))
    frame = pd.concat(parts).rename(columns={"method": "test_set"})
    # Parts of a set may share pictures; each counts once.
    keys = ["test_set", "stimulus_id", "scored_with", "metric"]
    frame = frame.groupby(keys, sort=False, as_index=False)["value"].mean()
    return frame.assign(kind=frame["stimulus_id"].map(bench.person.kind_of).fillna(""))


def generalisation_table(frame: pd.DataFrame, by: str = "test_set", seed: int = 0) -> pd.DataFrame:
    """Write the scores of each test set, and what they exceed those of wrong images by.

    Parameters
    ----------
    frame : DataFrame
        From `score_sets`.
    by : str
        "test_set", or "kind" for the kinds of images that the recording names.
    seed : int
        Of the bootstrap.

    Returns
    -------
    DataFrame of str
        A row a set or kind, none without a name.
    """
    rows, head = [], by.replace("_", " ")
    for (metric, name), part in _gains(frame[frame[by] != ""], by):
        own, gain = finite(part[OWN]), finite(part[OWN] - part[WRONG])
        text = tables.interval_text(own.mean(), *bootstrap_interval(own, seed=seed))
        text += "; " + tables.interval_text(gain.mean(), *bootstrap_interval(gain, seed=seed), "+")
        rows.append({head: tables.as_markdown(name), "metric": metric, "n": len(own), "text": text})
    return tables.wide_table(pd.DataFrame(rows), [head], NOTE)


def _gains(frame: pd.DataFrame, by: str) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
    """Each metric and set (or kind), its images' scores with the right and a wrong image."""
    for names, part in tables.groups_in_order(frame, ["metric", by]):
        # A picture may be in several sets of its kind.
        yield names, part.pivot_table("value", "stimulus_id", "scored_with", dropna=False)


def fall_text(frame: pd.DataFrame, metric: str = "clip_judge", seed: int = 0) -> str:
    """Say by how much less is decoded of the further sets than of the book's own.

    Parameters
    ----------
    frame : DataFrame
        From `score_sets`.
    metric : str
    seed : int

    Returns
    -------
    str
        A sentence of markdown; "" without further sets. What is compared is the distance to the
        score with other stimuli.
    """
    sets = {
        tables.as_markdown(name): finite(part[OWN] - part[WRONG])
        for (_, name), part in _gains(frame[frame["metric"] == metric], "test_set")
    }
    parts, first = [], next(iter(sets), "")
    for name in [*sets][1:]:
        found = group_difference(sets[name], sets[first], seed)
        change = tables.interval_text(found["difference"], found["low"], found["high"], "+")
        said = "less than" if found["high"] < 0 else "not shown to differ from"
        said = "more than" if found["low"] > 0 else said
        parts.append(f"{name} {said} {first} ({change}, {tables.p_text(found['p'])})")
    text = f"**{METRICS[metric]}**, above other stimuli of the set: {'; '.join(parts)}."
    return text if parts else ""
