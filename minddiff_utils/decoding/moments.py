"""Means and variances of columns, added up in double precision without a copy of the whole."""

import numpy as np

# Columns at a time, which bounds the memory.
COLUMNS = 1024


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
