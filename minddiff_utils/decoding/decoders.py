"""Linear decoders from voxels to the values of one family of features: fitted, kept, read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from minddiff_utils.decoding.components import Components, fit_components
from minddiff_utils.decoding.folds import deal_folds
from minddiff_utils.decoding.moments import column_moments, constant_columns
from minddiff_utils.decoding.ridge import RidgePath
from minddiff_utils.decoding.voxel_selected_ridge import VoxelSelectedRidge
from minddiff_utils.io import InputError, atomic_path

FORMAT = "minddiff-decoder"
VERSION = 3
# Penalties a voxel: with standardised responses the kernel grows with the number of voxels.
PENALTIES = np.logspace(-2, 2, 9)
KINDS = ("ridge", "voxel_selected")
SELECT_BY = ("correlation", "r2")
RESCALE = ("none", "global", "target")
# What a picture means; early areas may have less of a say in it.
SEMANTIC = ("c", "embedding")


@dataclass(frozen=True)
class Method:
    """How features are decoded; the defaults are this book's.

    Parameters
    ----------
    decoder : {"ridge", "voxel_selected"}
        Ridge regression on all voxels with a penalty by cross-validation, or the paper's:
        for each value the voxels that follow it best, and one penalty.
    target_components : int
        Ridge decodes this many principal components of a family, each with its own penalty, and
        puts the values together from them; 0 decodes each value by itself.
    n_voxels_z, n_voxels_c, n_voxels_structure : int
        Voxels for each value, of the paper's decoder.
    alpha : float
        The penalty of the paper's decoder.
    select_by : {"correlation", "r2"}
        Cross-validated accuracy that the best share of structure is chosen by.
    rescale_z : {"none", "global", "target"}
        Whether decoded `z` is stretched about its mean towards the spread of the training
        pictures', by one factor or by one for each value.
    rescale_power : float
        How far: the factor is raised to this power. 1 is all the way.
    early_band_scale : float
        Ridge regression decodes `c` and the embedding also with this much of a say for voxels of
        early visual areas, next to 1 for all others, and keeps what predicts held-out training
        stimuli better: banded ridge with two bands. 1 leaves it out.
    """

    decoder: str = "ridge"
    target_components: int = 512
    n_voxels_z: int = 3000
    n_voxels_c: int = 450
    n_voxels_structure: int = 850
    alpha: float = 0.15
    select_by: str = "correlation"
    rescale_z: str = "global"
    rescale_power: float = 0.7
    early_band_scale: float = 0.5

    def __post_init__(self) -> None:
        for name, known in (("decoder", KINDS), ("select_by", SELECT_BY), ("rescale_z", RESCALE)):
            if getattr(self, name) not in known:
                value = getattr(self, name)
                raise InputError(f"{name}={value!r}: expected one of {', '.join(known)}.")
        if self.target_components < 0:
            raise InputError(f"target_components={self.target_components}: expected 0 or more.")
        for name in ("n_voxels_z", "n_voxels_c", "n_voxels_structure"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}: expected 1 or more.")
        if not 0 <= self.rescale_power <= 1:
            value = self.rescale_power
            raise InputError(f"rescale_power={value}: expected a value from 0 to 1.")
        if not 0 < self.early_band_scale <= 1:
            raise InputError(
                f"early_band_scale={self.early_band_scale}: expected above 0, at most 1."
            )
        if not self.alpha > 0:
            raise InputError(f"alpha={self.alpha}: the penalty must be above 0.")

    @property
    def second_band_scale(self) -> float:
        """`early_band_scale`; 1, which needs no second fit, with the paper's decoder."""
        return self.early_band_scale if self.decoder == "ridge" else 1.0

    def n_voxels(self, family: str) -> int:
        """Voxels for each value of a family."""
        return {"z": self.n_voxels_z, "c": self.n_voxels_c}.get(family, self.n_voxels_structure)


@dataclass(frozen=True)
class Decoder:
    r"""A fitted linear map from voxels to the selected values of one family.

    .. math:: \hat Y = (X - m) L R + \bar y

    Parameters
    ----------
    left : float32 array, shape (n_voxels, n_between)
        From voxels to what is decoded: components of the values, or training stimuli.
    right : float32 array, shape (n_between, n_selected), or None
        From there to the values; None if `left` gives the selected values themselves.
    mean_x : float32 array, shape (n_voxels,)
    mean_y : float32 array, shape (n_values,)
    selected : bool array, shape (n_values,)
        Values that are decoded; constant ones may be among them and are predicted by their mean.
    r2, correlation : float32 arrays, shape (n_values,)
        Cross-validated accuracy inside the training stimuli; NaN where a value is constant.
    """

    left: np.ndarray
    right: np.ndarray
    mean_x: np.ndarray
    mean_y: np.ndarray
    selected: np.ndarray
    r2: np.ndarray
    correlation: np.ndarray

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
        found = found if self.right is None else found @ self.right
        out[:, self.selected] = found + self.mean_y[self.selected]
        return out

    def weights(self, places: np.ndarray) -> np.ndarray:
        """Return the weights of every voxel for some selected values, (n_voxels, n_places).

        `places` counts the selected values from 0.
        """
        if self.right is None:
            return self.left[:, places]
        return self.left @ self.right[:, places]


