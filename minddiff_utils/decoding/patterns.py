"""What decoders rest on: which voxels follow what they decode, and how well they could do."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from minddiff_utils.datasets import Subject, prepare_fold
from minddiff_utils.decoding.decoders import Decoder, load_decoder
from minddiff_utils.decoding.ridge import column_moments, constant_columns


def pattern_shares(decoder: Decoder, x: np.ndarray) -> np.ndarray:
    r"""Return how much of a decoder's activation pattern lies in each voxel.

    A decoder's weights say how to read a value out, not which voxels follow it: a voxel of noise
    alone gets a large weight where it cancels the noise of others. The pattern says what the
    weights do not, how responses :math:`x_v` change with what is decoded (Haufe et al. 2014):

    .. math:: a_{vj} = \frac{\mathrm{cov}(x_v, \hat y_j)}{\mathrm{var}(\hat y_j)}, \qquad
              P_v \propto \sum_j \mathrm{var}(\hat y_j)^2 \, a_{vj}^2 .

    :math:`P_v` is the variance of a voxel that goes along with a decoded value, averaged over all
    values by how much of them is decoded; principal components in the place of values give the
    same.

    Parameters
    ----------
    decoder : Decoder
    x : array, shape (n_rows, n_voxels)
        The training responses.

    Returns
    -------
    float array, shape (n_voxels,)
        Sums to 1.

    References
    ----------
    Haufe et al. 2014, On the interpretation of weight vectors of linear models in multivariate
    neuroimaging (NeuroImage).
    """
    between = (x - decoder.mean_x) @ decoder.left
    covariance = x.T @ (between - between.mean(0))
    if decoder.right is None:
        power = np.square(covariance).sum(1)
    else:
        power = np.einsum("vk,vk->v", covariance @ (decoder.right @ decoder.right.T), covariance)
    return power / power.sum()


def density_by_region(subject: Subject, shares: dict[str, np.ndarray]) -> pd.DataFrame:
    """Compare each region's share of the patterns with its share of the voxels.

    Parameters
    ----------
    subject : Subject
    shares : dict of family to array, shape (n_voxels,)
        From `pattern_shares`.

    Returns
    -------
    DataFrame
        `family`, `roi`, `density`: 1 where a region's voxels follow as much as the average voxel.
    """
    rows = [
        {"family": family, "roi": roi, "density": share[mask].sum() / mask.mean()}
        for family, share in shares.items()
        for roi, mask in subject.roi.items()
        if mask.any()
    ]
    return pd.DataFrame(rows)


def constant_share(y: np.ndarray) -> tuple[float, float]:
    """Tell how much of some features is the same for every picture.

    Parameters
    ----------
    y : float array, shape (n_stimuli, …)

    Returns
    -------
    of_values, of_power : float
        Share of the values that never vary, and their share of the sum of squares.
    """
    mean, variance = column_moments(y.reshape(len(y), -1))
    constant, power = constant_columns(mean, variance), variance + np.square(mean)
    return float(constant.mean()), float(power[constant].sum() / power.sum())


def decoder_reliability(subject: Subject, decoders: str | Path, family: str) -> np.ndarray:
    r"""Return the highest correlation that noise in the test responses lets a decoder reach.

    Not a noise ceiling of voxels: what repeats of a decoded value need not be the picture's.

    The test pictures are decoded from each repetition alone. With the variance
    :math:`\sigma^2_w` over the :math:`n` repetitions of a picture and :math:`\sigma^2_b` of their
    means over pictures, a share :math:`\rho = 1 - \sigma^2_w / (n \sigma^2_b)` of what is decoded
    from the mean response would come again. Noise correlates with nothing, so the correlation
    with the true value is :math:`\sqrt\rho` at most.

    Parameters
    ----------
    subject : Subject
    decoders : str or Path
        Folder of `decode_subject`.
    family : str

    Returns
    -------
    float array, shape (n_decoded,)
        NaN for values that do not vary; all NaN if not every test picture was repeated.
    """
    first = np.min(subject.n_repetitions(np.concatenate([s.test for s in subject.splits])))
    parts = []
    for split in subject.splits:
        decoder = load_decoder(Path(decoders) / split.name / f"{family}.safetensors")
        once = _single_repetitions(subject, split, first)
        parts.append(np.stack([decoder.predict(x) for x in once]))
    decoded = np.concatenate(parts, axis=1)
    decoded = decoded[:, :, np.isfinite(decoded).all((0, 1))]
    if first < 2 or decoded.shape[1] < 2:
        return np.full(decoded.shape[2], np.nan)
    within = decoded.var(0, ddof=1).mean(0)
    between = decoded.mean(0).var(0, ddof=1)
    varies = between > 1e-10
    share = 1 - np.divide(within, first * between, where=varies, out=np.zeros_like(between))
    return np.where(varies, np.sqrt(np.clip(share, 0, 1)), np.nan)


def _single_repetitions(subject: Subject, split, n: int):
    """Yield the responses to the test stimuli in their first, second, … repetition."""
    number = pd.Series(subject.stimulus_id).groupby(subject.stimulus_id).cumcount().to_numpy()
    tests = np.isin(subject.stimulus_id, split.test)
    for one in range(n):
        # No split has a stimulus of this number.
        ids = np.where(tests & (number != one), -1, subject.stimulus_id)
        yield prepare_fold(replace(subject, stimulus_id=ids), split).test_x
