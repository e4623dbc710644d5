"""Ridge regression for any number of targets: what depends on responses alone is done once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.base import BaseEstimator, RegressorMixin, TransformerMixin
from sklearn.model_selection import PredefinedSplit

from minddiff_utils.io import InputError

# Penalties a voxel: with standardised responses the kernel grows with the number of voxels.
PENALTIES = np.logspace(-2, 2, 9)
# Bytes of predictions in memory at once.
AT_ONCE = 2**28
# Columns at a time whose moments are added up, which bounds the memory.
COLUMNS = 1024
FEWEST = 4  # stimuli: two in each of two folds


def assign_folds(ids, n_folds=5, *, groups=None, session=None, seed=0) -> np.ndarray:
    """Assign stimuli to folds at random.

    Recordings are often sorted, by kind of image or by session; consecutive blocks of them would
    be folds of one kind each. The fold of a stimulus follows from the ids and the seed, not from
    the order in which they come.

    Parameters
    ----------
    ids : int array, shape (n_stimuli,)
        Each once.
    n_folds : int
        From 2; at most one for every two groups.
    groups : int array, shape (n_stimuli,), optional
        Stimuli of one group share a fold; each is its own group if not given.
    session : int array, shape (n_stimuli,), optional
        In which session each was first seen: every fold gets its share of every session.
    seed : int

    Returns
    -------
    int64 array, shape (n_stimuli,)
        The fold of each stimulus, from 0.

    Raises
    ------
    InputError
        If there are fewer than four groups.
    """
    found, row = np.unique(ids if groups is None else groups, return_inverse=True)
    n = len(found)
    if n < FEWEST:
        raise InputError(f"{n} different training stimuli; a decoder needs at least {FEWEST}.")
    order = np.random.default_rng(seed).permutation(n)
    if session is not None:
        first = np.full(n, np.max(session))
        np.minimum.at(first, row, session)
        order = order[np.argsort(first[order], kind="stable")]
    fold = np.empty(n, np.int64)
    fold[order] = np.arange(n) % min(n_folds, n // 2)
    return fold[row]


def column_moments(
    values: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance of every column.

    NumPy adds up the rows of a float32 array in float32: over thousands of rows the mean of a
    constant is off by more than its last digit, and its variance is not zero.

    Parameters
    ----------
    values : float array, shape (n_rows, n_columns)
    weights : array, shape (n_rows,), optional
        How often each row counts; once if not given.

    Returns
    -------
    mean, variance : float64 arrays, shape (n_columns,)
        The variance with `n_rows`, or the sum of the weights, in the denominator.
    """
    mean, variance = np.empty((2, values.shape[1]))
    for start in range(0, values.shape[1], COLUMNS):
        some = slice(start, start + COLUMNS)
        part = values[:, some].astype(np.float64)
        mean[some] = np.average(part, axis=0, weights=weights)
        part -= mean[some]
        variance[some] = np.average(np.square(part, out=part), axis=0, weights=weights)
    return mean, variance


