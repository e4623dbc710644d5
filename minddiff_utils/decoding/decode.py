"""Decode a whole recording: every family of features, from the responses of every split."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from himalaya.scoring import correlation_score

from minddiff_utils.datasets import Fold, Split, Subject, estimate_ncsnr, prepare_fold
from minddiff_utils.datasets.areas import EARLY_AREAS, area_masks
from minddiff_utils.decoding.components import evidence
from minddiff_utils.decoding.decoders import Design, Method, fit_family, make_design, save_decoder
from minddiff_utils.decoding.features import families, read_features, read_values
from minddiff_utils.decoding.ridge import assign_folds, column_moments
from minddiff_utils.io import InputError, atomic_path
from minddiff_utils.storage import open_to_write, progress, row_dataset

# Voxels at a time when their reliability is estimated, which bounds the memory.
VOXELS = 1024
# Estimates of reliability are noisy: no voxel counts for less.
LEAST_RELIABILITY = 0.01


def voxel_weights(subject: Subject, split: Split) -> np.ndarray:
    """Return how reliable each voxel is over repetitions of the training stimuli.

    Parameters
    ----------
    subject : Subject
    split : Split
        Only trials of its training stimuli are used.

    Returns
    -------
    float32 array, shape (n_voxels,)
        Share of variance of the mean over repetitions that would repeat,
        :math:`ncsnr^2 / (ncsnr^2 + 1/n)`, at least 0.01; ones where no stimulus was repeated.
    """
    trials = np.flatnonzero(np.isin(subject.stimulus_id, split.train))
    ids, session = subject.stimulus_id[trials], subject.session[trials]
    n = len(ids) / len(np.unique(ids))
    if n == 1:
        return np.ones(subject.responses.shape[1], np.float32)
    parts = [
        estimate_ncsnr(subject.responses[trials, start : start + VOXELS], ids, session)
        for start in range(0, subject.responses.shape[1], VOXELS)
    ]
    ncsnr2 = np.square(np.concatenate(parts))
    return np.maximum(ncsnr2 / (ncsnr2 + 1 / n), LEAST_RELIABILITY).astype(np.float32)


def decode_subject(
    subject: Subject,
    features_path: str | Path,
    decoded_path: str | Path,
    method: Method | None = None,
    *,
    shuffle_seed: int | None = None,
    decoders: str | Path | None = None,
) -> Path:
    """Fit decoders on the training stimuli of every split; decode its test stimuli.

    One family is in memory at a time; what depends on the responses alone is computed once.

    Parameters
    ----------
    subject : Subject
    features_path : str or Path
        From `write_features`.
    decoded_path : str or Path
        HDF5: `stimulus_id` int64 (n_test,), `split` int64 (n_test,), and each family, float32
        (n_test, …), NaN where a value was not selected. For `z` and each block `i` also what
        `evidence` returns, `evidence_<i>` float32 (n_test, n_components) and `projection_<i>`
        float32 (n_splits, n_values, n_components); and, float32 (n_splits, n_components),
        `reliability_<i>`, the cross-validated R² of each component, and `variance_<i>`, that of
        its scores over the training stimuli.
    method : Method, optional
        How features are decoded; the defaults of `Method` if not given.
    shuffle_seed : int, optional
        Control: permute the training responses over the stimuli first.
    decoders : str or Path, optional
        Folder to save the decoders in, `<split>/<family>.safetensors`.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        If responses or features cannot be decoded, or there is no room on the disk.
    """
    method = method or Method()
    more = shuffle_seed, decoders
    decoded = decode_splits(subject, features_path, subject.splits, method, *more)
    n_bytes = sum(values.nbytes for values in decoded.values())
    with atomic_path(decoded_path) as temporary, open_to_write(temporary, "w", n_bytes) as file:
        file.attrs["settings"] = json.dumps({**asdict(method), "shuffle": shuffle_seed})
        for name, values in decoded.items():
            row_dataset(file, name, values.shape, values.dtype)[...] = values
    return Path(decoded_path)


def decode_splits(
    subject: Subject,
    features_path: str | Path,
    splits: Sequence[Split],
    method: Method,
    shuffle_seed: int | None = None,
    decoders: str | Path | None = None,
    *,
    names: Sequence[str] = (),
    voxels: np.ndarray | slice = slice(None),
) -> dict[str, np.ndarray]:
    """Decode the test stimuli of some splits, which need not be the subject's own.

    Parameters
    ----------
    subject : Subject
    features_path : str or Path
    splits : sequence of Split
        A stimulus may be a test stimulus of several.
    method, shuffle_seed, decoders
        As for `decode_subject`. Blocks of which nothing is kept are arrays of no columns.
    names : sequence of str
        Families; all of the file if none are given.
    voxels : bool array, shape (n_voxels,), or slice
        Which are used.

    Returns
    -------
    dict
        What `read_decoded` returns of these splits.

    Raises
    ------
    InputError
        If responses or features cannot be decoded.
    """
    names = names or families(features_path)
    rows: dict[str, list[np.ndarray]] = {}
    for number, split in enumerate(splits):
        fold = prepare_fold(subject, split)
        design = training_design(subject, split, fold, method, shuffle_seed, voxels)
        test_x = fold.test_x[:, voxels]
        found = {"stimulus_id": fold.test_id, "split": np.full(len(test_x), number, np.int64)}
        for name in progress(names, f"decoders of {split.name}"):
            y = read_features(features_path, name, split.train)
            shape, y = y.shape[1:], y.reshape(len(y), -1)
            decoder, of_components, components = fit_family(design, y, name, method)
            found[name] = np.zeros((len(test_x), 0), np.float32)
            if decoder is not None:
                found[name] = decoder.predict(test_x).reshape(-1, *shape)
            if decoder is not None and decoders is not None:
                path = Path(decoders) / split.name / f"{name}.safetensors"
                save_decoder(decoder, path, {**asdict(method), "family": name})
            if of_components is not None and components is not None:
                block, r2 = name.removeprefix("block_"), of_components.r2
                scores = of_components.predict(test_x)
                projection, value = evidence(components, scores, r2, *method.reliability)
                found[f"evidence_{block}"] = value
                found[f"projection_{block}"] = projection[None]
                found[f"reliability_{block}"] = r2[None]
                found[f"variance_{block}"] = components.explained_variance_[None, : len(r2)]
        for name, part in found.items():
            rows.setdefault(name, []).append(part)
    return {name: _joined(name, parts) for name, parts in rows.items()}


def training_design(
    subject: Subject,
    split: Split,
    fold: Fold,
    method: Method | None = None,
    shuffle_seed: int | None = None,
    voxels: np.ndarray | slice = slice(None),
) -> Design:
    """Make the training responses of a split ready; trials of one stimulus share a fold.

    Parameters
    ----------
    subject : Subject
    split : Split
    fold : Fold
        The same, prepared.
    method, shuffle_seed
        As for `decode_subject`. Early areas are scaled down only where there are higher ones.
    voxels : bool array, shape (n_voxels,), or slice
        Which are used.

    Returns
    -------
    Design
        Its stimuli are those of `split.train`, in the same order.
    """
    method, x = method or Method(), fold.train_x
    if shuffle_seed is not None:
        x = x[shuffled_places(len(x), shuffle_seed)]
    early = area_masks(subject.roi).get(EARLY_AREAS)
    early = None if early is None or len(np.unique(early[voxels])) < 2 else early[voxels]
    folds = training_folds(subject, split.train, method.n_folds)
    weights = voxel_weights(subject, split)[voxels]
    return make_design(x[:, voxels], folds, weights, stimulus_of_rows(split, fold), early, method)


def training_folds(subject: Subject, ids: np.ndarray, n_folds: int = 5) -> np.ndarray:
    """Assign training stimuli of a recording to folds; copies of one picture share a fold.

    Parameters
    ----------
    subject : Subject
    ids : int array, shape (n_stimuli,)
    n_folds : int

    Returns
    -------
    int64 array, shape (n_stimuli,)
        See `assign_folds`.
    """
    trials = np.lexsort((subject.session, subject.stimulus_id))
    first = trials[np.searchsorted(subject.stimulus_id[trials], ids)]
    groups, session = subject.picture_of(ids), subject.session[first]
    return assign_folds(ids, n_folds, groups=groups, session=session)


def stimulus_of_rows(split: Split, fold: Fold) -> np.ndarray:
    """Return the place of each training row's stimulus in `split.train`."""
    order = np.argsort(split.train)
    return order[np.searchsorted(split.train[order], fold.train_id)]


