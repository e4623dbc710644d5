"""The paper's decoder: ridge regression for every target on the voxels that follow it best."""

import numpy as np
import torch
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from minddiff_utils.io import InputError

# A voxel of less variance counts as constant, as in FastL2LiR.
LEAST_VARIANCE = 1e-8
# Bytes that the working arrays may take, beside responses, targets and weights.
MEMORY = 2**31
# On a CPU, systems of equations are solved a few at a time, so that they stay in its cache.
CACHE = 2**24


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
    voxels_ : int32 array, shape (n_targets, n_chosen)
        The chosen voxels of each target, ascending. For a constant target they mean nothing.
    weights_ : array of `dtype`, shape (n_targets, n_chosen)
        Their weights; 0 for a constant target, which is predicted by itself.
    intercept_ : array, shape (n_targets,); a number for one target
    coef_ : array, shape (n_targets, n_voxels_in); one row less for one target
        The same weights with zeros at all other voxels, made when asked for.

    References
    ----------
    FastL2LiR: https://github.com/KamitaniLab/PyFastL2LiR (class `FastL2LiR`, `fit`).
    """

    def __init__(
        self,
        n_voxels: int = 500,
        alpha: float = 0.15,
        *,
        dtype: str = "float32",
        device: str = "cpu",
    ):
        self.n_voxels = n_voxels
        self.alpha = alpha
        self.dtype = dtype
        self.device = device

    def fit(self, X: np.ndarray, y: np.ndarray) -> "VoxelSelectedRidge":
        """Choose voxels and find their weights.

        Parameters
        ----------
        X : array, shape (n_samples, n_voxels_in)
            At least two samples.
        y : array, shape (n_samples,) or (n_samples, n_targets)

        Raises
        ------
        InputError
            If there are no voxels to choose, or the penalty is not above 0.
        ValueError
            If X or y is not finite, or there are fewer than two samples.
        """
        if self.n_voxels < 1:
            raise InputError(f"n_voxels={self.n_voxels}: expected 1 or more.")
        if not self.alpha > 0:
            raise InputError(f"alpha={self.alpha}: the penalty must be above 0.")
        X, y = validate_data(
            self, X, y, multi_output=True, y_numeric=True, dtype=self.dtype, ensure_min_samples=2
        )
        self._single = y.ndim == 1
        y = np.asarray(y.reshape(len(y), -1), self.dtype)
        mean_x, mean_y = (part.mean(0, dtype=np.float64) for part in (X, y))
        self._mean_x = mean_x.astype(self.dtype)
        x = torch.from_numpy(X - self._mean_x).to(self.device)
        mean = torch.from_numpy(self._mean_x).to(x)
        system = _System(x, mean, float(self.alpha), min(self.n_voxels, X.shape[1]))
        found = []
        for start in range(0, y.shape[1], system.n_together):
            some = slice(start, start + system.n_together)
            centre = mean_y[some].astype(self.dtype)
            centred = torch.from_numpy(y[:, some] - centre).to(x)
            parts = system.solve(centred, torch.from_numpy(centre).to(x))
            found.append([part.cpu().numpy() for part in parts])
        voxels, self.weights_ = (np.concatenate(part) for part in zip(*found, strict=True))
        self.voxels_ = voxels.astype(np.int32)
        at_mean = np.einsum("tk,tk->t", mean_x[voxels], self.weights_)
        intercept = len(X) / (len(X) + self.alpha) * (mean_y - at_mean)
        constant = ~self.weights_.any(axis=1)
        intercept[constant] = mean_y[constant]
        self._at_mean = (intercept + at_mean).astype(self.dtype)
        intercept = intercept.astype(self.dtype)
        self.intercept_ = intercept[0] if self._single else intercept
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Predict the targets of new responses.

        Parameters
        ----------
        X : array, shape (n_samples, n_voxels_in)

        Returns
        -------
        array of `dtype`, shape (n_samples,) or (n_samples, n_targets)
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=self.dtype, reset=False)
        out = np.empty((len(X), len(self.weights_)), self.dtype)
        step = max(1, MEMORY // (8 * X.shape[1]))
        # About the training mean: single precision would lose digits to an offset.
        x = torch.from_numpy(X - self._mean_x).to(self.device)
        for start in range(0, len(self.weights_), step):
            some = slice(start, start + step)
            out[:, some] = (x @ torch.from_numpy(self._dense(some)).to(x).T).cpu()
        out += self._at_mean
        return out[:, 0] if self._single else out

    @property
    def coef_(self) -> np.ndarray:
        """Weights of all voxels, zero where not chosen."""
        dense = self._dense(slice(None))
        return dense[0] if self._single else dense

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _dense(self, targets: slice) -> np.ndarray:
        voxels, weights = self.voxels_[targets], self.weights_[targets]
        dense = np.zeros((len(weights), self.n_features_in_), weights.dtype)
        np.put_along_axis(dense, voxels.astype(np.int64), weights, axis=1)
        return dense


class _System:
    """The equations of all targets on the same responses.

    Parameters
    ----------
    x : tensor, shape (n_samples, n_voxels_in)
        Centred.
    mean : tensor, shape (n_voxels_in,)
        What was taken away.
    alpha : float
    k : int
        Voxels for each target.
    """

    def __init__(self, x: torch.Tensor, mean: torch.Tensor, alpha: float, k: int):
        n, p = x.shape
        self.x, self.mean, self.alpha, self.k = x, mean, alpha, k
        self.more = n * alpha / (n + alpha)  # weight of the additional sample
        variance = x.square().mean(0)
        self.scale = torch.where(variance < LEAST_VARIANCE, 0, variance.clamp_min(1e-30).rsqrt())
        self.rows = torch.cat([x, mean[None] * self.more**0.5])
        self.dual = n + 1 < k
        size = x.element_size()
        # The matrix of all voxels, from which those of the targets are gathered, where it fits.
        shared = not self.dual and p**2 * size < MEMORY
        self.gram = self.rows.T @ self.rows if shared else None
        order = n + 1 if self.dual else k
        limit = min(MEMORY, CACHE) if x.device.type == "cpu" else MEMORY
        self.n_at_once = max(1, int(limit // (size * 3 * (order**2 + (0 if shared else n * k)))))
        self.n_together = max(self.n_at_once, MEMORY // (4 * size * (4 * p + n)))

    def solve(self, y: torch.Tensor, mean_y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return voxels, int64, and weights, both (n_targets, k), of centred targets (n, …)."""
        cross = y.T @ self.x
        # Ascending: what lies together in memory is fetched together.
        rank = (cross * self.scale).abs_()
        voxels = rank.topk(self.k, dim=1, sorted=False).indices.sort(dim=1).values
        constant = y.square().mean(0) <= 1e-12 * mean_y.square().clamp_min(1e-8)
        cross += self.more * mean_y[:, None] * self.mean
        target = torch.cat([y, mean_y[None] * self.more**0.5]).T
        weights = torch.empty(voxels.shape, dtype=y.dtype, device=y.device)
        for start in range(0, len(cross), self.n_at_once):
            some = slice(start, start + self.n_at_once)
            weights[some] = self._weights(voxels[some], cross[some], target[some])
        weights[constant] = 0
        return voxels, weights

    def _weights(
        self, voxels: torch.Tensor, cross: torch.Tensor, target: torch.Tensor
    ) -> torch.Tensor:
        """Return (n_targets, k), of targets with the additional sample, (n_targets, n + 1)."""
        right = cross.gather(1, voxels)[..., None]
        if self.gram is not None:
            matrix = self.gram[voxels[:, :, None], voxels[:, None, :]]
            return _solve(matrix, self.alpha, right)[..., 0]
        rows = self.rows.T[voxels]  # (n_targets, k, n + 1)
        if self.dual:
            return (rows @ _solve(rows.mT @ rows, self.alpha, target[..., None]))[..., 0]
        return _solve(rows @ rows.mT, self.alpha, right)[..., 0]


def _solve(matrix: torch.Tensor, alpha: float, right: torch.Tensor) -> torch.Tensor:
    """Solve (matrix + alpha I) w = right for a batch of positive matrices."""
    matrix.diagonal(dim1=-2, dim2=-1).add_(alpha)
    lower = torch.linalg.cholesky(matrix)
    # Two triangular solves take a fraction of what `cholesky_solve` does for a single column.
    halfway = torch.linalg.solve_triangular(lower, right, upper=False)
    return torch.linalg.solve_triangular(lower.mT, halfway, upper=True)
