"""How many dimensions do features fill? Reconstructions that fill few come from few templates."""

from typing import NamedTuple

import numpy as np

from minddiff_utils.io import InputError

ROUNDING = 1e-12  # variance below this share of the mean square is rounding: all rows are equal


class EffectiveDimension(NamedTuple):
    """Two effective dimensions of the same rows; see `effective_dimension`."""

    participation_ratio: float
    entropy: float


def effective_dimension(features: np.ndarray) -> EffectiveDimension:
    r"""Effective dimension of features over stimuli.

    With the eigenvalues :math:`\lambda_i` of the covariance over stimuli and their shares
    :math:`p_i = \lambda_i / \sum_j \lambda_j`,

    .. math:: \mathrm{PR} = \frac{(\sum_i \lambda_i)^2}{\sum_i \lambda_i^2}, \qquad
              \mathrm{E} = \exp\Bigl(-\sum_i p_i \log p_i\Bigr) .

    Both are 1 for features on a line and d for features that spread alike along d axes. Shirakawa
    et al. 2024 (output dimension collapse) compare the first of reconstructions and of the truth.
    With n stimuli neither exceeds n - 1, so compare features of the same stimuli alone.

    Parameters
    ----------
    features : float (n, …)
        Values beyond the first axis are flattened.

    Returns
    -------
    EffectiveDimension
        Both are 1 where all rows are equal: one point for all stimuli.

    Raises
    ------
    InputError
        If there are fewer than two rows, or a value is not finite.
    """
    rows = np.asarray(features, np.float64).reshape(len(features), -1)
    if len(rows) < 2 or not np.isfinite(rows).all():
        raise InputError(
            "An effective dimension needs finite features of two stimuli or more, not "
            f"{len(rows)} rows with {np.count_nonzero(~np.isfinite(rows))} values that are not."
        )
    centred = rows - rows.mean(axis=0)
    spectrum = np.linalg.svd(centred, compute_uv=False) ** 2
    if spectrum.sum() <= ROUNDING * (rows**2).sum():
        return EffectiveDimension(1.0, 1.0)
    p = spectrum / spectrum.sum()
    p = p[p > 0]
    return EffectiveDimension(float(1 / (p**2).sum()), float(np.exp(-(p * np.log(p)).sum())))
