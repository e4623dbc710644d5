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
from minddiff_utils.decoding.components import Components, evidence
from minddiff_utils.decoding.decoders import (
    Decoder,
    Design,
    Method,
    check_keep,
    fit_family,
    make_design,
    save_decoder,
)
from minddiff_utils.decoding.features import families, read_features
from minddiff_utils.decoding.folds import training_folds
from minddiff_utils.decoding.moments import column_moments
from minddiff_utils.io import InputError, atomic_path
from minddiff_utils.storage import open_to_write

# Voxels at a time when their reliability is estimated, which bounds the memory.
VOXELS = 1024
# Estimates of reliability are noisy: no voxel counts for less.
LEAST_RELIABILITY = 0.01


def voxel_weights(subject: Subject, split: Split) -> np.ndarray:
    """Return how reliable each voxel is over repetitions of the training stimuli.

    A standardised voxel without any signal is as loud as the best one; given the same say, it
    only adds noise to every prediction.

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
    *,
    method: Method | None = None,
    keep_structure: float = 1.0,
    n_components: int = 128,
    reliability: tuple[float, float] = (0.02, 0.8),
    n_folds: int = 5,
    shuffle_seed: int | None = None,
    decoders: str | Path | None = None,
    device: str = "cpu",
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
    keep_structure : float
        Share of the values of each block that is decoded, the best by cross-validation.
    n_components : int
        Components of each block that are decoded by themselves, at most.
    reliability : tuple of two float
        Least and most of a component's R²; see `evidence`.
    n_folds : int
    shuffle_seed : int, optional
        Control: deal the training responses out to the wrong stimuli first.
    decoders : str or Path, optional
        Folder to save the decoders in, `<split>/<family>.safetensors`.
    device : str
        Of torch, for the fits.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        If responses or features cannot be decoded, or a file cannot be written.
    """
    method = method or Method()
    decoded = decode_splits(
        subject,
        features_path,
        subject.splits,
        method=method,
        keep_structure=keep_structure,
        n_components=n_components,
        reliability=reliability,
        n_folds=n_folds,
        shuffle_seed=shuffle_seed,
        decoders=decoders,
        device=device,
    )
    settings = {
        **asdict(method),
        "keep_structure": keep_structure,
        "n_components": n_components,
        "reliability": reliability,
        "n_folds": n_folds,
        "shuffle": shuffle_seed,
    }
    try:
        n_bytes = sum(values.nbytes for values in decoded.values())
        with atomic_path(decoded_path) as temporary, open_to_write(temporary, "w", n_bytes) as file:
            file.attrs["settings"] = json.dumps(settings)
            for name, values in decoded.items():
                file[name] = values
    except OSError as error:
        raise InputError(
            f"{decoded_path} cannot be written ({error}). Make room on the disk, or choose "
            "another `run_dir`."
        ) from None
    return Path(decoded_path)


