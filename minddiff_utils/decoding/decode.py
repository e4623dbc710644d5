"""Decode a whole recording, every feature space of every split; and ask what decoders rest on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
from himalaya.scoring import correlation_score

from minddiff_utils.datasets import Fold, Split, Subject, estimate_ncsnr, prepare_fold
from minddiff_utils.datasets.reading import open_file
from minddiff_utils.datasets.subject import EARLY_AREAS, area_masks
from minddiff_utils.decoding.decoders import Decoder, Design, Method, fit_decoders, make_design
from minddiff_utils.decoding.features import HINT, feature_spaces, read_features, read_values
from minddiff_utils.decoding.ridge import assign_folds, column_moments
from minddiff_utils.io import atomic_path, open_to_write, progress, row_dataset

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
    shuffled: str | Path | None = None,
    seed: int = 0,
    decoders: str | Path | None = None,
) -> Path:
    """Fit decoders on the training stimuli of every split; decode its test stimuli.

    One feature space is in memory at a time; what depends on the responses alone is computed once.
    Further test sets with the training stimuli of the split, the only one of such a recording, are
    decoded by the same decoders, each into its `test_set_file`.

    Parameters
    ----------
    subject : Subject
    features_path : str or Path
        From `write_features`.
    decoded_path : str or Path
        HDF5: `stimulus_id` int64 (n_test,), `split` int64 (n_test,), and each feature space,
        float32 (n_test, …), NaN where a value was not selected, and `c_unstretched` where
        `rescale_c` has stretched `c`. For `z` and each block `i` also
        what `evidence` returns, `evidence_<i>` float32 (n_test, n_components) and `projection_<i>`
        float32 (n_splits, n_values, n_components); and, float32 (n_splits, n_components),
        `reliability_<i>`, the cross-validated R² of each component, and `variance_<i>`, that of
        its scores over the training stimuli.
    method : Method, optional
        How features are decoded; the defaults of `Method` if not given.
    shuffled : str or Path, optional
        Where to write the same of a control: the training responses permuted over the stimuli.
    seed : int
        Of the permutation.
    decoders : str or Path, optional
        Folder to save the decoders in, `<split>/<feature space>.safetensors`.

    Returns
    -------
    Path
        `decoded_path`.

    Raises
    ------
    InputError
        If responses or features cannot be decoded, or there is no room on the disk.
    """
    method, path = method or Method(), Path(decoded_path)
    given = method, None if shuffled is None else seed, decoders
    settings = {**asdict(method), "shuffle": None}
    first, *others = subject.splits
    further = same_training(subject)
    groups = [[first, *further], *([split] for split in others)]
    found = [decode_tests(subject, features_path, splits, *given) for splits in groups]
    for test_set, values in zip(further, found[0][1 : 1 + len(further)], strict=True):
        _write_decoded(test_set_file(path.parent, test_set.name), values, settings)
    if shuffled is not None:
        controls = join_splits([parts[-1] for parts in found])
        _write_decoded(Path(shuffled), controls, {**settings, "shuffle": seed})
    return _write_decoded(path, join_splits([parts[0] for parts in found]), settings)


def same_training(subject: Subject) -> list[Split]:
    """Return the further test sets that the decoders of the first split serve."""
    trained = np.sort(subject.splits[0].train)
    return [s for s in subject.test_sets if np.array_equal(np.sort(s.train), trained)]


def test_set_file(folder: str | Path, name: str) -> Path:
    """Return where a subject's folder keeps what was decoded of a further test set."""
    return Path(folder) / "test_sets" / f"{name}.h5"


def _write_decoded(path: Path, decoded: Mapping[str, np.ndarray], settings: dict) -> Path:
    n_bytes = sum(values.nbytes for values in decoded.values())
    with atomic_path(path) as temporary, open_to_write(temporary, "w", n_bytes) as file:
        file.attrs["settings"] = json.dumps(settings)
        for name, values in decoded.items():
            row_dataset(file, name, values.shape, values.dtype)[...] = values
    return path


