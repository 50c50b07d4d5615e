"""The axis along which values spread most, without a decomposition of all axes."""

from __future__ import annotations

import numpy as np

ROUNDS = 300
"""Products with the values, two each, after which the search ends; a clear axis takes about twenty."""
TOLERANCE = 1e-8


def leading_axis(values: np.ndarray) -> np.ndarray:
    """Return the unit vector along which values have the largest sum of squares; its largest component is positive.

    The first right singular vector, by Lanczos iterations from a fixed start: at hidden size 4096 a second instead of
    most of a minute. Where two axes spread almost alike, it lies in their plane.

    Parameters
    ----------
    values
        Dims item x hidden, centred by the caller; all zero gives the first axis.

    Examples
    --------
    >>> leading_axis(np.array([[1.0, 2.0], [-2.0, -4.0]])).round(4)
    array([0.4472, 0.8944])
    """
    from scipy.sparse.linalg import LinearOperator, eigsh

    hidden = values.shape[1]
    largest = np.abs(values).max()
    if hidden == 1 or largest == 0:
        return np.eye(hidden)[0]
    scaled = values / largest
    squares = LinearOperator((hidden, hidden), matvec=lambda v: scaled.T @ (scaled @ v), dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(hidden)
    _, found = eigsh(squares, k=1, v0=start, tol=TOLERANCE, maxiter=ROUNDS)
    axis = found[:, 0]
    return axis * np.sign(axis[np.abs(axis).argmax()])
