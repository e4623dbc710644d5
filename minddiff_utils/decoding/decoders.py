"""Linear decoders from voxels to the values of one feature space: fitted, kept, read."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from sklearn.base import BaseEstimator
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline

from minddiff_utils.decoding import ridge
from minddiff_utils.decoding.components import PrincipalComponents, evidence
from minddiff_utils.decoding.voxel_selected_ridge import VoxelSelectedRidge
from minddiff_utils.io import InputError, atomic_path, check_room
from minddiff_utils.settings import Chosen, check

# What a picture means; early areas may have less weight in it.
SEMANTIC = ("c", "embedding")
MOST_STRETCH = 3.0  # of a component: what is hardly decoded has no spread to stretch


@dataclass(kw_only=True)
class Method(Chosen, BaseEstimator):
    """How every feature space is decoded; the defaults are this book's.

    Parameters
    ----------
    decoder : {"ridge", "voxel_selected"}
        Ridge regression on all voxels with a penalty by cross-validation, or the paper's:
        for each value the voxels that follow it best, and one penalty.
    target_components : int
        Ridge decodes this many principal components of a feature space, each with its own penalty,
        and puts the values together from them; 0 decodes each value by itself.
    n_voxels_z, n_voxels_c, n_voxels_structure : int
        Voxels for each value, of the paper's decoder.
    alpha : float
        The penalty of the paper's decoder.
    rescale_z : {"none", "global", "target"}
        Whether decoded `z` is stretched about its mean towards the spread of the training
        images', by one factor or by one for each value.
    rescale_power : float
        How far: the factor is raised to this power. 1 is all the way.
    rescale_c : {"component", "none"}
        Whether each decoded component of `c` is stretched to the spread that it has over the
        training stimuli; see `component_stretch`.
    early_band_scale : float
        Ridge regression decodes `c` and the embedding also with voxels of early visual areas
        scaled by this, next to 1 for all others, and keeps what predicts held-out training
        stimuli better: banded ridge with two bands. 1 leaves it out.
    keep_structure : float
        Share of the values of each block that is decoded, those of highest cross-validated
        correlation. With 0 only their components are.
    n_components : int
        Components of `z` and of each block that are decoded by themselves, at most.
    min_reliability, max_reliability : float
        Least and most of a component's R²; see `evidence`.
    n_folds : int
        Of the cross-validation inside the training stimuli.
    device : str
        Of torch, for the fits.

    Raises
    ------
    InputError
        If a value is of another type or out of its range.
    """

    decoder: str = "ridge"
    target_components: int = 512
    n_voxels_z: int = 3000
    n_voxels_c: int = 450
    n_voxels_structure: int = 850
    alpha: float = 0.15
    rescale_z: str = "global"
    rescale_power: float = 0.7
    rescale_c: str = "component"
    early_band_scale: float = 0.5
    keep_structure: float = 1.0
    n_components: int = 128
    min_reliability: float = 0.02
    max_reliability: float = 0.8
    n_folds: int = 5
    device: str = "cpu"

    def __post_init__(self) -> None:
        # Without structure, or its components, a caller may do; a chapter may not.
        free = {"keep_structure", "n_components", "device"}
        check(**{name: value for name, value in vars(self).items() if name not in free})


@dataclass(frozen=True)
class Decoder:
    r"""A fitted linear map from voxels to the selected values of one feature space.

    .. math:: \hat Y = (X - m) L \operatorname{diag}(s) R + \bar y

    Parameters
    ----------
    left : float32 array, shape (n_voxels, n_components)
        From voxels to components of the values, or to the selected values themselves.
    mean_x : float32 array, shape (n_voxels,)
    mean_y : float32 array, shape (n_values,)
    selected : bool array, shape (n_values,)
        Values that are decoded; constant ones may be among them and are predicted by their mean.
    r2, correlation : float32 arrays, shape (n_values,)
        Cross-validated accuracy inside the training stimuli; NaN where a value is constant.
    right : float32 array, shape (n_components, n_selected), or None
        From components to the selected values.
    stretch : float32 array, shape (n_components,), or None
        What each component is stretched by.
    """

    left: np.ndarray
    mean_x: np.ndarray
    mean_y: np.ndarray
    selected: np.ndarray
    r2: np.ndarray
    correlation: np.ndarray
    right: np.ndarray | None = None
    stretch: np.ndarray | None = None

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Decode responses.

        Parameters
        ----------
        x : array, shape (n, n_voxels)

        Returns
        -------
        float32 array, shape (n, n_values)
            NaN in values that were not selected.
        """
        out = np.full((len(x), len(self.selected)), np.nan, np.float32)
        found = (x - self.mean_x) @ self.left
        found = found if self.stretch is None else found * self.stretch
        found = found if self.right is None else found @ self.right
        out[:, self.selected] = found + self.mean_y[self.selected]
        return out

    def save(self, path: str | Path, about: dict[str, object] | None = None) -> Path:
        """Write it as safetensors, which holds numbers only and runs no code when read.

        Parameters
        ----------
        path : str or Path
        about : dict, optional
            How it was fitted; kept as JSON in the file's header, beside the format's version.

        Raises
        ------
        InputError
            If the disk is full; an older file then stays as it was.
        """
        arrays = {k: np.ascontiguousarray(v) for k, v in vars(self).items() if v is not None}
        header = {"format": "minddiff-decoder", "version": "4", "about": json.dumps(about or {})}
        with atomic_path(path) as temporary:
            check_room(temporary, sum(part.nbytes for part in arrays.values()))
            save_file(arrays, temporary, metadata=header)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "Decoder":
        """Read a decoder that `save` wrote.

        Raises
        ------
        InputError
            If the file is missing, damaged, or something else.
        """
        try:
            return cls(**load_file(path))
        except (SafetensorError, OSError, TypeError) as error:
            raise InputError(f"{path} is no decoder ({error}). Run 02_decoding again.") from None