def constant_columns(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Tell which columns do not vary by more than rounding; bool (n_columns,)."""
    return np.sqrt(variance) <= 1e-6 * np.maximum(1, np.abs(mean))


@dataclass(eq=False, repr=False)
class ReliabilityScaler(TransformerMixin, BaseEstimator):
    """Centre voxels, and multiply each by its reliability.

    A standardised voxel without any signal is as loud as the best one; with the same weight, it
    only adds noise to every prediction.

    Parameters
    ----------
    reliability : float array, shape (n_voxels,), optional
        From `voxel_weights`; all the same if not given. Only their ratios matter.

    Attributes
    ----------
    mean_ : float32 array, shape (n_voxels,)
    scale_ : float32 array, shape (n_voxels,)
        The reliabilities, of mean square 1.
    """

    reliability: np.ndarray | None = None

    def fit(self, X: np.ndarray, y: object = None) -> "ReliabilityScaler":
        """Take the mean of training responses, shape (n_rows, n_voxels)."""
        self.mean_ = X.mean(0, dtype=np.float64).astype(np.float32)
        scale = np.ones(X.shape[1]) * (1.0 if self.reliability is None else self.reliability)
        self.scale_ = (scale / np.sqrt(np.square(scale).mean())).astype(np.float32)
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Scale responses, shape (n, n_voxels), as those of training."""
        return (X - self.mean_) * self.scale_


@dataclass(eq=False, repr=False)
class CrossValidatedRidge(RegressorMixin, BaseEstimator):
    r"""Ridge regression with a penalty for every target, the one of best cross-validated R².

    For the penalty :math:`\alpha`, predictions of new responses :math:`X'` are linear in the
    targets :math:`Y`:

    .. math:: \hat Y' = X' X^\top (X X^\top + \alpha I)^{-1} Y
              = X' (X^\top X + \alpha I)^{-1} X^\top Y.

    So each fold of a cross-validation and each penalty have one matrix that turns the targets of
    the training stimuli into predictions of the held-out ones. `prepare` computes them, by the
    first form if there are fewer rows than voxels and by the second otherwise; `fit_targets` then
    takes one product of matrices for each, for one feature space after the other.

    Scores, penalties and weights are those of himalaya's `KernelRidgeCV` and `RidgeCV`, to which
    the tests hold them. What himalaya has no room for: a decomposition that is kept from one
    feature space to the next, folds of stimuli with a held-out stimulus's repetitions averaged
    as a test stimulus's are, and predictions of the held-out stimuli, which selection and
    rescaling go by.

    Parameters
    ----------
    alphas : sequence of float
        Penalties to choose from, above 0.
    folds : int array, shape (n_stimuli,), optional
        The fold of each stimulus in the cross-validation; five folds at random if not given.
    stimulus : int array, shape (n_rows,), optional
        Which stimulus, from 0, each row of responses belongs to. All rows of one are on the same
        side of a fold; the rows of a held-out stimulus are averaged, as those of a test stimulus
        are. Each row its own stimulus if not given.
    kernel : {"linear", "precomputed"}
        Whether `X` is responses, or their products with the training responses.
    device : str
        Of torch.

    Attributes
    ----------
    coef_ : float32 array, shape (n_voxels, n_targets)
        Weights; with a precomputed kernel dual coefficients, (n_rows, n_targets).
    intercept_ : float32 array, shape (n_targets,)
        Means over the rows.
    best_alphas_ : float32 array, shape (n_targets,)
    cv_scores_ : float32 array, shape (n_targets,)
        Mean over the folds of R² within the fold; 0 in a fold where the target is constant.
    held_out_ : float32 array, shape (n_stimuli, n_targets)
        Every stimulus predicted from the folds that it is not in.
    """

    alphas: Sequence[float] | np.ndarray
    folds: np.ndarray | None = None
    stimulus: np.ndarray | None = None
    kernel: str = "linear"
    device: str = "cpu"

    def fit(self, X: np.ndarray, y: np.ndarray) -> "CrossValidatedRidge":
        """Do what depends on responses, and then what depends on targets.

        Parameters
        ----------
        X : float32 array, shape (n_rows, n_voxels), or the kernel, (n_rows, n_rows)
            Centred.
        y : float32 array, shape (n_stimuli, n_targets)
        """
        return self.prepare(X).fit_targets(y)

    def prepare(self, X: np.ndarray) -> "CrossValidatedRidge":
        """Do what depends on responses alone."""
        stimulus = np.arange(len(X)) if self.stimulus is None else np.asarray(self.stimulus)
        folds = assign_folds(np.unique(stimulus)) if self.folds is None else self.folds
        self._stimulus = torch.from_numpy(stimulus).to(self.device)
        self._count = torch.bincount(self._stimulus).to(torch.float32)
        self._x = x = self._tensor(X)
        self._primal = self.kernel == "linear" and X.shape[0] > X.shape[1]
        self._gram = x if self.kernel != "linear" else x.T @ x if self._primal else x @ x.T
        self._factors: dict[int, torch.Tensor] = {}
        self._penalties = np.asarray(self.alphas, np.float32)
        self._folds = list(PredefinedSplit(folds).split())
        self._maps = [self._maps_of(train, held) for train, held in self._folds]
        return self

    def fit_targets(self, y: np.ndarray) -> "CrossValidatedRidge":
        """Fit other targets to the responses that `prepare` was given."""
        self.intercept_ = column_moments(y, self._count.cpu().numpy())[0].astype(np.float32)
        y = y - self.intercept_
        step = max(1, AT_ONCE // (4 * len(self._penalties) * len(y)))
        # One part even of no targets at all: a condition that is the same for every picture.
        starts = range(0, max(1, y.shape[1]), step)
        parts = [self._scores(y[:, start : start + step]) for start in starts]
        scores = np.concatenate(parts, axis=1)
        choice = scores.argmax(0)
        self.cv_scores_, self.best_alphas_ = scores.max(0), self._penalties[choice]
        self.held_out_ = np.empty(y.shape, np.float32)
        solved = np.empty((len(self._gram), y.shape[1]), np.float32)
        for number in np.unique(choice):
            targets = np.flatnonzero(choice == number)
            values = self._tensor(y[:, targets])
            solved[:, targets] = self._solve(values, number).cpu()
            for (train, held), maps in zip(self._folds, self._maps, strict=True):
                self.held_out_[np.ix_(held, targets)] = (maps[number] @ values[train]).cpu()
        self.held_out_ += self.intercept_
        by_voxel = self._primal or self.kernel == "precomputed"
        self.coef_ = solved if by_voxel else (self._x.T @ self._tensor(solved)).cpu().numpy()
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Predict new stimuli: float32 (n_new, n_targets)."""
        return X @ self.coef_ + self.intercept_

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(self.device)

    def _maps_of(self, train: np.ndarray, held: np.ndarray) -> torch.Tensor:
        """Return (n_penalties, n_held, n_train): from the targets of some stimuli to others'."""
        place = torch.zeros(self._count.shape, dtype=torch.int64, device=self.device)
        for part in (train, held):
            place[part] = torch.arange(len(part), device=self.device)
        rows = torch.isin(self._stimulus, torch.from_numpy(train).to(self._stimulus))
        used, new = rows.nonzero()[:, 0], (~rows).nonzero()[:, 0]
        place_used, place_new = place[self._stimulus[used]], place[self._stimulus[new]]
        out = torch.zeros(len(self._penalties), len(held), len(train), device=self.device)
        if self._primal:
            x = self._x[new]
            gram, right = self._gram - x.T @ x, x
            last = _sum_rows(self._x[used], place_used, len(train)).T
        else:
            gram, right = self._gram[used][:, used], self._gram[new][:, used]
        right = (_sum_rows(right, place_new, len(held)) / self._count[held][:, None]).T
        for number, penalty in enumerate(self._penalties):
            found = torch.cholesky_solve(right, factor(gram, float(penalty))).T
            if self._primal:
                torch.mm(found, last, out=out[number])
            else:
                out[number].index_add_(1, place_used, found)
        return out

    def _scores(self, y: np.ndarray) -> np.ndarray:
        """Return the mean R² over the folds, (n_penalties, n_targets), of centred targets."""
        out, values = np.zeros((len(self._penalties), y.shape[1]), np.float32), self._tensor(y)
        for (train, held), maps in zip(self._folds, self._maps, strict=True):
            predicted = (maps.flatten(0, 1) @ values[train]).view(*maps.shape[:2], -1)
            out = out + _agreement(predicted, values[held])[0].cpu().numpy() / len(self._folds)
        return out

    def _solve(self, values: torch.Tensor, number: int) -> torch.Tensor:
        """Return weights or dual coefficients; the matrix of each penalty is factored once."""
        if number not in self._factors:
            self._factors[number] = factor(self._gram, float(self._penalties[number]))
        right = values[self._stimulus]
        right = self._x.T @ right if self._primal else right
        return torch.cholesky_solve(right, self._factors[number])


def fold_accuracy(
    predicted: np.ndarray, y: np.ndarray, folds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Judge predictions of held-out stimuli, each fold by itself.

    Parameters
    ----------
    predicted, y : float32 arrays, shape (n_stimuli, n_targets)
    folds : int array, shape (n_stimuli,)

    Returns
    -------
    r2, correlation : float32 arrays, shape (n_targets,)
        Means over the folds of 1 - residual / total sum of squares and of Pearson's signed
        correlation; 0 in a fold where the target is constant.
    """
    predicted, y = (torch.from_numpy(np.asarray(part, np.float32)) for part in (predicted, y))
    held_out = [held for _, held in PredefinedSplit(folds).split()]
    parts = [torch.stack(_agreement(predicted[held][None], y[held])) for held in held_out]
    r2, correlation = torch.stack(parts).mean(0)[:, 0].numpy()
    return r2, correlation


def factor(gram: torch.Tensor, penalty: float) -> torch.Tensor:
    """Return the Cholesky factor of positive matrices, (…, n, n), with a penalty added."""
    matrix = gram.clone()
    matrix.diagonal(dim1=-2, dim2=-1).add_(penalty)
    return torch.linalg.cholesky(matrix)


def _sum_rows(values: torch.Tensor, place: torch.Tensor, n: int) -> torch.Tensor:
    """Add up the rows with the same place; (n, …)."""
    out = torch.zeros(n, *values.shape[1:], device=values.device)
    return out.index_add_(0, place, values)


def _agreement(predicted: torch.Tensor, true: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """R² and correlation over stimuli of (n_penalties, n, n_targets) with (n, n_targets)."""
    # Centred by the first value and then the mean: what is constant becomes exactly zero, and the
    # sums of squares below lose no digits to an offset. `predicted` is nobody else's.
    n, first = len(true), true[0]
    true = true - first
    centre = true.mean(0)
    true, predicted = true - centre, predicted.sub_(first + centre)
    total, mean = true.square().sum(0), predicted.mean(1)
    square = torch.einsum("pnt,pnt->pt", predicted, predicted)
    product = torch.einsum("pnt,nt->pt", predicted, true)
    residual = total - 2 * product + square
    spread = (square - n * mean.square()).clamp_min(0)
    size = (total * spread).sqrt()
    r2 = torch.where(total > 0, 1 - residual / total, 0)
    return r2, torch.where(size > 0, product / size, 0)
