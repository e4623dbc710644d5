"""Linear decoders from voxels to features: kernel ridge with a penalty for every target."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from himalaya.kernel_ridge import KernelRidgeCV
from himalaya.scoring import correlation_score, r2_score
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from sklearn.model_selection import KFold
from tqdm import tqdm

from minddiff_utils.components import Components, evidence, fit_components
from minddiff_utils.datasets import Fold, Split, Subject, estimate_ncsnr, prepare_fold
from minddiff_utils.features import families, feature_size, read_features
from minddiff_utils.files import InputError, atomic_path

__all__ = [
    "Decoder",
    "decode_subject",
    "decoding_accuracy",
    "fit_decoder",
    "load_decoder",
    "read_decoded",
    "roi_accuracies",
    "save_decoder",
    "voxel_weights",
]

FORMAT = "minddiff-decoder-2"
# Penalties a voxel: with standardised responses the kernel grows with the number of voxels.
PENALTIES = np.logspace(-2, 2, 9)
# Features that are decoded together, in bytes: they share the costly part of the fit.
TOGETHER = 2**29
# Voxels at a time when their reliability is estimated, which bounds the memory.
VOXELS = 1024
# Estimates of reliability are noisy: no voxel counts for less.
LEAST_RELIABILITY = 0.01


@dataclass(frozen=True)
class Decoder:
    """A fitted linear map from voxels to the selected targets of one family.

    Parameters
    ----------
    train_x : float32 array, shape (n_train, n_voxels)
        Centred, and times `scale`.
    dual : float32 array, shape (n_train, n_selected)
        Dual coefficients; the weights of the voxels are `scale * (train_x.T @ dual)`.
    mean_x, scale : float32 arrays, shape (n_voxels,)
    mean_y : float32 array, shape (n_targets,)
    selected : bool array, shape (n_targets,)
        Targets that are decoded; constant ones are among them and predicted by their mean.
    penalty, score : float32 arrays, shape (n_targets,)
        Ridge penalty and cross-validated R²; NaN where a target is constant.
    """

    train_x: np.ndarray
    dual: np.ndarray
    mean_x: np.ndarray
    scale: np.ndarray
    mean_y: np.ndarray
    selected: np.ndarray
    penalty: np.ndarray
    score: np.ndarray

    def part(self, columns: slice, keep: float) -> "Decoder":
        """Return the decoder of some targets, the best share `keep` of them by `score`."""
        score = self.score[columns]
        chosen = _best(score, keep)
        places = (np.cumsum(self.selected) - 1)[columns][chosen]
        return Decoder(
            self.train_x,
            self.dual[:, places],
            self.mean_x,
            self.scale,
            self.mean_y[columns],
            chosen,
            self.penalty[columns],
            score,
        )

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Decode responses.

        Parameters
        ----------
        x : array, shape (n, n_voxels)

        Returns
        -------
        float32 array, shape (n, n_targets)
            NaN in targets that were not selected.
        """
        kernel = ((x - self.mean_x) * self.scale) @ self.train_x.T
        out = np.full((len(x), len(self.selected)), np.nan, np.float32)
        out[:, self.selected] = kernel @ self.dual + self.mean_y[self.selected]
        return out