class Design(NamedTuple):
    """Training responses, made ready for any number of fits.

    `x` float32 (n_rows, n_voxels), as given; `stimulus` int64 (n_rows,), from 0; `folds` int64
    (n_stimuli,); `models`, each a `ReliabilityScaler` before a prepared `CrossValidatedRidge`: with
    all voxels, and, where wanted, with early areas scaled down. None for the paper's decoder.
    """

    x: np.ndarray
    stimulus: np.ndarray
    folds: np.ndarray
    models: tuple[Pipeline, ...]

    def fit(self, y: np.ndarray, space: str, method: Method) -> Pipeline | VoxelSelectedRidge:
        """Fit targets of a feature space, float32 (n_stimuli, n_targets).

        For `SEMANTIC` the model is taken that explains most of the variance of held-out training
        stimuli, for others the first.
        """
        if method.decoder != "ridge":
            own = {"z": method.n_voxels_z, "c": method.n_voxels_c}
            n_voxels = own.get(space, method.n_voxels_structure)
            model = VoxelSelectedRidge(n_voxels, method.alpha, device=method.device)
            return model.fit(self.x, y[self.stimulus])
        models = self.models if space in SEMANTIC else self.models[:1]
        for model in models:
            model[-1].fit_targets(y)
        variance = ridge.column_moments(y)[1]
        return max(models, key=lambda model: (variance * model[-1].cv_scores_).sum())


def make_design(
    x: np.ndarray,
    folds: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    stimulus: np.ndarray | None = None,
    early: np.ndarray | None = None,
    method: Method | None = None,
) -> Design:
    """Do what fits on the same responses share.

    Parameters
    ----------
    x : float32 array, shape (n_rows, n_voxels)
        Standardised responses.
    folds : int array, shape (n_stimuli,), optional
        The fold of each stimulus in the cross-validation; five folds at random if not given.
    weights : float array, shape (n_voxels,), optional
        The reliability of each voxel; see `ReliabilityScaler`.
    stimulus : int array, shape (n_rows,), optional
        The stimulus of each row, counted from 0; see `CrossValidatedRidge`.
    early : bool array, shape (n_voxels,), optional
        Voxels of early visual areas, which `early_band_scale` is about.
    method : Method, optional

    Raises
    ------
    InputError
        If responses are not finite, or there are fewer than four stimuli.
    """
    method = method or Method()
    stimulus = np.arange(len(x)) if stimulus is None else np.asarray(stimulus)
    folds = ridge.assign_folds(np.unique(stimulus)) if folds is None else folds
    _check_finite("responses", x)
    if method.decoder != "ridge":
        return Design(x, stimulus, folds, ())
    scalers = [ridge.ReliabilityScaler(weights).fit(x)]
    if early is not None and method.early_band_scale != 1:
        less = scalers[0].scale_ * np.where(early, method.early_band_scale, 1)
        scalers.append(ridge.ReliabilityScaler(less).fit(x))
    models = []
    for scaler in scalers:
        given = x.shape[1] * ridge.PENALTIES, folds, stimulus
        model = ridge.CrossValidatedRidge(*given, device=method.device)
        models.append(make_pipeline(scaler, model.prepare(scaler.transform(x))))
    return Design(x, stimulus, folds, tuple(models))


