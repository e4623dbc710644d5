"""How many dimensions do features fill? Reconstructions that fill few come from few templates."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from minddiff_utils.decoding.features import feature_spaces, read_values
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


def dimension_table(decoded: Mapping[str, np.ndarray], features_path: str | Path) -> pd.DataFrame:
    """Compare the effective dimension of decoded features with that of the true ones.

    Parameters
    ----------
    decoded : mapping of str to array, shape (n_test, …)
        What `read_decoded` returns. Of a block the values that were decoded count, and the same
        ones of the true features.
    features_path : str or Path
        From `write_features`.

    Returns
    -------
    DataFrame of str
        A row a feature space: how many values, and both dimensions of `effective_dimension`,
        decoded and true, over the test pictures.
    """
    rows = {}
    for space in feature_spaces(features_path):
        found = decoded[space].reshape(len(decoded[space]), -1)
        kept = np.isfinite(found).all(axis=0)
        true = read_values(features_path, space, decoded["stimulus_id"])
        pairs = zip(*(effective_dimension(part[:, kept]) for part in (found, true)), strict=True)
        numbers = [f"{value:.1f}" for pair in pairs for value in pair]
        rows[space.replace("_", " ")] = [f"{kept.sum():,}", *numbers]
    heads = ["values", "PR, decoded", "PR, true", "entropy, decoded", "entropy, true"]
    return pd.DataFrame(rows, heads).T.rename_axis("feature space")