def shuffled_places(n: int, seed: int) -> np.ndarray:
    """Return where each of `n` rows comes from; none stays where it was."""
    order = np.random.default_rng(seed).permutation(n)
    out = np.empty(n, np.int64)
    # Each row takes the place of the one before it in a random order.
    out[order] = np.roll(order, 1)
    return out


def _joined(name: str, parts: list[np.ndarray]) -> np.ndarray:
    """Put the splits together; one with fewer components gets columns that say nothing."""
    if name.startswith(("evidence_", "projection_", "reliability_", "variance_")):
        width = max(part.shape[-1] for part in parts)
        nothing = np.nan if name.startswith("reliability_") else 0
        for number, part in enumerate(parts):
            more = [(0, 0)] * (part.ndim - 1) + [(0, width - part.shape[-1])]
            parts[number] = np.pad(part, more, constant_values=nothing)
    return np.concatenate(parts)


def read_decoded(path: str | Path) -> dict[str, np.ndarray]:
    """Read what `decode_subject` wrote.

    Raises
    ------
    InputError
        If the file is damaged.
    """
    try:
        with h5py.File(path, "r") as file:
            return {name: file[name][:] for name in file}
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}). Run 02_decoding again.") from None


def decoding_accuracy(
    features_path: str | Path, decoded_path: str | Path, *, control: bool = False
) -> pd.DataFrame:
    """Correlate decoded with true values over the test stimuli, one row a value.

    Returns
    -------
    DataFrame
        `family`, `correlation` (NaN where the true value is constant), `control`.
    """
    decoded = read_decoded(decoded_path)
    frames = []
    for name in families(features_path):
        true = read_values(features_path, name, decoded["stimulus_id"])
        r = correlations(true, decoded[name].reshape(len(true), -1))
        frames.append(pd.DataFrame({"family": name, "correlation": r, "control": control}))
    return pd.concat(frames, ignore_index=True)


def correlations(true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Correlate over the rows, with sign, every column that was decoded.

    Parameters
    ----------
    true, predicted : float arrays, shape (n, n_values)

    Returns
    -------
    float array, shape (n_decoded,)
        Of the columns without NaN in `predicted`; NaN where one of the two does not vary.
    """
    kept = np.isfinite(predicted).all(0)
    true, predicted = true[:, kept], predicted[:, kept]
    (mean, variance), (mean_predicted, spread) = map(column_moments, (true, predicted))
    varies = (variance >= 1e-4**2) & (spread >= 1e-7**2)
    out = np.full(true.shape[1], np.nan)
    if varies.any():
        true = true[:, varies] - mean[varies].astype(true.dtype)
        predicted = predicted[:, varies] - mean_predicted[varies].astype(predicted.dtype)
        out[varies] = correlation_score(true, predicted)
    return out