def _check_finite(name: str, values: np.ndarray) -> None:
    if n := int((~np.isfinite(values)).sum()):
        raise InputError(f"{n} of the training {name} are not finite; leave those trials out.")


class _Fit(NamedTuple):
    """A fit of some targets.

    `left` and `right` as in `Decoder`; `mean_x` (n_voxels,) the mean response, `mean` (n_targets,)
    what it predicts; `held_out` (n_stimuli, n_targets) what is predicted of each training stimulus
    from others.
    """

    left: np.ndarray
    mean_x: np.ndarray
    mean: np.ndarray
    held_out: np.ndarray
    right: np.ndarray | None = None


class Fitted(NamedTuple):
    """The decoders of a feature space; see `fit_decoders`."""

    decoder: Decoder | None
    of_components: Decoder | None
    components: PrincipalComponents | None

    def decode(
        self, x: np.ndarray, space: str, shape: tuple[int, ...], method: Method
    ) -> dict[str, np.ndarray]:
        """What test responses say about the space, its components, and how sure that is.

        Parameters
        ----------
        x : array, shape (n, n_voxels)
        space : str
        shape : tuple of int
            Of the values of one stimulus.
        method : Method

        Returns
        -------
        dict of str to array
            By the names of `decode_subject`, for one split.
        """
        found = {space: np.zeros((len(x), 0), np.float32)}
        if self.decoder is not None:
            found[space] = self.decoder.predict(x).reshape(-1, *shape)
            if self.decoder.stretch is not None:
                plain = replace(self.decoder, stretch=None).predict(x)
                found[f"{space}_unstretched"] = plain.reshape(-1, *shape)
        if self.of_components is None or self.components is None:
            return found
        r2, believed = self.of_components.r2, (method.min_reliability, method.max_reliability)
        projection, value = evidence(self.components, self.of_components.predict(x), r2, *believed)
        spread = self.components.explained_variance_[: len(r2)]
        more = {"evidence": value, "projection": projection[None]}
        more |= {"reliability": r2[None], "variance": spread[None]}
        block = space.removeprefix("block_")
        return found | {f"{what}_{block}": values for what, values in more.items()}


def fit_decoders(
    design: Design,
    y: np.ndarray,
    space: str,
    method: Method,
    components: PrincipalComponents | None = None,
) -> Fitted:
    """Fit the decoder of a feature space, and of `z` and blocks that of the first components.

    Parameters
    ----------
    design : Design
    y : float32 array, shape (n_stimuli, n_values)
    space : str
        "z", "c", "block_1" …, "embedding".
    method : Method
    components : PrincipalComponents, optional
        Of `y`, where an earlier fit of the same method has found them already.

    Returns
    -------
    decoder : Decoder or None
        None for a block where `keep_structure` is 0.
    of_components : Decoder or None
        Of the scores of the first `components`.
    components : PrincipalComponents or None

    Raises
    ------
    InputError
        If features are not finite or not those of the stimuli.
    """
    _check_finite("features", y)
    if len(y) != len(design.folds):
        raise InputError(f"{len(y)} stimuli have features, {len(design.folds)} have responses.")
    block = space.startswith("block_")
    n = method.n_components if block or space == "z" else 0
    keep = method.keep_structure if block else 1.0
    by_components = method.decoder == "ridge" and method.target_components > 0 and keep > 0
    wanted = max(n, method.target_components if by_components else 0)
    decoder = of_components = None
    if wanted:
        components = components or PrincipalComponents(wanted).fit(y)
        scores = components.transform(y)
        parts = _fit(design, scores, space, method)
    if n:
        first = _Fit(parts.left[:, :n], parts.mean_x, parts.mean[:n], parts.held_out[:, :n])
        of_components = _select(first, design, scores[:, :n])
    if keep > 0:
        if by_components and components is not None:
            mean, held_out = map(components.inverse_transform, (parts.mean, parts.held_out))
            whole = _Fit(parts.left, parts.mean_x, mean, held_out, components.components_)
        else:
            whole = _fit(design, y, space, method)
        how = method.rescale_z if space == "z" else "none"
        factor = rescaling(y, whole.held_out, how, method.rescale_power)
        decoder = _select(whole, design, y, keep, factor)
        if whole.right is not None and space == "c" and method.rescale_c == "component":
            decoder = replace(decoder, stretch=component_stretch(scores, parts.held_out))
    return Fitted(decoder, of_components, components)


