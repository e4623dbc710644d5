"""What responses say about CLIP structure: uncorrelated components, each with its reliability."""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh
from sklearn.decomposition import PCA

from minddiff_utils.io import InputError

# Up to so many stimuli, or values, components are computed exactly.
EXACT = 2000


@dataclass(frozen=True)
class Components:
    """Principal components of one block's structure over the training stimuli.

    Parameters
    ----------
    mean : float32 array, shape (n_values,)
    basis : float32 array, shape (n_values, n_components)
        Orthonormal columns, the one of largest variance first.
    variance : float32 array, shape (n_components,)
        Of the scores over the training stimuli.
    """

    mean: np.ndarray
    basis: np.ndarray
    variance: np.ndarray

    def scores(self, values: np.ndarray) -> np.ndarray:
        """Project structure, shape (n, n_values), on the components: (n, n_components)."""
        return (values - self.mean) @ self.basis

    def first(self, n: int) -> "Components":
        """Return the components of largest variance, at most `n`."""
        return Components(self.mean, self.basis[:, :n], self.variance[:n])


def fit_components(values: np.ndarray, n_components: int, seed: int = 0) -> Components:
    """Find the directions in which the structure of pictures differs most.

    Parameters
    ----------
    values : float32 array, shape (n_stimuli, n_values)
        Structure of the training stimuli.
    n_components : int
        At most; no more than `n_stimuli` - 1 and `n_values` exist.
    seed : int
        Of the randomised solver, for more than 2,000 stimuli with more than 2,000 values.

    Returns
    -------
    Components

    Raises
    ------
    InputError
        If `n_components` is not positive.
    """
    if n_components < 1:
        raise InputError(f"n_components={n_components}: expected 1 or more.")
    n = min(n_components, len(values) - 1, values.shape[1])
    mean = values.mean(0, dtype=np.float64)
    if min(values.shape) <= EXACT:
        variance, basis = _largest(values - mean, n)
    else:
        solver = "full" if n > 0.8 * min(values.shape) else "randomized"
        # Centred here: scikit-learn adds up its mean in the precision of the values.
        centred = values - mean.astype(values.dtype)
        found = PCA(n, svd_solver=solver, random_state=seed, copy=False).fit(centred)
        basis = found.components_.T
        variance = found.explained_variance_ * (len(values) - 1) / len(values)
    kept = variance > 1e-9 * max(variance[0], 1e-12)
    basis = np.ascontiguousarray(basis[:, kept], np.float32)
    return Components(mean.astype(np.float32), basis, variance[kept].astype(np.float32))


def _largest(centred: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return variance and direction of the first components, from the smaller of two products.

    Exact, and faster than a randomised solver while one side of the matrix is short. Of the solvers
    of scikit-learn's PCA only `covariance_eigh` goes this way, and only for many short rows.

    Parameters
    ----------
    centred : float64 array, shape (n_stimuli, n_values)
    n : int

    Returns
    -------
    variance : float64 array, shape (n,)
    basis : float64 array, shape (n_values, n)
        The directions, the one of largest variance first.
    """
    wide = len(centred) <= centred.shape[1]
    product = centred @ centred.T if wide else centred.T @ centred
    ends = [len(product) - n, len(product) - 1]
    values, vectors = (part[..., ::-1] for part in eigh(product, subset_by_index=ends))
    if wide:
        vectors = centred.T @ (vectors / np.sqrt(np.maximum(values, np.finfo(float).tiny)))
    return values / len(centred), vectors


def informative(
    reliability: np.ndarray, least: float = 0.02, most: float = 0.8
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the components that responses tell something about.

    Parameters
    ----------
    reliability : array, shape (n_components,)
        Cross-validated R² of each decoded score; NaN where it does not vary.
    least : float
        Components below it are left out.
    most : float
        What a higher R² is lowered to: a picture need not fit better than the generator can draw.

    Returns
    -------
    chosen : bool array, shape (n_components,)
    reliability : float array, shape (n_components,)
        Between `least` and `most`.

    Raises
    ------
    InputError
        Unless 0 < `least` < `most` < 1.
    """
    if not 0 < least < most < 1:
        raise InputError(f"reliability from {least} to {most}: expected 0 < least < most < 1.")
    r2 = np.nan_to_num(np.asarray(reliability, np.float64), nan=-1.0)
    return r2 > least, np.clip(r2, least, most)


def evidence(
    components: Components,
    decoded: np.ndarray,
    reliability: np.ndarray,
    least: float = 0.02,
    most: float = 0.8,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Turn decoded scores into what the responses alone say about a picture's structure.

    A ridge decoder returns the expected score given the responses, drawn towards the mean of the
    training pictures: prior and data in one. The generator brings its own prior, so here that of
    the decoder is taken out again. For a score :math:`s` of variance :math:`\lambda`, decoded as
    :math:`\hat s` with reliability :math:`R^2`, posterior over prior is again Gaussian,

    .. math:: \log p(x \mid s) = -\tfrac12 \frac{(s - \hat s / R^2)^2}{\lambda (1 - R^2) / R^2}
              + \mathrm{const},

    its mean stretched by :math:`1/R^2`, its weight zero for what cannot be decoded.

    Parameters
    ----------
    components : Components
    decoded : float array, shape (n, n_components)
        Decoded scores.
    reliability : float array, shape (n_components,)
    least, most : float
        See `informative`.

    Returns
    -------
    projection : float32 array, shape (n_values, n_components)
        Columns scaled so that the squared distance between a projected picture and `value` is
        the mean over informative components of the squared error in units of its variance: one,
        on average, for the picture that was seen. Zero in columns that say nothing.
    value : float32 array, shape (n, n_components)
    """
    chosen, r2 = informative(reliability, least, most)
    variance = components.variance.astype(np.float64) * (1 - r2) / r2
    scale = np.where(chosen, 1 / np.sqrt(variance * max(1, chosen.sum())), 0)
    centre = components.mean.astype(np.float64) @ components.basis
    value = (decoded / r2 + centre) * scale
    return (components.basis * scale).astype(np.float32), value.astype(np.float32)
