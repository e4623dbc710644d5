"""What decoding knows: from each region alone and without it, and by chance.

Chance is what the same decoders reach with the responses permuted over the images.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from minddiff_utils.datasets import Split, Subject, prepare_fold
from minddiff_utils.datasets.subject import EARLY_AREAS, HIGHER_AREAS, area_kind, area_masks
from minddiff_utils.decoding import decode, ridge
from minddiff_utils.decoding.decoders import Method
from minddiff_utils.decoding.features import feature_spaces, read_values
from minddiff_utils.evaluation.statistics import resampled_correlation, shuffled_rows
from minddiff_utils.io import progress

# Every second penalty, chosen by few folds: mean accuracies need no finer choice.
COARSE, N_FOLDS = ridge.PENALTIES[::2], 2
N_VALUES = 150  # of each feature space, drawn at random among those that vary
LEVEL = 0.95  # of all intervals of chance together
# Feature spaces that are decoded from regions. The first of a pair belongs to early areas.
CONTRASTS = (("z", "c"), ("block_1", "block_6"))


class RegionDecoding(NamedTuple):
    """A sample of values, decoded from many sets of voxels.

    `true` float32 (n_test, n_values); `feature_space` and `value` (n_values,), where each comes
    from;
    `rois` the names of regions; `decoded` from a region and "alone", "without" it, or "all" with
    "" for the region, to float32 (n_test, n_values). Where there are both, all early areas
    together and all higher ones are two more regions, `EARLY_AREAS` and `HIGHER_AREAS`.
    """

    true: np.ndarray
    feature_space: np.ndarray
    value: np.ndarray
    rois: tuple[str, ...]
    decoded: dict[tuple[str, str], np.ndarray]


def decode_regions(subject: Subject, features_path: str | Path, seed: int = 0) -> RegionDecoding:
    """Decode a sample of values from each region, and from all but the region.

    Of the feature spaces of `CONTRASTS`; those that the file lacks are left out.

    Ridge regression sees voxels only through their products, summed over voxels. So the matrix of
    products of all voxels but a region's is that of all less that of the region.

    Parameters
    ----------
    subject : Subject
    features_path : str or Path
    seed : int
        Of the values that are drawn, 150 of each feature space.

    Returns
    -------
    RegionDecoding
    """
    known = feature_spaces(features_path)
    names = [name for pair in CONTRASTS for name in pair if name in known]
    chosen = sample_values(features_path, names, subject.splits[0], seed)
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    true = []
    for split in progress(subject.splits, "regions"):
        true.append(_values(features_path, chosen, split.test))
        y = _values(features_path, chosen, split.train)
        for key, decoded in _decode_split(subject, split, y):
            found.setdefault(key, []).append(decoded)
    space = np.repeat(names, [len(chosen[name]) for name in names])
    value = np.concatenate([chosen[name] for name in names])
    decoded = {key: np.concatenate(parts) for key, parts in found.items()}
    return RegionDecoding(np.concatenate(true), space, value, tuple(subject.roi), decoded)


def _decode_split(
    subject: Subject, split: Split, y: np.ndarray
) -> Iterator[tuple[tuple[str, str], np.ndarray]]:
    """Yield (region, which voxels) and the decoded values of the test stimuli."""
    fold, weights = prepare_fold(subject, split), decode.voxel_weights(subject, split)
    folds = decode.training_folds(subject, split.train, N_FOLDS)
    stimulus = decode.stimulus_of_rows(split, fold)
    mean = np.average(y, axis=0, weights=np.bincount(stimulus))
    centre = fold.train_x.mean(0, dtype=np.float64).astype(np.float32)
    train, test = (fold.train_x - centre) * weights, (fold.test_x - centre) * weights

    def products(voxels: np.ndarray | slice) -> tuple[Any, ...]:
        part = train[:, voxels]
        return part @ part.T, test[:, voxels] @ part.T, float(np.square(weights[voxels]).sum())

    def decoded(train: np.ndarray, test: np.ndarray, size: float) -> np.ndarray:
        model = ridge.CrossValidatedRidge(size * COARSE, folds, stimulus, kernel="precomputed")
        return model.fit(train, y - mean).predict(test) + mean

    whole = products(slice(None))
    yield ("", "all"), decoded(*whole)
    for roi, mask in (subject.roi | area_masks(subject.roi)).items():
        alone = products(mask)
        yield (roi, "alone"), decoded(*alone)
        if not mask.all():
            yield (roi, "without"), decoded(*(a - b for a, b in zip(whole, alone, strict=True)))


def region_accuracies(regional: RegionDecoding) -> pd.DataFrame:
    """Correlate what each region alone, and all but each region, decode with the truth.

    Returns
    -------
    DataFrame
        `feature_space`, `roi`, `voxels` ("alone", "without" the region, or "all" with `roi` ""),
        `value` (its place in the feature space) and `correlation` over the test stimuli.
    """
    frames = []
    for (roi, voxels), decoded in regional.decoded.items():
        if roi and roi not in regional.rois:
            continue
        frame = pd.DataFrame({"feature_space": regional.feature_space, "roi": roi})
        r = decode.correlations(regional.true, decoded)
        frames.append(frame.assign(voxels=voxels, value=regional.value, correlation=r))
    return pd.concat(frames, ignore_index=True)


def area_contrasts(
    regional: RegionDecoding, n_resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Ask whether early areas stand out in `z` and low layers, and higher areas in `c`.

    For every region, the mean correlation of the one feature space less that of the other;
    averaged over early areas, and over higher ones. How noisy a region is, and how many voxels it
    has, touches both alike.

    Parameters
    ----------
    regional : RegionDecoding
    n_resamples, seed : int
        Of the bootstrap over images.

    Returns
    -------
    DataFrame
        Indexed by `measure` and `feature_spaces` ("z - c", "block_1 - block_6"); `early` and
        `higher` areas, their `difference` with its 95 % interval from `low` to `high`, and whether
        it `holds`: the interval lies above 0. The measures: what a region decodes "alone", what is
        lost "without" it, and what is lost without all of its kind. No rows where a recording has
        areas of one kind only.
    """
    rows: dict[tuple[str, str], dict] = {}
    if (EARLY_AREAS, "alone") not in regional.decoded:
        return pd.DataFrame(rows)
    spaces = set(regional.feature_space)
    for pair in [pair for pair in CONTRASTS if set(pair) <= spaces]:
        contrast = partial(_contrast, regional, pair, n_resamples, seed)
        whole = contrast("", "all")
        for measure in ("alone", "without", "without all"):
            of_kind = []
            for kind in (EARLY_AREAS, HIGHER_AREAS):
                rois = [roi for roi in regional.rois if area_kind(roi) == kind]
                rois = [kind] if measure == "without all" else rois
                voxels = "alone" if measure == "alone" else "without"
                mean = np.mean([contrast(roi, voxels) for roi in rois], axis=0)
                of_kind.append(mean if measure == "alone" else whole - mean)
            early, higher = of_kind
            low, high = np.percentile((early - higher)[1:], [2.5, 97.5])
            row = {"early": early[0], "higher": higher[0], "difference": early[0] - higher[0]}
            row |= {"low": low, "high": high, "holds": low > 0}
            rows[measure, " - ".join(pair)] = row
    table = pd.DataFrame(rows).T.infer_objects()
    return table.rename_axis(["measure", "feature_spaces"])