def decode_splits(
    subject: Subject,
    features_path: str | Path,
    splits: Sequence[Split],
    *,
    method: Method | None = None,
    keep_structure: float = 1.0,
    n_components: int = 128,
    reliability: tuple[float, float] = (0.02, 0.8),
    n_folds: int = 5,
    shuffle_seed: int | None = None,
    decoders: str | Path | None = None,
    device: str = "cpu",
    values: bool = True,
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
    method, keep_structure, n_components, reliability, n_folds, shuffle_seed, decoders, device
        As for `decode_subject`.
    values : bool
        Whether also the values of each block are decoded, which `Settings.structure = "values"`
        needs. Without, they are arrays of no columns.
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
    check_keep(keep_structure)
    if n_components < 1:
        raise InputError(f"n_components={n_components}: expected 1 or more.")
    method = method or Method()
    names = names or families(features_path)
    rows: dict[str, list[np.ndarray]] = {}
    bar = tqdm(total=len(splits) * len(names), desc="decoders")
    for number, split in enumerate(splits):
        fold = prepare_fold(subject, split)
        given = (n_folds, shuffle_seed, device, voxels, method.second_band_scale)
        ids, design = training_design(subject, split, fold, *given)
        test_x = fold.test_x[:, voxels]
        place = np.full(len(fold.test_id), number, np.int64)
        found = {"stimulus_id": fold.test_id, "split": place}
        for name in names:
            y = read_features(features_path, name, ids)
            shape, y = y.shape[1:], y.reshape(len(y), -1)
            block = name.startswith("block_")
            keep, n = keep_structure if block else 1.0, n_components * (block or name == "z")
            wanted = values or not block
            decoder, of_components, parts = fit_family(design, y, name, method, keep, n, wanted)
            found[name] = np.zeros((len(place), 0), np.float32)
            if decoder is not None:
                found[name] = decoder.predict(test_x).reshape(-1, *shape)
            if decoder is not None and decoders is not None:
                path = Path(decoders) / fold.split_name / f"{name}.safetensors"
                save_decoder(decoder, path, {**asdict(method), "family": name, "n_folds": n_folds})
            if of_components is not None:
                found |= _evidence(name, parts, of_components, test_x, reliability)
            bar.update()
        for name, part in found.items():
            rows.setdefault(name, []).append(part)
    bar.close()
    return {name: _joined(name, parts) for name, parts in rows.items()}


def training_design(
    subject: Subject,
    split: Split,
    fold: Fold,
    n_folds: int = 5,
    shuffle_seed: int | None = None,
    device: str = "cpu",
    voxels: np.ndarray | slice = slice(None),
    early_band_scale: float = 1.0,
) -> tuple[np.ndarray, Design]:
    """Make the training responses of a split ready; trials of one stimulus share a fold.

    Parameters
    ----------
    subject : Subject
    split : Split
    fold : Fold
        The same, prepared.
    n_folds, shuffle_seed, device
        As for `decode_subject`.
    voxels : bool array, shape (n_voxels,), or slice
        Which are used.
    early_band_scale : float
        See `Method`; it needs voxels of both early and higher areas.

    Returns
    -------
    ids : int array, shape (n_stimuli,)
        The training stimuli, each once, in the order that their features must have.
    design : Design
    """
    ids = split.train
    order = np.argsort(ids)
    stimulus = order[np.searchsorted(ids[order], fold.train_id)]
    x, weights = _shuffled(fold, shuffle_seed)[:, voxels], voxel_weights(subject, split)[voxels]
    early = area_masks(subject.roi).get(EARLY_AREAS)
    early = None if early is None or len(np.unique(early[voxels])) < 2 else early[voxels]
    folds = training_folds(subject, ids, n_folds)
    return ids, make_design(x, folds, weights, stimulus, device, early, early_band_scale)


def _evidence(
    name: str,
    components: Components,
    decoder: Decoder,
    test_x: np.ndarray,
    reliability: tuple[float, float],
) -> dict[str, np.ndarray]:
    """Return what the responses to each test stimulus say about a block, or about `z`."""
    decoded = decoder.predict(test_x)
    projection, value = evidence(components, decoded, decoder.r2, *reliability)
    number = name.removeprefix("block_")
    return {
        f"evidence_{number}": value,
        f"projection_{number}": projection[None],
        f"reliability_{number}": decoder.r2[None],
        f"variance_{number}": components.variance[None],
    }


def _joined(name: str, parts: Sequence[np.ndarray]) -> np.ndarray:
    """Put the splits together; one with fewer components gets columns that say nothing."""
    if name.startswith(("evidence_", "projection_", "reliability_", "variance_")):
        width = max(part.shape[-1] for part in parts)
        missing = np.nan if name.startswith("reliability_") else 0
        parts = [
            np.pad(
                part,
                [(0, 0)] * (part.ndim - 1) + [(0, width - part.shape[-1])],
                constant_values=missing,
            )
            for part in parts
        ]
    return np.concatenate(parts)


def _shuffled(fold: Fold, seed: int | None) -> np.ndarray:
    if seed is None:
        return fold.train_x
    order = np.random.default_rng(seed).permutation(len(fold.train_x))
    # Each row takes the place of the one before it in a random order: none stays where it was.
    out = np.empty_like(fold.train_x)
    out[order] = fold.train_x[np.roll(order, 1)]
    return out


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
        true = read_features(features_path, name, decoded["stimulus_id"])
        r = correlations(true.reshape(len(true), -1), decoded[name].reshape(len(true), -1))
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