class Design(NamedTuple):
    """Training responses, made ready for any number of fits.

    `x` float32 (n_rows, n_voxels), centred and weighted; `mean_x` and `scale` float32
    (n_voxels,); `stimulus` int64 (n_rows,), from 0; `folds` int64 (n_stimuli,); `raw` the responses
    as given; `path` the ridge regressions on them; `others` the same responses with another say for
    some voxels.
    """

    raw: np.ndarray
    x: np.ndarray
    mean_x: np.ndarray
    scale: np.ndarray
    stimulus: np.ndarray
    folds: np.ndarray
    path: RidgePath
    others: tuple["Design", ...] = ()

    def best(self, y: np.ndarray, family: str) -> tuple["Design", np.ndarray]:
        """Return the design that a family is decoded with, and its penalty for each target.

        Parameters
        ----------
        y : float32 array, shape (n_stimuli, n_targets)
            Centred.
        family : str
            Of `SEMANTIC` the one of all designs that explains most of the variance of held-out
            training stimuli; of others this one.

        Returns
        -------
        design : Design
        choice : int array, shape (n_targets,)
            Of `path.penalties`.
        """
        designs = (self, *self.others) if family in SEMANTIC else (self,)
        r2 = [design.path.scores(y)[0] for design in designs]
        variance = column_moments(y)[1]
        explained = [(variance * part.max(0)).sum() for part in r2]
        number = int(np.argmax(explained))
        return designs[number], r2[number].argmax(0)

    @property
    def n_stimuli(self) -> int:
        """How many stimuli there are."""
        return int(self.stimulus.max()) + 1

    def mean_responses(self, stimuli: np.ndarray) -> np.ndarray:
        """Average the rows of each stimulus; float32 (n_stimuli, n_voxels)."""
        if self.n_stimuli == len(self.raw):
            return self.raw[np.argsort(self.stimulus)[stimuli]]
        return np.stack([self.raw[self.stimulus == one].mean(0) for one in stimuli])


def make_design(
    x: np.ndarray,
    folds: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    stimulus: np.ndarray | None = None,
    device: str = "cpu",
    early: np.ndarray | None = None,
    early_band_scale: float = 1.0,
) -> Design:
    """Do what fits on the same responses share.

    Parameters
    ----------
    x : float32 array, shape (n_rows, n_voxels)
        Standardised responses.
    folds : int array, shape (n_stimuli,), optional
        The fold of each stimulus in the cross-validation; five are dealt if not given.
    weights : float array, shape (n_voxels,), optional
        How much of a say each voxel has; all the same if not given. Only their ratios matter.
    stimulus : int array, shape (n_rows,), optional
        The stimulus of each row, counted from 0; see `RidgePath`.
    device : str
        Of torch.
    early : bool array, shape (n_voxels,), optional
        Voxels of early visual areas.
    early_band_scale : float
        See `Method`; only with `early`.

    Raises
    ------
    InputError
        If responses are not finite, or there are fewer than four stimuli.
    """
    stimulus = np.arange(len(x)) if stimulus is None else np.asarray(stimulus)
    folds = deal_folds(np.unique(stimulus)) if folds is None else folds
    _check_finite("responses", x)
    mean_x = x.mean(0, dtype=np.float64).astype(np.float32)
    scale = np.ones(x.shape[1]) if weights is None else np.asarray(weights, float)
    scale = (scale / np.sqrt(np.square(scale).mean())).astype(np.float32)
    ready = x - mean_x
    ready *= scale
    path = RidgePath(ready, x.shape[1] * PENALTIES, folds, stimulus, device=device)
    others = ()
    if early is not None and early_band_scale != 1:
        less = scale * np.where(early, early_band_scale, 1)
        others = (make_design(x, folds, less, stimulus, device),)
    return Design(x, ready, mean_x, scale, stimulus, folds, path, others)