def _contrast(
    regional: RegionDecoding, pair: tuple[str, str], n: int, seed: int, roi: str, voxels: str
) -> np.ndarray:
    """Mean correlation of one feature space less another's; (n + 1,), the first not resampled."""
    found = []
    for space in pair:
        of = regional.feature_space == space
        true, decoded = regional.true[:, of], regional.decoded[roi, voxels][:, of]
        mean = np.nanmean(decode.correlations(true, decoded))
        found.append(np.append(mean, resampled_correlation(true, decoded, n, seed)))
    return found[0] - found[1]


def sample_values(
    path: str | Path, names: Sequence[str], split: Split, seed: int
) -> dict[str, np.ndarray]:
    """Draw 150 values of each feature space among those that vary over the training stimuli.

    Parameters
    ----------
    path : str or Path
        From `write_features`.
    names : sequence of str
    split : Split
    seed : int

    Returns
    -------
    dict of feature space to int array
        Places in the feature space, ascending.
    """
    rng = np.random.default_rng(seed)
    chosen = {}
    for name in names:
        moments = ridge.column_moments(read_values(path, name, split.train))
        varied = np.flatnonzero(~ridge.constant_columns(*moments))
        chosen[name] = np.sort(rng.choice(varied, min(N_VALUES, len(varied)), replace=False))
    return chosen


