"""What decoding reaches by chance: the same decoders, responses dealt out to the wrong pictures."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from tqdm import tqdm

from minddiff_utils.datasets import Subject, prepare_fold
from minddiff_utils.decoding.components import fit_components
from minddiff_utils.decoding.decode import correlations, training_design
from minddiff_utils.decoding.decoders import SEMANTIC, Design, Method, fit_family
from minddiff_utils.decoding.features import families, read_features
from minddiff_utils.decoding.moments import column_moments
from minddiff_utils.evaluation.regions import sample_values
from minddiff_utils.evaluation.statistics import shuffled_rows
from minddiff_utils.io import InputError


def chance_accuracies(
    subject: Subject,
    features_path: str | Path,
    *,
    method: Method | None = None,
    n_permutations: int = 10,
    n_values: int = 150,
    n_folds: int = 5,
    seed: int = 0,
    device: str = "cpu",
) -> pd.DataFrame:
    """Decode every family from responses dealt out to the wrong pictures, again and again.

    One deal is not enough. It gives one wrong decoder, and what that makes of pictures with a lot
    in common agrees with them a little, or disagrees: for all values of a family together, and
    with as many test pictures as one likes. Chance is the mean over deals.

    Parameters
    ----------
    subject : Subject
    features_path : str or Path
    method : Method, optional
        As for `decode_subject`; stretching is left out, for no correlation changes with it.
    n_permutations : int
        Deals, at least 2.
    n_values : int
        Values of each family, drawn at random among those that vary.
    n_folds, seed, device
        As for `decode_subject`.

    Returns
    -------
    DataFrame
        `family`, `shuffle` (from 0), `correlation`: the mean over values, one row a deal.

    Raises
    ------
    InputError
        If responses or features cannot be decoded, or there are too few deals.
    """
    if n_permutations < 2:
        raise InputError(f"n_permutations={n_permutations}: expected 2 or more.")
    method = method or Method()
    names = families(features_path)
    chosen = sample_values(features_path, names, subject.splits[0], n_values, seed)
    true: dict[str, list[np.ndarray]] = {name: [] for name in names}
    found: dict[tuple[str, int], list[np.ndarray]] = {}
    bar = tqdm(total=len(subject.splits) * len(names), desc="chance")
    for number, split in enumerate(subject.splits):
        fold = prepare_fold(subject, split)
        given = (n_folds, None, device)
        ids, design = training_design(
            subject, split, fold, *given, early_band_scale=method.second_band_scale
        )
        rng = np.random.default_rng([seed, number])
        orders = [shuffled_rows(len(ids), rng) for _ in range(n_permutations)]
        for name in names:
            true[name].append(_flat(features_path, name, split.test)[:, chosen[name]])
            y = _flat(features_path, name, ids)
            decoded = _decode_shuffled(design, y, chosen[name], name, method, orders, fold.test_x)
            for shuffle, values in enumerate(decoded):
                found.setdefault((name, shuffle), []).append(values)
            bar.update()
    bar.close()
    rows = []
    for (name, shuffle), parts in found.items():
        r = correlations(np.concatenate(true[name]), np.concatenate(parts))
        rows.append({"family": name, "shuffle": shuffle, "correlation": np.nanmean(r)})
    return pd.DataFrame(rows)


def _flat(path: str | Path, name: str, ids: np.ndarray) -> np.ndarray:
    values = read_features(path, name, ids)
    return values.reshape(len(values), -1)


def _decode_shuffled(
    design: Design,
    y: np.ndarray,
    places: np.ndarray,
    family: str,
    method: Method,
    orders: list[np.ndarray],
    test_x: np.ndarray,
) -> list[np.ndarray]:
    """Decode some values of test stimuli, once for every order of the training stimuli.

    Who has the wrong responses is the same thing as who has the wrong features; so what depends
    on responses alone, and the components of the values, are computed once.
    """
    if method.decoder != "ridge":
        made = [fit_family(design, y[order][:, places], family, method)[0] for order in orders]
        return [decoder.predict(test_x) for decoder in made]
    if method.target_components == 0:
        return _ridge(design, y[:, places], family, orders, test_x)
    parts = fit_components(y, method.target_components)
    found = _ridge(design, parts.scores(y), family, orders, test_x)
    return [scores @ parts.basis[places].T + parts.mean[places] for scores in found]


def _ridge(
    design: Design, y: np.ndarray, family: str, orders: list[np.ndarray], test_x: np.ndarray
) -> list[np.ndarray]:
    """Fit ridge regression to targets in every order, each with its best penalty.

    All orders at once, unless each may be decoded best with another say of the early areas.
    """
    if len(orders) > 1 and design.others and family in SEMANTIC:
        return [_ridge(design, y, family, [order], test_x)[0] for order in orders]
    dealt = np.concatenate([y[order] for order in orders], axis=1)
    mean = column_moments(dealt, np.bincount(design.stimulus))[0].astype(np.float32)
    design, choice = design.best(dealt - mean, family)
    test_x = (test_x - design.mean_x) * design.scale
    found = design.path.predict(test_x, dealt - mean, choice) + mean
    return np.split(found, len(orders), axis=1)


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
        Of the intervals of all families together (Bonferroni; Student's t over the deals).

    Returns
    -------
    DataFrame
        A row a family: `decoded`; `chance`, the mean over deals, with its interval from `low` to
        `high`; `at_chance`, whether that covers 0; `highest`, the highest of any deal.
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
