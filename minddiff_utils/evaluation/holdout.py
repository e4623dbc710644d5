"""Decode pictures of a kind that the decoders were never trained on.

A decoder that only recognises which of the familiar kinds was seen fails on a kind it has not met.
So a whole kind of pictures is left out of training, and its test pictures are decoded. Leaving
pictures out costs something by itself; what is compared with is therefore a training set of the
same size, from which as many pictures were left out at random.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from sklearn.cluster import KMeans

from minddiff_utils.datasets import Split
from minddiff_utils.decoding.decoders import Method
from minddiff_utils.decoding.features import read_features
from minddiff_utils.evaluation.metrics import METRICS, in_order
from minddiff_utils.evaluation.statistics import paired_difference
from minddiff_utils.evaluation.tables import as_markdown, interval_text
from minddiff_utils.io import InputError

FEWEST = 3  # test pictures of a group that is held out


def trait_groups(
    stimulus_ids: Sequence[int], attributes: pd.DataFrame, families: Sequence[str] = ("kind",)
) -> dict[str, np.ndarray]:
    """Group pictures by what they show; a picture may be in several groups.

    Parameters
    ----------
    stimulus_ids : sequence of n int
        Of the rows of `attributes`.
    attributes : DataFrame of bool
        From `attributes.attribute_table`.
    families : sequence of str
        Families of traits, each trait a group.

    Returns
    -------
    dict of name to int64 array of stimulus ids
    """
    ids = np.asarray(stimulus_ids, np.int64)
    return {
        trait: ids[attributes[family, trait].to_numpy()]
        for family, trait in attributes.columns
        if family in families
    }


def cluster_groups(
    features_path: str | Path, stimulus_ids: Sequence[int], n_clusters: int = 10, seed: int = 0
) -> dict[str, np.ndarray]:
    """Group pictures by the meaning of their captions: k-means on the text condition.

    Parameters
    ----------
    features_path : str or Path
        From `write_features`; `c`, averaged over its tokens, stands for the captions.
    stimulus_ids : sequence of int
    n_clusters : int
    seed : int

    Returns
    -------
    dict of name to int64 array of stimulus ids
        "cluster_1" …; every picture is in one.
    """
    ids = np.asarray(stimulus_ids, np.int64)
    if not 2 <= n_clusters < len(ids):
        raise InputError(f"n_clusters={n_clusters}: expected from 2 to {len(ids) - 1}.")
    rows = read_features(features_path, "c", ids).mean(axis=1)
    label = KMeans(n_clusters, n_init=4, random_state=seed).fit_predict(rows)
    return {f"cluster_{k + 1}": ids[label == k] for k in range(n_clusters)}


def picture_groups(
    features_path: str | Path,
    stimulus_ids: Sequence[int],
    attributes: pd.DataFrame,
    n_clusters: int = 10,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Group pictures by the kinds of thing they show; by their captions where none are named.

    Parameters and result as for `trait_groups` and `cluster_groups`; there are at most as many
    clusters as half the pictures.
    """
    groups = trait_groups(stimulus_ids, attributes)
    if groups:
        return groups
    n_clusters = max(2, min(n_clusters, len(stimulus_ids) // 2))
    return cluster_groups(features_path, stimulus_ids, n_clusters, seed)


def hold_out(
    split: Split, groups: Mapping[str, np.ndarray], n: int, seed: int = 0
) -> dict[str, tuple[Split, Split]]:
    """Make the splits that leave a group of pictures out of training.

    Taken are the `n` groups with the most test pictures, among those with at least three that
    leave half of the training pictures or more.

    Parameters
    ----------
    split : Split
    groups : mapping of name to stimulus ids
    n : int
        How many groups, at most; 0 for none.
    seed : int
        Of the pictures that are left out at random for comparison.

    Returns
    -------
    dict of group to (without, matched)
        Both test the group's test pictures. `without` trains on no picture of the group, `matched`
        on as many pictures, a random part of all.
    """
    rng = np.random.default_rng(seed)
    test = {name: split.test[np.isin(split.test, ids)] for name, ids in groups.items()}
    train = {name: split.train[~np.isin(split.train, ids)] for name, ids in groups.items()}
    fit = [
        name
        for name in groups
        if len(test[name]) >= FEWEST and 2 * len(train[name]) >= len(split.train)
    ]
    chosen = sorted(fit, key=lambda name: -len(test[name]))[:n]
    found = {}
    for name in chosen:
        word = re.sub(r"[^A-Za-z0-9_-]", "_", name)
        part = np.sort(rng.choice(split.train, len(train[name]), replace=False))
        found[name] = (
            Split(f"without_{word}", train[name], test[name]),
            Split(f"matched_{word}", part, test[name]),
        )
    return found


def decoding_of(decoded_path: str | Path) -> Method:
    """Return the method that `decode_subject` wrote a file with, for `decode_splits`.

    Raises
    ------
    InputError
        If the file is missing or damaged.
    """
    try:
        with h5py.File(decoded_path, "r") as file:
            record = json.loads(file.attrs["settings"])
        return Method(**{name: record[name] for name in Method().get_params()})
    except (OSError, KeyError) as error:
        raise InputError(
            f"{decoded_path} cannot be read ({error}). Run 02_decoding again."
        ) from None


def hold_out_table(found: Mapping[str, pd.DataFrame], seed: int = 0) -> pd.DataFrame:
    """Show the drop when a kind of pictures was never trained on.

    Parameters
    ----------
    found : mapping of group to DataFrame
        `method, stimulus_id, metric, value` with the methods "without" and "matched".
    seed : int

    Returns
    -------
    DataFrame of str
        A group a row and all of them together, a metric a column: mean with a training set of the
        same size → mean without the group, and the paired difference with its 95 % interval.
    """
    if not found:
        table = pd.DataFrame(index=pd.Index([], name="left out"))
        table.attrs["note"] = "No group of pictures was left out (parameter `n_holdouts`)."
        return table
    keys = ["method", "stimulus_id", "metric"]
    everything = pd.concat(found.values()).groupby(keys, as_index=False)["value"].mean()
    rows = []
    for name, part in {**found, "all of them": everything}.items():
        row = {"left out": as_markdown(name), "n": str(part["stimulus_id"].nunique())}
        for metric in in_order(part["metric"], METRICS):
            wide = part[part["metric"] == metric].pivot(
                index="stimulus_id", columns="method", values="value"
            )
            drop = paired_difference(wide["without"], wide["matched"], seed=seed)
            means = f"{wide['matched'].mean():.3f} → {wide['without'].mean():.3f}"
            text = interval_text(drop["mean"], drop["low"], drop["high"], "+")
            row[METRICS.get(metric, metric)] = f"{means}: {text}"
        rows.append(row)
    table = pd.DataFrame(rows).set_index("left out")
    table.attrs["note"] = (
        "Mean of the full method on the test pictures of a group, its decoders trained on as many "
        "pictures chosen at random → trained on no picture of the group; then the mean paired "
        "difference with its 95\u00a0% bootstrap interval. n is the number of test pictures; one "
        "that shows several of the groups counts once in the last row."
    )
    return table
