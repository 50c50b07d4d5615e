"""Arrays that are read and checked on use. A module of its own because it imports xarray."""

from __future__ import annotations

from collections.abc import Sequence
from shlex import quote
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from posttrace.stores.checking import Part, Window, confirm
from posttrace.stores.errors import DAMAGED, Damaged, first_line, naming


class Checked(BackendArray):
    """A lazy view of an array that reports damage in one message and decodes bfloat16 to float32.

    Units that lie wholly inside the window read are compared with their hashes, which detects swapped chunks.
    """

    def __init__(self, stored: xr.Variable, place: str, url: str, written: Sequence[Part]) -> None:
        self.stored, self.place, self.url, self.written = stored, place, url, written
        self.wide = stored.attrs.get("logical_dtype") == "bfloat16"
        self.shape, self.dtype = stored.shape, np.dtype("float32") if self.wide else stored.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        with naming("read", self.place):
            try:
                picked = self.stored.isel(dict(zip(self.stored.dims, key, strict=True)))
                values = np.asarray(picked.values)
            except DAMAGED as fault:
                raise Damaged(
                    f"{self.place}: a chunk does not decode ({first_line(fault)}); "
                    f"`posttrace verify {quote(self.url)} --repair` forgets its unit, then run the job again"
                ) from fault
        window = _window(key, self.shape)
        if window is not None and self.written:
            whole = values.reshape([w.stop - w.start for w in window])
            confirm(
                whole if whole.dtype.kind != "T" else whole.astype(object),
                window,
                self.written,
                self.place,
                self.url,
            )
        # A bfloat16 is the upper half of a float32.
        return (values.astype(np.uint32) << 16).view(np.float32) if self.wide else values


def _window(key: tuple[Any, ...], shape: tuple[int, ...]) -> Window | None:
    """Return the contiguous block that a key selects, or None if it selects anything else."""
    window = []
    for one, size in zip(key, shape, strict=True):
        if isinstance(one, slice):
            start, stop, step = one.indices(size)
        elif np.ndim(one) == 0:
            start, stop, step = int(one) % size, int(one) % size + 1, 1
        elif len(one) and np.array_equal(one, np.arange(one[0], one[0] + len(one))):
            start, stop, step = int(one[0]), int(one[0]) + len(one), 1
        else:
            return None
        if step != 1 or stop <= start:
            return None
        window.append(slice(start, stop))
    return tuple(window)


def checked(variable: xr.Variable, place: str, url: str, written: Sequence[Part]) -> xr.Variable:
    """Return the variable with its values checked on reading and bfloat16 decoded to float32."""
    lazy = indexing.LazilyIndexedArray(Checked(variable, place, url, written))
    return xr.Variable(variable.dims, lazy, variable.attrs, variable.encoding)