def _check_finite(name: str, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        n = int((~np.isfinite(values)).sum())
        raise InputError(f"{n} of the training {name} are not finite; leave those trials out.")


def fit_decoder(
    x: np.ndarray,
    y: np.ndarray,
    keep: float = 1.0,
    folds: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    stimulus: np.ndarray | None = None,
) -> Decoder:
    r"""Fit ridge regression from voxels to every value, each with its own penalty.

    .. math:: \hat W = \arg\min_W \lVert Y - X W \rVert^2
              + \sum_j \alpha_j \sum_v (w_{vj} / r_v)^2

    Parameters
    ----------
    x : float32 array, shape (n_rows, n_voxels)
        Standardised responses.
    y : float32 array, shape (n_stimuli, n_values)
    keep : float
        Share of the values that is decoded: those with the best cross-validated R².
    folds, weights, stimulus
        See `make_design`; the weights are `r` in the formula.

    Returns
    -------
    Decoder

    Raises
    ------
    InputError
        If responses or features are not finite, there are fewer than four stimuli, or `keep` is
        not in (0, 1].
    """
    method = Method(target_components=0, select_by="r2")
    return fit_family(make_design(x, folds, weights, stimulus), y, "", method, keep)[0]


def fit_family(
    design: Design,
    y: np.ndarray,
    family: str,
    method: Method,
    keep: float = 1.0,
    n_components: int = 0,
    values: bool = True,
) -> tuple[Decoder | None, Decoder | None, Components | None]:
    """Fit the decoder of one family, and, if wanted, that of its first components.

    Parameters
    ----------
    design : Design
    y : float32 array, shape (n_stimuli, n_values)
    family : str
        Its name: the number of voxels and the stretching depend on it.
    method : Method
    keep : float
        Share of the values that is decoded, the best by cross-validation.
    n_components : int
        Components that are wanted by themselves, at most; 0 for none.
    values : bool
        Whether the values are wanted, too: most of the work.

    Returns
    -------
    decoder : Decoder or None
    of_components : Decoder or None
        Of the scores of `components`.
    components : Components or None

    Raises
    ------
    InputError
        If features are not finite or not those of the stimuli, or `keep` is not in (0, 1].
    """
    check_keep(keep)
    _check_finite("features", y)
    if len(y) != design.n_stimuli:
        raise InputError(f"{len(y)} stimuli have features, {design.n_stimuli} have responses.")
    whitens = method.decoder == "ridge" and method.target_components > 0
    wanted = max(n_components, method.target_components if whitens else 0)
    components = fit_components(y, wanted) if wanted else None
    scores = components.scores(y) if components else y
    parts = _fit(design, scores, family, method)
    decoder = None
    if values:
        if whitens:
            whole = parts.spread(components)
        else:
            whole = _fit(design, y, family, method) if components else parts
        rescale = method.rescale_z if family == "z" else "none"
        given = (method.select_by, rescale, method.rescale_power)
        decoder = _select(whole, design, y, keep, *given)
    if not n_components:
        return decoder, None, None
    first = components.first(n_components)
    n = first.variance.size
    return decoder, _select(parts.first(n), design, scores[:, :n]), first


class _Fit(NamedTuple):
    """A fit of some targets.

    `left` (n_voxels, n_between) and `right` (n_between, n_targets) or None as in `Decoder`;
    `mean` (n_targets,) is what the mean response predicts, `held_out` (n_stimuli, n_targets) what
    is predicted of each training stimulus from others.
    """

    left: np.ndarray
    right: np.ndarray | None
    mean: np.ndarray
    held_out: np.ndarray

    def first(self, n: int) -> "_Fit":
        """Return the fit of the first targets."""
        left, right = self.left, self.right
        left, right = (left[:, :n], None) if right is None else (left, right[:, :n])
        return _Fit(left, right, self.mean[:n], self.held_out[:, :n])

    def spread(self, components: Components) -> "_Fit":
        """Return the fit of the values that the targets are components of."""
        back = components.basis.T
        left, right = (self.left, back) if self.right is None else (self.left, self.right @ back)
        mean, held_out = (part @ back + components.mean for part in (self.mean, self.held_out))
        return _Fit(left, right, mean, held_out)


def _fit(design: Design, y: np.ndarray, family: str, method: Method) -> _Fit:
    if method.decoder == "ridge":
        return _fit_ridge(design, y, family)
    return _fit_voxels(design, y, method.n_voxels(family), method.alpha)


def _fit_ridge(design: Design, y: np.ndarray, family: str) -> _Fit:
    """Fit ridge regression with a penalty for every target, the best by R²."""
    # Stimuli that were shown more often have more rows.
    count = np.bincount(design.stimulus)
    mean = column_moments(y, count)[0].astype(np.float32)
    y = y - mean
    design, choice = design.best(y, family)
    held_out = design.path.held_out(y, choice) + mean
    scale = design.scale[:, None]
    if design.path.primal or y.shape[1] < len(design.x):
        return _Fit(scale * design.path.weights(y, choice), None, mean, held_out)
    return _Fit(scale * design.x.T, design.path.dual(y, choice), mean, held_out)


def _fit_voxels(design: Design, y: np.ndarray, n_voxels: int, alpha: float) -> _Fit:
    """Fit ridge regression on the voxels that follow each target best."""

    def fit(stimuli: np.ndarray) -> VoxelSelectedRidge:
        rows = np.isin(design.stimulus, stimuli)
        model = VoxelSelectedRidge(n_voxels, alpha, device=design.path.device)
        return model.fit(design.raw[rows], y[design.stimulus[rows]])

    held_out = np.empty_like(y)
    for train, held in design.path.folds:
        model = fit(train)
        held_out[held] = model.predict(design.mean_responses(held))
    model = fit(np.arange(len(y)))
    left = np.ascontiguousarray(model.coef_.T)
    return _Fit(left, None, model.predict(design.mean_x[None])[0], held_out)


def _select(
    fit: _Fit,
    design: Design,
    y: np.ndarray,
    keep: float = 1.0,
    select_by: str = "r2",
    rescale: str = "none",
    power: float = 1.0,
) -> Decoder:
    """Judge a fit by its predictions of held-out stimuli, and keep its best targets."""
    mean, variance = column_moments(y)
    constant = constant_columns(mean, variance)
    r2, correlation = design.path.accuracy(fit.held_out, y)
    r2[constant] = correlation[constant] = np.nan
    selected = best_share(r2 if select_by == "r2" else correlation, keep)
    mean_y = np.where(constant, mean, fit.mean).astype(np.float32)
    factor = np.where(constant, 0, rescaling(y, fit.held_out, rescale, power))[selected]
    left, right = fit.left, fit.right
    if right is None:
        left = left[:, selected] * factor
    else:
        right = right[:, selected] * factor
    return Decoder(left, right, design.mean_x, mean_y, selected, r2, correlation)


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
    true, found = (column_moments(part)[1] for part in (y, held_out))
    if how == "none":
        return np.ones(len(true), np.float32)
    if how == "global":
        true, found = np.full_like(true, true.sum()), np.full_like(found, found.sum())
    varies = found > 1e-12 * np.maximum(true, 1e-30)
    ratio = np.divide(true, found, where=varies, out=np.ones_like(true))
    return (ratio ** (power / 2)).astype(np.float32)


def check_keep(keep: float) -> None:
    """Raise `InputError` unless the share is above 0 and at most 1."""
    if not 0 < keep <= 1:
        raise InputError(f"keep={keep}: the share of targets to keep must be above 0, at most 1.")


def best_share(score: np.ndarray, keep: float) -> np.ndarray:
    """Mark the share `keep` of targets with the highest score; constant ones, NaN, come last."""
    n = max(1, round(keep * len(score)))
    order = np.argsort(-np.nan_to_num(score, nan=0.0 if keep == 1 else -np.inf), kind="stable")
    chosen = np.zeros(len(score), bool)
    chosen[order[:n]] = True
    return chosen


# --------------------------------------------------------------------------------- saved decoders


def save_decoder(
    decoder: Decoder, path: str | Path, about: Mapping[str, object] | None = None
) -> Path:
    """Write a decoder as safetensors, which holds numbers only and runs no code when read.

    Parameters
    ----------
    decoder : Decoder
    path : str or Path
    about : mapping, optional
        How it was fitted; kept as JSON in the file's header, beside the format's version.

    Raises
    ------
    InputError
        If the disk is full or cannot be written to; an older file then stays as it was.
    """
    arrays = {name: value for name, value in vars(decoder).items() if value is not None}
    header = {"format": FORMAT, "version": str(VERSION), "about": json.dumps(dict(about or {}))}
    try:
        with atomic_path(path) as temporary:
            tensors = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
            save_file(tensors, temporary, metadata=header)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} cannot be written ({error}). Make room on the disk, or choose another "
            "`run_dir`, and run 02_decoding again."
        ) from None
    return Path(path)


def load_decoder(path: str | Path) -> Decoder:
    """Read a decoder that `save_decoder` wrote.

    Raises
    ------
    InputError
        If the file is missing, damaged, of another version, or something else.
    """
    try:
        with safe_open(path, "np") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise InputError(f"{path} is no decoder; 02_decoding writes them.")
            if header.get("version") != str(VERSION):
                raise InputError(
                    f"{path} is a decoder of version {header.get('version')}; this code reads "
                    f"version {VERSION}. Run 02_decoding again."
                )
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read ({error}). Run 02_decoding again.") from None
    missing = {field.name for field in fields(Decoder)} - {"right"} - arrays.keys()
    if missing:
        raise InputError(f"{path} lacks {', '.join(sorted(missing))}. Run 02_decoding again.")
    return Decoder(**{"right": None, **arrays})