def _fit(design: Design, y: np.ndarray, space: str, method: Method) -> _Fit:
    model = design.fit(y, space, method)
    if method.decoder == "ridge":
        scaler, model = model
        left = scaler.scale_[:, None] * model.coef_
        return _Fit(left, scaler.mean_, model.intercept_, model.held_out_)
    left = np.ascontiguousarray(model.coef_.T)
    folds = PredefinedSplit(design.folds[design.stimulus])
    predicted = cross_val_predict(model, design.x, y[design.stimulus], cv=folds)
    # The repetitions of a held-out stimulus are averaged, as those of a test stimulus are.
    held_out = pd.DataFrame(predicted).groupby(design.stimulus).mean().to_numpy()
    return _Fit(left, model.mean_x_, model.at_mean_, held_out)


def _select(
    fit: _Fit, design: Design, y: np.ndarray, keep: float = 1.0, factor: np.ndarray | float = 1.0
) -> Decoder:
    """Judge a fit by its predictions of held-out stimuli, and keep its best targets."""
    mean, variance = ridge.column_moments(y)
    constant = ridge.constant_columns(mean, variance)
    r2, correlation = ridge.fold_accuracy(fit.held_out, y, design.folds)
    r2[constant] = correlation[constant] = np.nan
    selected = best_share(correlation, keep)
    mean_y = np.where(constant, mean, fit.mean).astype(np.float32)
    factor = np.where(constant, 0, factor).astype(np.float32)[selected]
    if fit.right is None:
        left, right = fit.left[:, selected] * factor, None
    else:
        left, right = fit.left, fit.right[:, selected] * factor
    return Decoder(left, fit.mean_x, mean_y, selected, r2, correlation, right)


def component_stretch(scores: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    r"""Return what to stretch each decoded component by, to the spread of its true scores.

    .. math:: f_k = \min\bigl(3,\; \max(1,\; \mathrm{sd}(s_k) / \mathrm{sd}(\hat s_k))\bigr)

    A component that is decoded with the reliability :math:`R^2` has the spread :math:`R` of the
    true one: what is decoded of `c` is drawn to the mean scene, and the less reliable components,
    which tell kinds of things apart, most. Stretching makes correlations lower and images better.

    Parameters
    ----------
    scores, held_out : float32 arrays, shape (n_stimuli, n_components)
        True scores of the training stimuli, and predicted ones of each from other stimuli.

    Returns
    -------
    float32 array, shape (n_components,)
    """
    true, predicted = scores.std(0), held_out.std(0)
    factor = np.divide(true, predicted, where=predicted > 0, out=np.ones_like(true))
    return np.clip(factor, 1, MOST_STRETCH)


def rescaling(y: np.ndarray, held_out: np.ndarray, how: str, power: float = 1.0) -> np.ndarray:
    r"""Return what to stretch predictions by, towards the spread of what they predict.

    .. math:: f_j = \frac{\mathrm{sd}(y_j)}{\mathrm{sd}(\hat y_j)} \qquad\text{or}\qquad
              f = \sqrt{\frac{\sum_j \mathrm{var}(y_j)}{\sum_j \mathrm{var}(\hat y_j)}}

    Parameters
    ----------
    y : float array, shape (n_stimuli, n_targets)
        True values of the training stimuli.
    held_out : float array, shape (n_stimuli, n_targets)
        Each predicted by a decoder that was fitted to other stimuli.
    how : {"none", "target", "global"}
        Ones, the first formula, or the second.
    power : float
        That the factors are raised to; with 1 predictions vary as much as what they predict.

    Returns
    -------
    float32 array, shape (n_targets,)
        1 where the predictions do not vary.
    """
    if how == "none":
        return np.ones(y.shape[1], np.float32)
    true, found = (ridge.column_moments(part)[1] for part in (y, held_out))
    if how == "global":
        true, found = np.full_like(true, true.sum()), np.full_like(found, found.sum())
    varies = found > 1e-12 * np.maximum(true, 1e-30)
    ratio = np.divide(true, found, where=varies, out=np.ones_like(true))
    return (ratio ** (power / 2)).astype(np.float32)


def best_share(score: np.ndarray, keep: float) -> np.ndarray:
    """Mark the share `keep` of targets with the highest score; constant ones, NaN, come last."""
    n = max(1, round(keep * len(score)))
    order = np.argsort(-np.nan_to_num(score, nan=-np.inf), kind="stable")
    return np.isin(np.arange(len(score)), order[:n])
