"""Tensors as stores keep them, and back: a bfloat16 is stored as its bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def as_stored(values: torch.Tensor) -> np.ndarray:
    """Return the array that goes to the store: same values, bfloat16 as uint16 bits.

    Examples
    --------
    >>> as_stored(torch.ones(2, dtype=torch.bfloat16)).dtype
    dtype('uint16')
    """
    return (values.view(torch.uint16) if values.dtype == torch.bfloat16 else values).contiguous().numpy()


def from_stored(values: np.ndarray, dtype: str) -> torch.Tensor:
    """Return the tensor of an array that `Store.read` gave, of the array's declared dtype.

    Examples
    --------
    >>> from_stored(np.array([0x3F80], dtype="uint16"), "bfloat16")
    tensor([1.], dtype=torch.bfloat16)
    """
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor


def widened(values: torch.Tensor, dim: int, width: int) -> torch.Tensor:
    """Values with NaN up to a width along one dimension.

    >>> widened(torch.ones(1, 2), dim=1, width=3)
    tensor([[1., 1., nan]])
    """
    shape = list(values.shape)
    shape[dim] = width - shape[dim]
    return values if not shape[dim] else torch.cat([values, values.new_full(shape, torch.nan)], dim=dim)


def filled(row: Sequence[Any], width: int, filler: Any) -> list[Any]:
    """Values of a row, and fillers after them up to a width.

    >>> filled(["The", " city"], 3, "")
    ['The', ' city', '']
    """
    return [*row, *[filler] * (width - len(row))]
