"""Whether a unit's results are numbers: checked in one place, before they are written."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from posttrace.tracers.errors import TracerError

SAME = 1e-5
"""Class means that differ by a smaller share of their length are the same, up to rounding."""


def check_finite(unit: str, dtype: str, arrays: Mapping[str, np.ndarray | torch.Tensor]) -> None:
    """Check that every value is finite; arrays that hold no floating-point numbers pass.

    Parameters
    ----------
    unit, dtype
        The unit that computed them, and in which dtype its model ran.

    Raises
    ------
    TracerError
        Naming the first array that has other values, and what to do.

    Examples
    --------
    >>> check_finite("trace/output/next_token/base/0000", "float16", {"entropy": np.array([1.5])})
    """
    for name, values in arrays.items():
        bad = _count(~_finite(values))
        if bad:
            raise _error(unit, dtype, name, bad, values)


def check_gaps(unit: str, dtype: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Check arrays in which NaN means that there is no value: that none is infinite.

    Raises
    ------
    TracerError
        As `check_finite` does.

    Examples
    --------
    >>> check_gaps("knowledge/cities/clean/base/0000", "float16", {"activation": np.array([1.5, np.nan])})
    """
    for name, values in arrays.items():
        bad = _count(~_finite(values) & (values == values))
        if bad:
            raise _error(unit, dtype, name, bad, values)


def _finite(values):
    if isinstance(values, torch.Tensor):
        return torch.isfinite(values)
    values = np.asarray(values)
    return np.isfinite(values) if values.dtype.kind == "f" else np.ones(values.shape, dtype=bool)


def _count(bad) -> int:
    return int(bad.sum())


def _error(unit: str, dtype: str, name: str, bad: int, values) -> TracerError:
    return TracerError(
        f"unit {unit}: {bad:,} of {np.prod(values.shape):,} values of {name} are not finite in {dtype}; use dtype: "
        "bfloat16 or float32 or smaller coefficients, and check the checkpoint: its weights may not be finite"
    )
