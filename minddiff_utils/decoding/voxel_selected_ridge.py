"""The paper's decoder: ridge regression for every target on the voxels that follow it best."""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_X_y

from minddiff_utils.decoding.ridge import factor

# A voxel of less variance counts as constant, as in FastL2LiR.
LEAST_VARIANCE = 1e-8
# Bytes that the working arrays may take, beside responses, targets and weights.
MEMORY = 2**31


@dataclass(eq=False, repr=False)
class VoxelSelectedRidge(RegressorMixin, BaseEstimator):
    r"""Ridge regression with voxels chosen for each target.

    For a target :math:`y`, take the `n_voxels` voxels :math:`S` of largest absolute correlation
    with it over the training samples. Then, as FastL2LiR defines it,

    .. math:: (\hat w, \hat b) = \arg\min_{w, b} \lVert y - X_S w - b \rVert^2
              + \alpha \, (\lVert w \rVert^2 + b^2) :

    the bias is penalised like any weight. With the means :math:`m` of the voxels and
    :math:`\bar y` of the target over :math:`n` samples, eliminating :math:`b` leaves ridge
    regression on centred data with one more sample, :math:`m` and :math:`\bar y` times
    :math:`\sqrt{n\alpha / (n + \alpha)}`, and :math:`\hat b = n (\bar y - m^\top \hat w) /
    (n + \alpha)`. That is what is solved here: centred data lose fewer digits.

    Parameters
    ----------
    n_voxels : int
        Voxels for each target; all of them where there are no more.
    alpha : float
        The penalty, above 0. FastL2LiR's data enter it without a factor 1/n.
    dtype : {"float32", "float64"}
        What is computed with.
    device : str
        Of torch: "cpu", "cuda", …

    Attributes
    ----------
    voxels_ : int64 array, shape (n_targets, n_chosen)
        The chosen voxels of each target, ascending. For a constant target they mean nothing.
    weights_ : array of `dtype`, shape (n_targets, n_chosen)
        Their weights; 0 for a constant target, which is predicted by itself.
    intercept_ : array, shape (n_targets,)
    mean_x_ : array, shape (n_voxels_in,)
        Mean response over the samples.
    at_mean_ : array, shape (n_targets,)
        What is predicted of it.
    coef_ : array, shape (n_targets, n_voxels_in)
        The same weights with zeros at all other voxels, made when asked for.

    References
    ----------
    FastL2LiR: https://github.com/KamitaniLab/PyFastL2LiR (class `FastL2LiR`, `fit`).
    """

    n_voxels: int = 500
    alpha: float = 0.15
    dtype: str = "float32"
    device: str = "cpu"

    def fit(self, X: np.ndarray, y: np.ndarray) -> "VoxelSelectedRidge":
        """Choose voxels and find their weights.

        Parameters
        ----------
        X : array, shape (n_samples, n_voxels_in)
            At least two samples.
        y : array, shape (n_samples, n_targets)

        Raises
        ------
        ValueError
            If X or y is not finite, or there are fewer than two samples.
        """
        X, y = check_X_y(X, y, dtype=self.dtype, multi_output=True, ensure_min_samples=2)
        y = y.astype(self.dtype)
        mean_x, mean_y = (part.mean(0, dtype=np.float64) for part in (X, y))
        self.mean_x_ = mean_x.astype(self.dtype)
        x, targets = self._centred(X, self.mean_x_), self._centred(y, mean_y.astype(self.dtype))
        found = _solve_targets(x, targets, min(self.n_voxels, X.shape[1]), float(self.alpha))
        self.voxels_, self.weights_ = (torch.cat(part).cpu().numpy() for part in found)
        at_mean = np.einsum("tk,tk->t", mean_x[self.voxels_], self.weights_)
        intercept = len(X) / (len(X) + self.alpha) * (mean_y - at_mean)
        constant = ~self.weights_.any(axis=1)
        intercept[constant] = mean_y[constant]
        self.at_mean_ = (intercept + at_mean).astype(self.dtype)
        self.intercept_ = intercept.astype(self.dtype)
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Predict the targets of new responses.

        Parameters
        ----------
        X : array, shape (n_samples, n_voxels_in)

        Returns
        -------
        array of `dtype`, shape (n_samples, n_targets)
        """
        # About the training mean: single precision would lose digits to an offset.
        x = torch.from_numpy((X - self.mean_x_).astype(self.dtype)).to(self.device)
        return (x @ torch.from_numpy(self.coef_).to(x).T).cpu().numpy() + self.at_mean_

    @property
    def coef_(self) -> np.ndarray:
        """Weights of all voxels, zero where not chosen."""
        dense = np.zeros((len(self.weights_), len(self.mean_x_)), self.weights_.dtype)
        np.put_along_axis(dense, self.voxels_, self.weights_, axis=1)
        return dense

    def _centred(self, values: np.ndarray, mean: np.ndarray) -> torch.Tensor:
        """Return the centred samples and the additional one: (n_samples + 1, …)."""
        more = (len(values) * self.alpha / (len(values) + self.alpha)) ** 0.5
        rows = np.concatenate([values - mean, (more * mean)[None].astype(self.dtype)])
        return torch.from_numpy(rows).to(self.device)


def _solve_targets(
    x: torch.Tensor, targets: torch.Tensor, k: int, alpha: float
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the voxels, int64, and the weights of targets, in parts of (n_some, k).

    Parameters
    ----------
    x : tensor, shape (n_samples + 1, n_voxels_in)
        Centred responses, and the additional sample.
    targets : tensor, shape (n_samples + 1, n_targets)
    k : int
        Voxels for each target.
    alpha : float
    """
    n, p = len(x) - 1, x.shape[1]
    variance = x[:n].square().mean(0)
    scale = torch.where(variance < LEAST_VARIANCE, 0, variance.clamp_min(1e-30).rsqrt())
    dual = n + 1 < k
    # The matrix of all voxels, from which those of the targets are gathered.
    gram = None if dual else x.T @ x
    # Of a target: its correlations, its matrix and two copies, and its voxels' samples.
    order = (n + 1) ** 2 if dual else k**2
    one = x.element_size() * (4 * p + 3 * order + (n * k if dual else 0))
    voxels, weights = [], []
    for some in targets.split(max(1, MEMORY // (2 * one)), dim=1):
        # Ascending: what lies together in memory is fetched together.
        rank = ((some[:n].T @ x[:n]) * scale).abs_()
        chosen = rank.topk(k, dim=1, sorted=False).indices.sort(dim=1).values
        if dual:
            rows = x.T[chosen]  # (n_some, k, n + 1)
            found = rows @ _solve(rows.mT @ rows, alpha, some.T[..., None])
        else:
            assert gram is not None
            right = (some.T @ x).gather(1, chosen)[..., None]
            found = _solve(gram[chosen[:, :, None], chosen[:, None, :]], alpha, right)
        power = some[n].square() * (n + alpha) / (n * alpha)  # of the mean
        constant = some[:n].square().mean(0) <= 1e-12 * power.clamp_min(1e-8)
        voxels.append(chosen)
        weights.append(torch.where(constant[:, None], 0, found[..., 0]))
    return voxels, weights


def _solve(matrix: torch.Tensor, alpha: float, right: torch.Tensor) -> torch.Tensor:
    """Solve (matrix + alpha I) w = right for a batch of positive matrices."""
    lower = factor(matrix, alpha)
    # Two triangular solves take a fraction of what `cholesky_solve` does for a single column.
    halfway = torch.linalg.solve_triangular(lower, right, upper=False)
    return torch.linalg.solve_triangular(lower.mT, halfway, upper=True)