def decode_tests(
    subject: Subject,
    features_path: str | Path,
    splits: Sequence[Split],
    method: Method,
    shuffle_seed: int | None = None,
    decoders: str | Path | None = None,
    names: Sequence[str] = (),
    voxels: np.ndarray | slice = slice(None),
) -> list[dict[str, np.ndarray]]:
    """Decode the test stimuli of splits with one training set, to which decoders are fitted once.

    Parameters
    ----------
    subject : Subject
    features_path : str or Path
    splits : sequence of Split
        The same training stimuli in each; they need not be the subject's own splits.
    method : Method
        Blocks of which nothing is kept are arrays of no columns.
    shuffle_seed : int, optional
        Decode the first split again with the training responses permuted over the stimuli, as a
        control.
    decoders : str or Path, optional
        Folder to save the decoders in, under the name of the first split.
    names : sequence of str
        Feature spaces; all of the file if none are given.
    voxels : bool array, shape (n_voxels,), or slice
        Which are used.

    Returns
    -------
    list of dict
        For each split, and then for the control, what `read_decoded` returns of it alone; see
        `join_splits`.

    Raises
    ------
    InputError
        If responses or features cannot be decoded.
    """
    first, ids = splits[0], np.unique(np.concatenate([split.test for split in splits]))
    fold = prepare_fold(subject, replace(first, test=ids))
    rows = [np.searchsorted(ids, split.test) for split in splits]
    designs = [training_design(subject, first, fold, method, None, voxels)]
    if shuffle_seed is not None:
        designs.append(training_design(subject, first, fold, method, shuffle_seed, voxels))
        rows.append(rows[0])
    found = [{"stimulus_id": fold.test_id[some], "split": 0 * some} for some in rows]
    for name in progress(names or feature_spaces(features_path), f"decoders of {first.name}"):
        y = read_features(features_path, name, first.train)
        shape, y = y.shape[1:], y.reshape(len(y), -1)
        fitted = [fit_decoders(designs[0], y, name, method)]
        fitted += [fit_decoders(d, y, name, method, fitted[0].components) for d in designs[1:]]
        if decoders is not None and fitted[0].decoder is not None:
            path = Path(decoders) / first.name / f"{name}.safetensors"
            fitted[0].decoder.save(path, {**asdict(method), "feature_space": name})
        by_split = [*fitted[:1] * len(splits), *fitted[1:]]
        for part, some, one in zip(found, rows, by_split, strict=True):
            part |= one.decode(fold.test_x[some][:, voxels], name, shape, method)
    return found


