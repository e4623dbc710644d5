"""The paper's decoder: ridge regression for every target on the voxels that follow it best."""

import warnings

import numpy as np
import torch
from scipy.linalg import get_blas_funcs
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

from minddiff_utils.io import InputError

DTYPES = {"float32": torch.float32, "float64": torch.float64}
# A voxel of less variance counts as constant, as in FastL2LiR.
LEAST_VARIANCE = 1e-8
# Single precision is good enough if no weight is further off, relative to the largest.
TOLERANCE = 1e-2
# On a CPU, systems of equations are solved a few at a time, so that they stay in its cache.
CACHE = 2**24
# Rows at a time of the matrix of all voxels.
STRIP = 1024
# Strips in which the lower half of a target's matrix is gathered.
PIECES = 8


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
    memory : float
        GiB that the working arrays may take, beside responses, targets and weights. With less,
        each target's matrix is computed anew from the responses, which takes longer.
    n_checked : int
        With float32: targets, evenly spread, whose weights are computed in float64 as well.

    Attributes
    ----------
    voxels_ : int32 array, shape (n_targets, n_chosen)
        The chosen voxels of each target, ascending. For a constant target they mean nothing.
    weights_ : array of `dtype`, shape (n_targets, n_chosen)
        Their weights; 0 for a constant target, which is predicted by itself.
    intercept_ : array, shape (n_targets,); a number for one target
    coef_ : array, shape (n_targets, n_voxels_in); one row less for one target
        The same weights with zeros at all other voxels, made when asked for.
    error_ : float
        Largest difference between weights in float32 and float64 over the checked targets,
        relative to the target's largest weight; 0 if nothing was checked.

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
        memory: float = 2.0,
        n_checked: int = 2,
    ):
        self.n_voxels = n_voxels
        self.alpha = alpha
        self.dtype = dtype
        self.device = device
        self.memory = memory
        self.n_checked = n_checked

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
            If a parameter is out of its range.
        ValueError
            If X or y is not finite, or there are fewer than two samples.
        """
        self._check_parameters()
        X, y = validate_data(
            self, X, y, multi_output=True, y_numeric=True, dtype=self.dtype, ensure_min_samples=2
        )
        self._single = y.ndim == 1
        y = np.asarray(y.reshape(len(y), -1), self.dtype)
        k = min(self.n_voxels, X.shape[1])
        self.voxels_ = np.empty((y.shape[1], k), np.int32)
        self.weights_ = np.empty((y.shape[1], k), self.dtype)
        x = torch.tensor(X, device=self.device)
        mean_x, mean_y = (part.mean(0, dtype=np.float64) for part in (X, y))
        self._mean_x = mean_x.astype(self.dtype)
        self._at_mean, intercept = np.empty((2, y.shape[1]))
        share = len(X) / (len(X) + self.alpha)
        taken = torch.from_numpy(self._mean_x).to(x)
        x -= taken
        system = _System(x, taken, float(self.alpha), k, y.shape[1], self._bytes())
        for start in range(0, y.shape[1], system.n_together):
            some = slice(start, start + system.n_together)
            mean = mean_y[some].astype(self.dtype)
            centred = torch.from_numpy(y[:, some] - mean).to(x)
            voxels, weights = system.solve(centred, torch.from_numpy(mean).to(x))
            self.voxels_[some], self.weights_[some] = voxels.cpu(), weights.cpu()
            by_weights = np.einsum("tk,tk->t", mean_x[self.voxels_[some]], self.weights_[some])
            intercept[some] = share * (mean_y[some] - by_weights)
            self._at_mean[some] = intercept[some] + by_weights
        constant = ~self.weights_.any(axis=1)
        intercept[constant] = self._at_mean[constant] = mean_y[constant]
        intercept = intercept.astype(self.dtype)
        self.intercept_ = intercept[0] if self._single else intercept
        self.error_ = self._compare(X, y) if self.dtype == "float32" else 0.0
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
        step = max(1, int(self._bytes() // (8 * X.shape[1])))
        # About the training mean: single precision would lose digits to an offset.
        x = torch.tensor(X - self._mean_x, device=self.device)
        for start in range(0, len(self.weights_), step):
            some = slice(start, start + step)
            weights = torch.from_numpy(self._dense(some)).to(x)
            out[:, some] = (x @ weights.T).cpu()
        out += self._at_mean.astype(self.dtype)
        return out[:, 0] if self._single else out

    @property
    def coef_(self) -> np.ndarray:
        """Weights of all voxels, zero where not chosen."""
        dense = self._dense(slice(None))
        return dense[0] if self._single else dense

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = True
        return tags

    def _dense(self, targets: slice) -> np.ndarray:
        voxels, weights = self.voxels_[targets], self.weights_[targets]
        dense = np.zeros((len(weights), self.n_features_in_), weights.dtype)
        np.put_along_axis(dense, voxels.astype(np.int64), weights, axis=1)
        return dense

    def _bytes(self) -> float:
        return self.memory * 2**30

    def _check_parameters(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"dtype={self.dtype!r}: expected one of {', '.join(DTYPES)}.")
        if self.n_voxels < 1:
            raise InputError(f"n_voxels={self.n_voxels}: expected 1 or more.")
        if not self.alpha > 0:
            raise InputError(f"alpha={self.alpha}: the penalty must be above 0.")
        if not self.memory > 0:
            raise InputError(f"memory={self.memory}: expected GiB above 0.")

    def _compare(self, X: np.ndarray, y: np.ndarray) -> float:
        """Solve for a few targets in double precision, and warn if the weights differ."""
        varied = np.flatnonzero(self.weights_.any(axis=1))
        n = min(self.n_checked, len(varied))
        # Apple's GPUs know no double precision.
        device = "cpu" if torch.device(self.device).type == "mps" else self.device
        error = 0.0
        for target in varied[np.linspace(0, len(varied) - 1, n).astype(int)]:
            x = X[:, self.voxels_[target]].astype(np.float64)
            alone = y[:, target].astype(np.float64)
            mean_x, k = torch.from_numpy(x.mean(0)).to(device), x.shape[1]
            centred = torch.from_numpy(x - x.mean(0)).to(device)
            system = _System(centred, mean_x, float(self.alpha), k, 1, self._bytes())
            mean_y = torch.from_numpy(alone.mean(keepdims=True)).to(device)
            target_y = torch.from_numpy(alone - alone.mean())[:, None].to(device)
            exact = system.solve(target_y, mean_y)[1].cpu()
            size = exact.abs().max().item()
            difference = np.abs(exact[0].numpy() - self.weights_[target]).max()
            if size > 0:
                error = max(error, float(difference) / size)
        if error > TOLERANCE:
            warnings.warn(
                f"weights in float32 are off by {error:.1%} of the largest; fit with "
                'dtype="float64", or a larger alpha.',
                stacklevel=3,
            )
        return error


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
    n_targets : int
        In all.
    memory : float
        Bytes.
    """

    def __init__(
        self,
        x: torch.Tensor,
        mean: torch.Tensor,
        alpha: float,
        k: int,
        n_targets: int,
        memory: float,
    ):
        n, p = x.shape
        self.x, self.mean, self.alpha, self.k = x, mean, alpha, k
        self.more = n * alpha / (n + alpha)  # weight of the additional sample
        variance = x.square().mean(0)
        self.scale = torch.where(variance < LEAST_VARIANCE, 0, variance.clamp_min(1e-30).rsqrt())
        self.dual = n + 1 < k
        size = x.element_size()
        # The matrix of all voxels costs more than a few targets' own, but is shared by the rest.
        shared = p**2 * n < n_targets * n * k**2 and p**2 * size < memory / 2
        self.gram = self._gram_of_all() if shared and not self.dual and k < p else None
        self.all = self._factor_of_all() if k == p else None
        self.rows = None if self.gram is not None else self._with_mean()
        left = memory - (p**2 * size if self.gram is not None else 0)
        order = n + 1 if self.dual else k
        self.n_at_once = max(1, int(left / 2 // (size * (3 * order**2 + n * k))))
        if x.device.type == "cpu":
            self.n_at_once = max(1, min(self.n_at_once, CACHE // (size * order**2)))
        self.n_together = max(self.n_at_once, int(left / 4 // (size * (4 * p + n))))

    def solve(self, y: torch.Tensor, mean_y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return voxels, int64, and weights, both (n_targets, k), of centred targets (n, …)."""
        cross = y.T @ self.x
        rank = (cross * self.scale).abs_()
        if self.k == cross.shape[1]:
            voxels = torch.arange(self.k, device=y.device).expand(len(cross), -1)
        else:
            # Ascending: what lies together in memory is fetched together.
            voxels = rank.topk(self.k, dim=1, sorted=False).indices.sort(dim=1).values
        constant = y.square().mean(0) <= 1e-12 * mean_y.square().clamp_min(1e-8)
        cross += self.more * mean_y[:, None] * self.mean
        weights = torch.empty(voxels.shape, dtype=y.dtype, device=y.device)
        for start in range(0, len(cross), self.n_at_once):
            some = slice(start, start + self.n_at_once)
            weights[some] = self._weights(voxels[some], cross[some], y[:, some], mean_y[some])
        weights[constant] = 0
        return voxels, weights

    def _weights(
        self, voxels: torch.Tensor, cross: torch.Tensor, y: torch.Tensor, mean_y: torch.Tensor
    ) -> torch.Tensor:
        if self.all is not None:
            return self._weights_of_all(cross, y, mean_y)
        if self.dual:
            rows = self.rows.T[voxels].mT  # (targets, n + 1, k)
            target = torch.cat([y, mean_y[None] * self.more**0.5]).T
            return (rows.mT @ _solve(rows @ rows.mT, self.alpha, target[..., None]))[..., 0]
        right = cross.gather(1, voxels)[..., None]
        if self.gram is not None:
            matrix = self._lower_half(voxels)
        else:
            rows = self.rows.T[voxels]  # (targets, k, n + 1)
            matrix = rows @ rows.mT
        return _solve(matrix, self.alpha, right)[..., 0]

    def _with_mean(self) -> torch.Tensor:
        """Return the samples and the additional one, (n_samples + 1, n_voxels_in)."""
        return torch.cat([self.x, self.mean[None] * self.more**0.5])

    def _gram_of_all(self) -> torch.Tensor:
        """Return the matrix of all voxels; right only on and below the diagonal.

        Chosen voxels ascend, and the factorisation reads the lower half: half the work is enough.
        """
        p = self.x.shape[1]
        if self.x.device.type == "cpu":
            return self._gram_on_cpu()
        gram = self.x.new_empty(p, p)
        for start in range(0, p, STRIP):
            rows, columns = slice(start, start + STRIP), slice(min(start + STRIP, p))
            torch.mm(self.x[:, rows].T, self.x[:, columns], out=gram[rows, columns])
            gram[rows, columns].addr_(self.mean[rows], self.mean[columns], alpha=self.more)
        return gram

    def _gram_on_cpu(self) -> torch.Tensor:
        """Do the same with SciPy's BLAS: its product of a matrix with itself does half the work."""
        rows = self._with_mean().numpy()
        (syrk,) = get_blas_funcs(("syrk",), (rows,))
        # NumPy's own memory comes in large pages, which what is gathered from it later needs.
        gram = np.empty((rows.shape[1], rows.shape[1]), rows.dtype)
        with threadpool_limits(torch.get_num_threads(), "blas"):
            # For Fortran, which counts the other way round, the upper half.
            syrk(1.0, rows.T, c=gram.T, lower=0, overwrite_c=1)
        return torch.from_numpy(gram)

    def _lower_half(self, voxels: torch.Tensor) -> torch.Tensor:
        """Gather each target's own matrix, (n_targets, k, k), on and below the diagonal."""
        n, k = voxels.shape
        matrix = self.x.new_empty(n, k, k)
        step = -(-k // PIECES)
        for start in range(0, k, step):
            rows, columns = slice(start, start + step), slice(start + step)
            place = voxels[:, rows, None], voxels[:, None, columns]
            matrix[:, rows, columns] = self.gram[place]
        return matrix

    def _factor_of_all(self) -> torch.Tensor:
        """Factor the one matrix that all targets share where no voxel is left out."""
        rows = self._with_mean()
        matrix = rows @ rows.T if self.dual else rows.T @ rows
        matrix.diagonal().add_(self.alpha)
        return torch.linalg.cholesky(matrix)

    def _weights_of_all(
        self, cross: torch.Tensor, y: torch.Tensor, mean_y: torch.Tensor
    ) -> torch.Tensor:
        if not self.dual:
            return torch.cholesky_solve(cross.T, self.all).T
        target = torch.cat([y, mean_y[None] * self.more**0.5])
        return torch.cholesky_solve(target, self.all).T @ self.rows


def _solve(matrix: torch.Tensor, alpha: float, right: torch.Tensor) -> torch.Tensor:
    """Solve (matrix + alpha I) w = right for a batch of positive matrices.

    What stands above their diagonals is not read.
    """
    matrix.diagonal(dim1=-2, dim2=-1).add_(alpha)
    lower = torch.linalg.cholesky(matrix)
    # Two triangular solves take a fraction of what `cholesky_solve` does for a single column.
    halfway = torch.linalg.solve_triangular(lower, right, upper=False)
    return torch.linalg.solve_triangular(lower.mT, halfway, upper=True)
