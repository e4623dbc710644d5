"""The effective dimension: on spectra that are known."""

import h5py
import numpy as np
import pytest

from minddiff_utils.evaluation.dimension import dimension_table
from minddiff_utils.evaluation.statistics import effective_dimension
from minddiff_utils.io import InputError


def spread(eigenvalues, n=400, seed=0):
    """Rows whose covariance has just these eigenvalues, turned and moved."""
    rng = np.random.default_rng(seed)
    d = len(eigenvalues)
    q, _ = np.linalg.qr(rng.normal(size=(n, d)))
    q, _ = np.linalg.qr(q - q.mean(axis=0))
    turn, _ = np.linalg.qr(rng.normal(size=(d, d)))
    return q * np.sqrt(eigenvalues) @ turn + 5


@pytest.mark.parametrize("eigenvalues", [[1, 1, 1, 1], [4, 2, 1, 1], [1, 1e-3, 1e-3, 1e-3]])
def test_both_numbers_follow_from_the_spectrum(eigenvalues):
    p = np.array(eigenvalues) / np.sum(eigenvalues)
    found = effective_dimension(spread(eigenvalues))
    assert found.participation_ratio == pytest.approx(1 / np.sum(p**2))
    assert found.entropy == pytest.approx(np.prod(p**-p))


def test_the_same_row_for_all_is_one_dimension():
    row = np.random.default_rng(0).normal(size=30).astype(np.float32)
    assert effective_dimension(np.tile(row, (50, 1))) == (1, 1)
    assert effective_dimension(np.zeros((5, 3))) == (1, 1)


def test_neither_scale_nor_more_rows_of_the_same_change_it():
    rows = spread([3, 2, 1])
    found = effective_dimension(rows)
    assert effective_dimension(7 * np.concatenate([rows, rows])) == pytest.approx(found)


def test_what_has_no_spectrum_is_an_error():
    with pytest.raises(InputError, match="1 rows"):
        effective_dimension(np.ones((1, 3)))
    with pytest.raises(InputError, match="1 values"):
        effective_dimension(np.array([[1.0], [np.nan]]))


def test_decoded_features_are_compared_with_the_same_true_ones(tmp_path):
    true = spread([1, 1, 1, 1], 40).astype("f4")
    with h5py.File(tmp_path / "features.h5", "w") as file:
        file["stimulus_id"], file["z"], file["block_1"] = np.arange(40), true, true[:, None]
    decoded = {"stimulus_id": np.arange(40), "z": true * 3, "block_1": true[:, None].copy()}
    decoded["block_1"][:, 0, 1:] = np.nan  # not decoded
    decoded["z"] = decoded["z"] @ np.outer([1, 2, 0, 1], [1, 1, 2, 0])  # on a line
    table = dimension_table(decoded, tmp_path / "features.h5")
    assert table.loc["z"].tolist() == ["4", "1.0", "4.0", "1.0", "4.0"]
    assert table.loc["block 1"].tolist() == ["1", "1.0", "1.0", "1.0", "1.0"]