def training_design(
    subject: Subject,
    split: Split,
    fold: Fold,
    method: Method,
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
    x = fold.train_x
    if shuffle_seed is not None:
        x = x[shuffled_places(len(x), shuffle_seed)]
    early = early_voxels(subject, voxels)
    folds = training_folds(subject, split.train, method.n_folds)
    weights = voxel_weights(subject, split)[voxels]
    return make_design(x[:, voxels], folds, weights, stimulus_of_rows(split, fold), early, method)


def early_voxels(subject: Subject, voxels: np.ndarray | slice = slice(None)) -> np.ndarray | None:
    """Return which voxels belong to early visual areas, bool (n,); None unless some but not all."""
    early = area_masks(subject.roi).get(EARLY_AREAS)
    return None if early is None or len(np.unique(early[voxels])) < 2 else early[voxels]


def training_folds(subject: Subject, ids: np.ndarray, n_folds: int = 5) -> np.ndarray:
    """Assign training stimuli of a recording to folds; copies of one image share a fold.

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
    first = pd.Series(subject.session).groupby(subject.stimulus_id).min().loc[ids].to_numpy()
    return assign_folds(ids, n_folds, groups=subject.picture_of(ids), session=first)


def stimulus_of_rows(split: Split, fold: Fold) -> np.ndarray:
    """Return the place of each training row's stimulus in `split.train`."""
    return pd.Index(split.train).get_indexer(fold.train_id)


def shuffled_places(n: int, seed: int) -> np.ndarray:
    """Return where each of `n` rows comes from; none stays where it was."""
    order = np.random.default_rng(seed).permutation(n)
    out = np.empty(n, np.int64)
    # Each row takes the place of the one before it in a random order.
    out[order] = np.roll(order, 1)
    return out


def join_splits(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Put what `decode_tests` found of several splits below one another, numbered from 0."""
    numbered = [{**part, "split": part["split"] + k} for k, part in enumerate(parts)]
    return {name: _joined(name, [part[name] for part in numbered]) for name in parts[0]}


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
    with open_file(Path(path), HINT) as file:
        return {name: file[name][:] for name in file}


def decoding_accuracy(features_path: str | Path, decoded_path: str | Path) -> pd.DataFrame:
    """Correlate decoded with true values over the test stimuli, one row a value.

    Returns
    -------
    DataFrame
        `feature_space`, `correlation` (NaN where the true value is constant).
    """
    decoded = read_decoded(decoded_path)
    frames = []
    for name in feature_spaces(features_path):
        true = read_values(features_path, name, decoded["stimulus_id"])
        r = correlations(true, decoded[name].reshape(len(true), -1))
        frames.append(pd.DataFrame({"feature_space": name, "correlation": r}))
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
    true = true[:, varies] - mean[varies].astype(true.dtype)
    predicted = predicted[:, varies] - mean_predicted[varies].astype(predicted.dtype)
    out[varies] = correlation_score(true, predicted)
    return out


# --- what decoders rest on, and how well they could do


def pattern_shares(decoder: Decoder, x: np.ndarray) -> np.ndarray:
    r"""Return how much of a decoder's activation pattern lies in each voxel.

    A decoder's weights say how to read a value out, not which voxels follow it: a voxel of noise
    alone gets a large weight where it cancels the noise of others. The pattern says what the
    weights do not, how responses :math:`x_v` change with what is decoded (Haufe et al. 2014):

    .. math:: a_{vj} = \frac{\mathrm{cov}(x_v, \hat y_j)}{\mathrm{var}(\hat y_j)}, \qquad
              P_v \propto \sum_j \mathrm{var}(\hat y_j)^2 \, a_{vj}^2 .

    :math:`P_v` is the variance of a voxel that goes along with a decoded value, averaged over all
    values by how much of them is decoded; principal components in the place of values give the
    same.

    Parameters
    ----------
    decoder : Decoder
    x : array, shape (n_rows, n_voxels)
        The training responses.

    Returns
    -------
    float array, shape (n_voxels,)
        Sums to 1.

    References
    ----------
    Haufe et al. 2014, On the interpretation of weight vectors of linear models in multivariate
    neuroimaging (NeuroImage).
    """
    between = (x - decoder.mean_x) @ decoder.left
    covariance = x.T @ (between - between.mean(0))
    if decoder.right is None:
        power = np.square(covariance).sum(1)
    else:
        power = np.einsum("vk,vk->v", covariance @ (decoder.right @ decoder.right.T), covariance)
    return power / power.sum()


def density_by_region(subject: Subject, shares: dict[str, np.ndarray]) -> pd.DataFrame:
    """Compare each region's share of the patterns with its share of the voxels.

    Parameters
    ----------
    subject : Subject
    shares : dict of feature space to array, shape (n_voxels,)
        From `pattern_shares`.

    Returns
    -------
    DataFrame
        `feature_space`, `roi`, `density`: 1 where a region's voxels follow as much as the average.
    """
    rows = [
        {"feature_space": space, "roi": roi, "density": share[mask].sum() / mask.mean()}
        for space, share in shares.items()
        for roi, mask in subject.roi.items()
        if mask.any()
    ]
    return pd.DataFrame(rows)


def decoder_reliability(subject: Subject, decoders: str | Path, space: str) -> np.ndarray:
    r"""Return the highest correlation that noise in the test responses lets a decoder reach.

    Not a noise ceiling of voxels: what repeats of a decoded value need not be the image's.

    The test images are decoded from each repetition alone. With the variance
    :math:`\sigma^2_w` over the :math:`n` repetitions of an image and :math:`\sigma^2_b` of their
    means over images, a share :math:`\rho = 1 - \sigma^2_w / (n \sigma^2_b)` of what is decoded
    from the mean response would come again. Noise correlates with nothing, so the correlation
    with the true value is :math:`\sqrt\rho` at most.

    Parameters
    ----------
    subject : Subject
    decoders : str or Path
        Folder of `decode_subject`.
    space : str

    Returns
    -------
    float array, shape (n_decoded,)
        NaN for values that do not vary; all NaN if not every test image was repeated.
    """
    first = np.min(subject.n_repetitions(np.concatenate([s.test for s in subject.splits])))
    ids, parts = subject.stimulus_id, []
    number = pd.Series(ids).groupby(ids).cumcount().to_numpy()
    for split in subject.splits:
        decoder = Decoder.load(Path(decoders) / split.name / f"{space}.safetensors")
        # Of the test stimuli one repetition at a time: no split has a stimulus of the number -1.
        others = (np.isin(ids, split.test) & (number != one) for one in range(first))
        once = (replace(subject, stimulus_id=np.where(left_out, -1, ids)) for left_out in others)
        parts.append(np.stack([decoder.predict(prepare_fold(o, split).test_x) for o in once]))
    decoded = np.concatenate(parts, axis=1)
    decoded = decoded[:, :, np.isfinite(decoded).all((0, 1))]
    if first < 2 or decoded.shape[1] < 2:
        return np.full(decoded.shape[2], np.nan)
    within = decoded.var(0, ddof=1).mean(0)
    between = decoded.mean(0).var(0, ddof=1)
    between[between <= 1e-10] = np.nan
    return np.sqrt(np.clip(1 - np.float32(within / (first * between)), 0, 1))
