"""What responses say about CLIP structure: uncorrelated components, each with its reliability."""

import numpy as np
from scipy.linalg import eigh
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.decomposition import PCA

from minddiff_utils.io import InputError

# Up to so many stimuli, or values, components are computed exactly.
EXACT = 2000


class PrincipalComponents(TransformerMixin, BaseEstimator):
    """Principal components of float32 features, as scikit-learn's `PCA`, added up in float64.

    With at most 2,000 stimuli, or values, they are exact: from the smaller of two products, which
    of the solvers of `PCA` only `covariance_eigh` does, and only for many short rows. Otherwise
    `PCA` chooses, as a rule its randomised solver. Directions without variance are left out.

    Parameters
    ----------
    n_components : int
        At most; no more than `n_stimuli` - 1 and `n_values` exist.

    Attributes
    ----------
    mean_ : float32 array, shape (n_values,)
    components_ : float32 array, shape (n_components, n_values)
        Orthonormal rows, the one of largest variance first.
    explained_variance_ : float32 array, shape (n_components,)
        Of the scores over the training stimuli, with `n_stimuli` in the denominator.
    """

    def __init__(self, n_components: int):
        self.n_components = n_components

    def fit(self, X: np.ndarray, y: object = None) -> "PrincipalComponents":
        """Find the directions in which the features, shape (n_stimuli, n_values), differ most."""
        n = min(self.n_components, len(X) - 1, X.shape[1])
        mean = X.mean(0, dtype=np.float64)
        if min(X.shape) <= EXACT:
            variance, basis = _largest(X - mean, n)
        else:
            # Centred here: scikit-learn adds up its mean in the precision of the values.
            found = PCA(n, random_state=0, copy=False)
            found.fit(X - mean.astype(X.dtype))
            basis = found.components_.T
            variance = found.explained_variance_ * (len(X) - 1) / len(X)
        kept = variance > 1e-9 * max(variance[0], 1e-12)
        self.mean_ = mean.astype(np.float32)
        self.components_ = np.ascontiguousarray(basis[:, kept], np.float32).T
        self.explained_variance_ = variance[kept].astype(np.float32)
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Project features, shape (n, n_values), on the components: (n, n_components)."""
        return (X - self.mean_) @ self.components_.T

    def inverse_transform(self, X: np.ndarray) -> np.ndarray:
        """Put features together from their scores, shape (n, n_components)."""
        return X @ self.components_ + self.mean_


def _largest(centred: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return variance (n,) and direction (n_values, n) of the first components."""
    wide = len(centred) <= centred.shape[1]
    product = centred @ centred.T if wide else centred.T @ centred
    ends = [len(product) - n, len(product) - 1]
    values, vectors = (part[..., ::-1] for part in eigh(product, subset_by_index=ends))
    if wide:
        vectors = centred.T @ (vectors / np.sqrt(np.maximum(values, np.finfo(float).tiny)))
    return values / len(centred), vectors


def evidence(
    components: PrincipalComponents,
    decoded: np.ndarray,
    reliability: np.ndarray,
    least: float = 0.02,
    most: float = 0.8,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Turn decoded scores into what the responses alone say about an image's structure.

    A ridge decoder returns the expected score given the responses, drawn towards the mean of the
    training images: prior and data in one. The generator brings its own prior, so here that of
    the decoder is taken out again. For a score :math:`s` of variance :math:`\lambda`, decoded as
    :math:`\hat s` with reliability :math:`R^2`, posterior over prior is again Gaussian,

    .. math:: \log p(x \mid s) = -\tfrac12 \frac{(s - \hat s / R^2)^2}{\lambda (1 - R^2) / R^2}
              + \mathrm{const},

    its mean stretched by :math:`1/R^2`, its weight zero for what cannot be decoded.

    Parameters
    ----------
    components : PrincipalComponents
    decoded : float array, shape (n, n_components)
        Decoded scores of the first components.
    reliability : float array, shape (n_components,)
        Cross-validated R² of each decoded score; NaN where it does not vary.
    least : float
        Components below it are left out.
    most : float
        What a higher R² is lowered to: an image need not fit better than the generator can draw.

    Returns
    -------
    projection : float32 array, shape (n_values, n_components)
        Columns scaled so that the squared distance between a projected image and `value` is
        the mean over informative components of the squared error in units of its variance: one,
        on average, for the stimulus. Zero in columns that say nothing.
    value : float32 array, shape (n, n_components)

    Raises
    ------
    InputError
        Unless 0 < `least` < `most` < 1.
    """
    if not 0 < least < most < 1:
        raise InputError(f"reliability from {least} to {most}: expected 0 < least < most < 1.")
    r2 = np.nan_to_num(np.asarray(reliability, np.float64), nan=-1.0)
    chosen, r2 = r2 > least, np.clip(r2, least, most)
    basis = components.components_[: len(r2)].T
    variance = components.explained_variance_[: len(r2)].astype(np.float64) * (1 - r2) / r2
    scale = np.where(chosen, 1 / np.sqrt(variance * max(1, chosen.sum())), 0)
    centre = components.mean_.astype(np.float64) @ basis
    value = (decoded / r2 + centre) * scale
    return (basis * scale).astype(np.float32), value.astype(np.float32)
