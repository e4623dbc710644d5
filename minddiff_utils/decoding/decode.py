"""Decode a whole recording: every family of features, from the responses of every split."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from himalaya.scoring import correlation_score
from tqdm import tqdm

from minddiff_utils.datasets import Fold, Split, Subject, estimate_ncsnr, prepare_fold
from minddiff_utils.datasets.areas import EARLY_AREAS, area_masks
from minddiff_utils.decoding.components import PrincipalComponents, evidence
from minddiff_utils.decoding.decoders import (
    Decoder,
    Design,
    Method,
    fit_family,
    make_design,
    save_decoder,
)
from minddiff_utils.decoding.features import families, read_features, read_values
from minddiff_utils.decoding.folds import training_folds
from minddiff_utils.decoding.moments import column_moments
from minddiff_utils.io import InputError, atomic_path
from minddiff_utils.storage import open_to_write, row_dataset

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
    decoded = decode_splits(
        subject, features_path, subject.splits, method,
        shuffle_seed=shuffle_seed, decoders=decoders,
    )  # fmt: skip
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
    method: Method | None = None,
    *,
    names: Sequence[str] = (),
    voxels: np.ndarray | slice = slice(None),
    shuffle_seed: int | None = None,
    decoders: str | Path | None = None,
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
    method = method or Method()
    names = names or families(features_path)
    rows: dict[str, list[np.ndarray]] = {}
    bar = tqdm(total=len(splits) * len(names), desc="decoders")
    for number, split in enumerate(splits):
        fold = prepare_fold(subject, split)
        design = training_design(subject, split, fold, method, shuffle_seed, voxels)
        test_x = fold.test_x[:, voxels]
        found = {"stimulus_id": fold.test_id, "split": np.full(len(test_x), number, np.int64)}
        for name in names:
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
                part = _evidence(components, of_components, test_x, method.reliability)
                block = name.removeprefix("block_")
                found |= {f"{key}_{block}": values for key, values in part.items()}
            bar.update()
        for name, part in found.items():
            rows.setdefault(name, []).append(part)
    bar.close()
    return {name: _joined(name, parts) for name, parts in rows.items()}


def _evidence(
    components: PrincipalComponents,
    decoder: Decoder,
    test_x: np.ndarray,
    bounds: tuple[float, float],
) -> dict[str, np.ndarray]:
    """Return what the responses to each test stimulus say about a block, or about `z`."""
    r2, variance = decoder.r2, components.explained_variance_[: len(decoder.r2)]
    projection, value = evidence(components, decoder.predict(test_x), r2, *bounds)
    named = {"projection": projection, "reliability": r2, "variance": variance}
    return {"evidence": value, **{name: part[None] for name, part in named.items()}}


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


def _joined(name: str, parts: Sequence[np.ndarray]) -> np.ndarray:
    """Put the splits together; one with fewer components gets columns that say nothing."""
    if name.startswith(("evidence_", "projection_", "reliability_", "variance_")):
        width = max(part.shape[-1] for part in parts)
        missing = np.nan if name.startswith("reliability_") else 0
        whole = [np.full((*part.shape[:-1], width), missing, np.float32) for part in parts]
        for one, part in zip(whole, parts, strict=True):
            one[..., : part.shape[-1]] = part
        parts = whole
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
    moments = [column_moments(part) for part in (true, predicted)]
    small = (moments[0][1] < 1e-4**2) | (moments[1][1] < 1e-7**2)
    out = np.full(true.shape[1], np.nan)
    if len(true) > 1 and not small.all():
        pairs = zip((true, predicted), moments, strict=True)
        centred = [part[:, ~small] - mean[~small].astype(part.dtype) for part, (mean, _) in pairs]
        out[~small] = correlation_score(*centred)
    return out