def fit_decoder(
    x: np.ndarray,
    y: np.ndarray,
    keep: float = 1.0,
    n_folds: int = 5,
    block: int = 4096,
    weights: np.ndarray | None = None,
) -> Decoder:
    r"""Fit ridge regression from voxels to every target, each with its own penalty.

    .. math:: \hat W = \arg\min_W \lVert Y - X W \rVert^2
              + \sum_j \alpha_j \sum_v (w_{vj} / r_v)^2

    Parameters
    ----------
    x : float32 array, shape (n_stimuli, n_voxels)
        Standardised responses.
    y : float32 array, shape (n_stimuli, n_targets)
    keep : float
        Share of the targets that are decoded: those with the best cross-validated R².
    n_folds : int
        Folds of the cross-validation, consecutive blocks of stimuli; at most one a stimulus pair.
    block : int
        Targets at a time, which bounds the memory.
    weights : float array, shape (n_voxels,), optional
        How much of a say each voxel has, `r` in the formula; all the same if not given. Only
        their ratios matter.

    Returns
    -------
    Decoder

    Raises
    ------
    InputError
        If responses or targets are not finite, there are fewer than four stimuli, or `keep` is
        not in (0, 1].
    """
    _check(x, y, keep)
    mean_x, mean_y = x.mean(0), y.mean(0)
    scale = np.ones(x.shape[1]) if weights is None else np.asarray(weights, float)
    scale = (scale / np.sqrt(np.square(scale).mean())).astype(np.float32)
    x, y = (x - mean_x) * scale, y - mean_y
    varies = y.std(0) > 1e-6 * np.maximum(1, np.abs(mean_y))
    folds = KFold(min(n_folds, len(x) // 2))
    model = KernelRidgeCV(
        alphas=x.shape[1] * PENALTIES,
        cv=folds,
        warn=False,
        solver_params={
            "score_func": r2_score,
            "n_targets_batch": block,
            "n_targets_batch_refit": block,
        },
    )
    score = np.full(y.shape[1], np.nan, np.float32)
    penalty, dual = score.copy(), np.zeros_like(y, dtype=np.float32)
    if varies.any():
        model.fit(x, y[:, varies])
        score[varies], penalty[varies] = model.cv_scores_.ravel(), model.best_alphas_
        dual[:, varies] = model.dual_coef_
    selected = _best(score, keep)
    return Decoder(x, dual[:, selected], mean_x, scale, mean_y, selected, penalty, score)


def _check_keep(keep: float) -> None:
    if not 0 < keep <= 1:
        raise InputError(f"keep={keep}: the share of targets to keep must be above 0, at most 1.")


def _check(x: np.ndarray, y: np.ndarray, keep: float) -> None:
    _check_keep(keep)
    if len(x) < 4:
        raise InputError(f"{len(x)} training stimuli; a cross-validated decoder needs at least 4.")
    for name, values in (("responses", x), ("features", y)):
        if not np.isfinite(values).all():
            n = int((~np.isfinite(values)).sum())
            raise InputError(f"{n} of the training {name} are not finite; leave those trials out.")


def _best(score: np.ndarray, keep: float) -> np.ndarray:
    """Mark the share `keep` of targets with the highest score; constant ones have none."""
    n = max(1, round(keep * len(score)))
    order = np.argsort(-np.nan_to_num(score, nan=0.0 if keep == 1 else -np.inf), kind="stable")
    chosen = np.zeros(len(score), bool)
    chosen[order[:n]] = True
    return chosen


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


# --------------------------------------------------------------------------------- saved decoders


def save_decoder(decoder: Decoder, path: str | Path) -> Path:
    """Write a decoder as safetensors, which holds numbers only and runs no code when read."""
    tensors = {name: np.ascontiguousarray(value) for name, value in vars(decoder).items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"format": FORMAT})
    return Path(path)


def load_decoder(path: str | Path) -> Decoder:
    """Read a decoder that `save_decoder` wrote.

    Raises
    ------
    InputError
        If the file is missing, damaged, or something else.
    """
    try:
        with safe_open(path, "np") as file:
            if (file.metadata() or {}).get("format") != FORMAT:
                raise InputError(f"{path} is no decoder of this version ({FORMAT}).")
            return Decoder(**{name: file.get_tensor(name) for name in file.keys()})
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read ({error}). Run 02_decoding again.") from None


# ------------------------------------------------------------------------------ a whole recording


def decode_subject(
    subject: Subject,
    features_path: str | Path,
    decoded_path: str | Path,
    *,
    keep_structure: float = 1.0,
    n_components: int = 128,
    reliability: tuple[float, float] = (0.02, 0.8),
    n_folds: int = 5,
    shuffle_seed: int | None = None,
    decoders: str | Path | None = None,
) -> Path:
    """Fit decoders on the training stimuli of every split; decode its test stimuli.

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
    keep_structure : float
        Share of the values of each block that is decoded, the best by cross-validation.
    n_components : int
        Components of each block that are decoded, at most.
    reliability : tuple of two float
        Least and most of a component's R²; see `evidence`.
    n_folds : int
    shuffle_seed : int, optional
        Control: deal the training responses out to the wrong stimuli first.
    decoders : str or Path, optional
        Folder to save the decoders in, `<split>/<family>.safetensors`.

    Returns
    -------
    Path
    """
    _check_keep(keep_structure)
    names = families(features_path)
    rows: dict[str, list[np.ndarray]] = {}
    bar = tqdm(total=len(subject.splits) * len(names), desc="decoders")
    for number, split in enumerate(subject.splits):
        fold, weights = prepare_fold(subject, split), voxel_weights(subject, split)
        train_x = _shuffled(fold, shuffle_seed)
        found = {
            "stimulus_id": fold.test_id,
            "split": np.full(len(fold.test_id), number, np.int64),
        }
        for group in _groups(features_path, names, len(fold.train_id)):
            y = {name: read_features(features_path, name, fold.train_id) for name in group}
            components = _components(y, n_components)
            fitted = _fit_families(train_x, y, components, keep_structure, n_folds, weights)
            for name in group:
                decoded = fitted[name].predict(fold.test_x)
                found[name] = decoded.reshape(-1, *y[name].shape[1:])
                if decoders is not None:
                    path = Path(decoders) / fold.split_name / f"{name}.safetensors"
                    save_decoder(fitted[name], path)
            for name, parts in components.items():
                decoder = fitted[f"components of {name}"]
                found |= _evidence(name, parts, decoder, fold.test_x, reliability)
            bar.update(len(group))
        for name, values in found.items():
            rows.setdefault(name, []).append(values)
    bar.close()
    settings = {
        "keep_structure": keep_structure,
        "n_components": n_components,
        "reliability": reliability,
        "n_folds": n_folds,
        "shuffle": shuffle_seed,
    }
    with atomic_path(decoded_path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["settings"] = json.dumps(settings)
        for name, parts in rows.items():
            file[name] = _joined(name, parts)
    return Path(decoded_path)


def _components(y: Mapping[str, np.ndarray], n_components: int) -> dict[str, Components]:
    """Find the components of `z` and of every block among some families."""
    return {
        name: fit_components(values.reshape(len(values), -1), n_components)
        for name, values in y.items()
        if name == "z" or name.startswith("block_")
    }


def _evidence(
    name: str,
    components: Components,
    decoder: Decoder,
    test_x: np.ndarray,
    reliability: tuple[float, float],
) -> dict[str, np.ndarray]:
    """Return what the responses to each test stimulus say about a block, or about `z`."""
    decoded = decoder.predict(test_x)
    projection, value = evidence(components, decoded, decoder.score, *reliability)
    number = name.removeprefix("block_")
    return {
        f"evidence_{number}": value,
        f"projection_{number}": projection[None],
        f"reliability_{number}": decoder.score[None],
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


def _groups(features_path: str | Path, names: Sequence[str], n: int) -> list[list[str]]:
    """Split the families into groups whose features of `n` stimuli fit into `TOGETHER` bytes."""
    groups: list[list[str]] = []
    room = 0
    for name in names:
        size = 4 * n * feature_size(features_path, name)
        if not groups or size > room:
            groups.append([])
            room = TOGETHER
        groups[-1].append(name)
        room -= size
    return groups


def _fit_families(
    x: np.ndarray,
    y: Mapping[str, np.ndarray],
    components: Mapping[str, Components],
    keep_structure: float,
    n_folds: int,
    weights: np.ndarray,
) -> dict[str, Decoder]:
    """Fit families and the scores of their components at once: the costly part is shared.

    Of each block only the best values are kept, and all components.
    """
    flat = {name: values.reshape(len(values), -1) for name, values in y.items()}
    flat |= {f"components of {name}": c.scores(flat[name]) for name, c in components.items()}
    whole = fit_decoder(x, np.concatenate([*flat.values()], axis=1), 1.0, n_folds, weights=weights)
    ends = np.cumsum([0] + [values.shape[1] for values in flat.values()])
    return {
        name: whole.part(
            slice(ends[place], ends[place + 1]),
            keep_structure if name.startswith("block_") else 1.0,
        )
        for place, name in enumerate(flat)
    }


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
        r = _correlation(true.reshape(len(true), -1), decoded[name].reshape(len(true), -1))
        frames.append(pd.DataFrame({"family": name, "correlation": r, "control": control}))
    return pd.concat(frames, ignore_index=True)


def _correlation(true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Signed correlation over rows of every column; only columns that vary and were decoded."""
    kept = np.isfinite(predicted).all(0)
    true, predicted = true[:, kept], predicted[:, kept]
    small = (true.std(0) < 1e-4) | (predicted.std(0) < 1e-7)
    out = np.full(true.shape[1], np.nan)
    if len(true) > 1 and not small.all():
        out[~small] = correlation_score(true[:, ~small], predicted[:, ~small])
    return out


def roi_accuracies(
    subject: Subject,
    features_path: str | Path,
    *,
    names: Sequence[str] = ("z", "c", "block_1", "block_6"),
    n_targets: int = 300,
    n_folds: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Decode a sample of each family's values from the voxels of each region alone.

    Parameters
    ----------
    subject : Subject
    features_path : str or Path
    names : sequence of str
        Families.
    n_targets : int
        Values of each family, drawn at random: enough for a mean, and quick.
    n_folds : int
    seed : int

    Returns
    -------
    DataFrame
        `family`, `roi`, `correlation`: one row a value.
    """
    rng = np.random.default_rng(seed)
    folds = [prepare_fold(subject, split) for split in subject.splits]
    weights = [voxel_weights(subject, split) for split in subject.splits]
    rows = []
    for name in tqdm([name for name in names if name in families(features_path)], "regions"):
        true = [read_features(features_path, name, fold.test_id) for fold in folds]
        y = [read_features(features_path, name, fold.train_id) for fold in folds]
        size = true[0][0].size
        chosen = np.sort(rng.choice(size, min(n_targets, size), replace=False))
        y = [part.reshape(len(part), -1)[:, chosen] for part in y]
        truth = np.concatenate([part.reshape(len(part), -1)[:, chosen] for part in true])
        for roi, mask in subject.roi.items():
            predicted = [
                fit_decoder(
                    fold.train_x[:, mask], part, 1.0, n_folds, weights=weight[mask]
                ).predict(fold.test_x[:, mask])
                for fold, part, weight in zip(folds, y, weights, strict=True)
            ]
            r = _correlation(truth, np.concatenate(predicted))
            rows.append(pd.DataFrame({"family": name, "roi": roi, "correlation": r}))
    return pd.concat(rows, ignore_index=True)
