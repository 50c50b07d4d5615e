"""Draw a sample of an engine's results and compare each with its naive value."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from posttrace.tracers.errors import TracerError

CHECKED = 8
"""Results of a unit that are computed again, at most: more say little more, and each costs a whole forward pass."""


def tolerance(dtype: torch.dtype) -> float:
    """Return the rounding allowed between two orders of the same sums, relative to the largest value.

    Examples
    --------
    >>> tolerance(torch.float32), tolerance(torch.bfloat16)
    (0.0001, 0.05)
    """
    return {torch.float32: 1e-4, torch.float64: 1e-8}.get(dtype, 5e-2)


def sample_size(n: int, share: float, at_most: int = CHECKED) -> int:
    """How many of `n` results are checked: a share, at least one and at most `at_most`.

    Examples
    --------
    >>> sample_size(300, 0.01), sample_size(20_000, 0.01), sample_size(5, 0.01)
    (3, 8, 1)
    """
    return max(1, min(at_most, round(share * n)))


def sample(cells: Sequence, share: float, rng: random.Random, at_most: int = CHECKED) -> list:
    """Return a random sample of the cells, as many as `sample_size` says."""
    return rng.sample(cells, sample_size(len(cells), share, at_most))


def compared(fast: float, naive: float, allowed: float, what: str) -> float:
    """How far an engine's value lies from the naive one.

    Parameters
    ----------
    what
        Names model and cell in the message.

    Raises
    ------
    TracerError
        If the two are more than `allowed` apart, or one is not a number.

    Examples
    --------
    >>> compared(1.5, 1.25, allowed=0.5, what="model m: prompt 3")
    0.25
    """
    difference = abs(naive - fast)
    if not difference <= allowed:
        raise TracerError(
            f"{what}: the fast run gives {fast:.6g}, a whole forward pass {naive:.6g} (allowed: {allowed:.2g} apart); "
            "this unit was not stored, please report it with the model's architecture; execution.check_share: 0 runs "
            "unchecked"
        )
    return difference
