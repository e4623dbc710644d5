"""What decoding reaches by chance: the same decoders, responses permuted over the pictures."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from tqdm import tqdm

from minddiff_utils.datasets import Subject, prepare_fold
from minddiff_utils.decoding.components import PrincipalComponents
from minddiff_utils.decoding.decode import correlations, training_design
from minddiff_utils.decoding.decoders import Design, Method
from minddiff_utils.decoding.features import families, read_values
from minddiff_utils.evaluation.regions import sample_values
from minddiff_utils.evaluation.statistics import shuffled_rows
from minddiff_utils.io import InputError


def chance_accuracies(
    subject: Subject,
    features_path: str | Path,
    method: Method | None = None,
    *,
    n_permutations: int = 10,
    n_values: int = 150,
    seed: int = 0,
) -> pd.DataFrame:
    """Decode every family from responses permuted over the pictures, again and again.

    One permutation is not enough. It gives one wrong decoder, and what that makes of pictures with
    a lot in common agrees with them a little, or disagrees: for all values of a family together,
    and with as many test pictures as one likes. Chance is the mean over permutations.

    Parameters
    ----------
    subject : Subject
    features_path : str or Path
    method : Method, optional
        As for `decode_subject`; stretching is left out, for no correlation changes with it.
    n_permutations : int
        At least 2.
    n_values : int
        Values of each family, drawn at random among those that vary.
    seed : int

    Returns
    -------
    DataFrame
        `family`, `shuffle` (from 0), `correlation`: the mean over values, one row a permutation.

    Raises
    ------
    InputError
        If responses or features cannot be decoded, or there are too few permutations.
    """
    if n_permutations < 2:
        raise InputError(f"n_permutations={n_permutations}: expected 2 or more.")
    method = method or Method()
    names = families(features_path)
    chosen = sample_values(features_path, names, subject.splits[0], n_values, seed)
    true: dict[str, list[np.ndarray]] = {name: [] for name in names}
    found: dict[tuple[str, int], list[np.ndarray]] = {}
    for number, split in enumerate(tqdm(subject.splits, desc="chance")):
        fold = prepare_fold(subject, split)
        design = training_design(subject, split, fold, method)
        rng = np.random.default_rng([seed, number])
        orders = [shuffled_rows(len(split.train), rng) for _ in range(n_permutations)]
        for name in names:
            places = chosen[name]
            true[name].append(read_values(features_path, name, split.test)[:, places])
            y = read_values(features_path, name, split.train)
            decoded = _decode_permuted(design, y, places, name, method, orders, fold.test_x)
            for shuffle, values in enumerate(decoded):
                found.setdefault((name, shuffle), []).append(values)
    rows = []
    for (name, shuffle), parts in found.items():
        r = correlations(np.concatenate(true[name]), np.concatenate(parts))
        rows.append({"family": name, "shuffle": shuffle, "correlation": np.nanmean(r)})
    return pd.DataFrame(rows)


def _decode_permuted(
    design: Design,
    y: np.ndarray,
    places: np.ndarray,
    family: str,
    method: Method,
    orders: list[np.ndarray],
    test_x: np.ndarray,
) -> Iterator[np.ndarray]:
    """Yield some values of test stimuli, decoded once for every order of the training stimuli.

    Who has the wrong responses is the same thing as who has the wrong features; so what depends
    on responses alone, and the components of the values, are computed once.
    """
    if method.decoder != "ridge" or method.target_components == 0:
        for order in orders:
            yield design.fit(y[order][:, places], family, method).predict(test_x)
        return
    parts = PrincipalComponents(method.target_components).fit(y)
    scores = parts.transform(y)
    for order in orders:
        decoded = design.fit(scores[order], family, method).predict(test_x)
        yield decoded @ parts.components_[:, places] + parts.mean_[places]


def chance_interval(
    accuracies: pd.DataFrame, decoded: Mapping[str, float], level: float = 0.95
) -> pd.DataFrame:
    """Tell whether chance is at zero, and decoding above it.

    Parameters
    ----------
    accuracies : DataFrame
        From `chance_accuracies`.
    decoded : mapping of family to float
        Mean correlation from the right responses.
    level : float
        Of the intervals of all families together (Bonferroni; Student's t over the permutations).

    Returns
    -------
    DataFrame
        A row a family: `decoded`; `chance`, the mean over permutations, with its interval from
        `low` to `high`; `at_chance`, whether that covers 0; `highest`, that of any permutation.
    """
    rows = {}
    groups = accuracies.groupby("family", sort=False).correlation
    share = 1 - (1 - level) / groups.ngroups
    for name, values in groups:
        half = stats.sem(values) * stats.t.ppf((1 + share) / 2, len(values) - 1)
        mean = values.mean()
        row = {"decoded": decoded[name], "chance": mean, "low": mean - half, "high": mean + half}
        rows[name] = row | {"at_chance": abs(mean) <= half, "highest": values.max()}
    return pd.DataFrame(rows).T.infer_objects()