def _values(path: str | Path, chosen: Mapping[str, np.ndarray], ids: np.ndarray) -> np.ndarray:
    """Read the drawn values of all feature spaces side by side."""
    parts = [read_values(path, name, ids)[:, places] for name, places in chosen.items()]
    return np.concatenate(parts, axis=1)


def chance_accuracies(
    subject: Subject, features_path: str | Path, method: Method, n_permutations: int, seed: int = 0
) -> pd.DataFrame:
    """Decode values of every feature space from responses permuted over the images, repeatedly.

    One permutation is not enough. It gives one wrong decoder, and what that makes of images with
    a lot in common agrees with them a little, or disagrees: for all values of a feature space
    together, and with as many test images as one likes. Chance is the mean over permutations.

    Parameters
    ----------
    subject : Subject
    features_path : str or Path
    method : Method
        As for `decode_subject`, but each value is decoded by itself, not by way of components.
        Stretching is left out, for no correlation changes with it.
    n_permutations : int
        At least 2.
    seed : int
        Of the permutations, and of the values that are drawn, 150 of each feature space.

    Returns
    -------
    DataFrame
        `feature_space`, `permutation` (from 0), `correlation`: the mean over these values.

    Raises
    ------
    InputError
        If responses or features cannot be decoded.
    """
    names = feature_spaces(features_path)
    chosen = sample_values(features_path, names, subject.splits[0], seed)
    true: dict[str, list[np.ndarray]] = {name: [] for name in names}
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for number, split in enumerate(progress(subject.splits, "chance")):
        fold = prepare_fold(subject, split)
        design = decode.training_design(subject, split, fold, method)
        rng = np.random.default_rng([seed, number])
        orders = [shuffled_rows(len(split.train), rng) for _ in range(n_permutations)]
        for name in names:
            train, test = (
                read_values(features_path, name, ids)[:, chosen[name]]
                for ids in (split.train, split.test)
            )
            true[name].append(test)
            # Who has the wrong responses is the same thing as who has the wrong features; so what
            # depends on responses alone is computed once.
            models = (design.fit(train[order], name, method) for order in orders)
            found[name].append(np.stack([one.predict(fold.test_x) for one in models]))
    rows = []
    for name, parts in found.items():
        for number, decoded in enumerate(np.concatenate(parts, axis=1)):
            r = np.nanmean(decode.correlations(np.concatenate(true[name]), decoded))
            rows.append({"feature_space": name, "permutation": number, "correlation": r})
    return pd.DataFrame(rows)


def chance_interval(accuracies: pd.DataFrame, decoded: Mapping[str, float]) -> pd.DataFrame:
    """Tell whether chance is at zero, and decoding above it.

    Parameters
    ----------
    accuracies : DataFrame
        From `chance_accuracies`.
    decoded : mapping of feature space to float
        Mean correlation from the right responses.

    Returns
    -------
    DataFrame
        A row a feature space: `decoded`; `chance`, the mean over permutations, with its interval
        from `low` to `high`, 95 % for all of them together (Bonferroni; Student's t over the
        permutations); `at_chance`, whether that covers 0; `highest`, of any permutation.
    """
    rows = {}
    groups = accuracies.groupby("feature_space", sort=False).correlation
    share = 1 - (1 - LEVEL) / groups.ngroups
    for name, values in groups:
        half = stats.sem(values) * stats.t.ppf((1 + share) / 2, len(values) - 1)
        mean = values.mean()
        row = {"decoded": decoded[name], "chance": mean, "low": mean - half, "high": mean + half}
        rows[name] = row | {"at_chance": abs(mean) <= half, "highest": values.max()}
    return pd.DataFrame(rows).T.infer_objects()
