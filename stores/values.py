"""Convert values to the form in which they are stored, or refuse them."""

from __future__ import annotations

from typing import Any

import numpy as np

from posttrace.stores.errors import StoreError
from posttrace.stores.schema import DTYPES, MAX_TEXT, Group, Unit


def fitting(group: Group, unit: Unit, name: str, window: tuple[slice, ...], value: Any) -> np.ndarray:
    """Return the values of one array of a unit in the shape, dtype and byte order of the store.

    Raises
    ------
    StoreError
        A wrong shape, a lossy dtype, or text that is not text or too long.
    """
    where = f"unit {unit.id!r}, array {name!r}"
    value, declared = np.asarray(value), group.array(name).dtype
    shape = tuple(w.stop - w.start for w in window)
    if value.shape != shape:
        raise StoreError(f"{where}: shape {value.shape}, must be {shape} for dims {group.array(name).dims}")
    if declared == "string":
        return _texts(where, value)
    stored = np.dtype(DTYPES[declared][0])
    if declared == "bfloat16" and value.dtype.name == "bfloat16":
        value = value.view(np.uint16)
    lossless = value.dtype.kind == stored.kind and np.can_cast(value.dtype, stored, "safe")
    if not lossless or (declared == "bfloat16" and value.dtype.itemsize != 2):
        fix = "give its uint16 bits" if declared == "bfloat16" else f"convert it, e.g. .astype({declared!r})"
        raise StoreError(
            f"{where}: dtype {value.dtype}, must be {declared} (nothing is cast silently); {fix}"
        )
    return np.ascontiguousarray(value, dtype=stored).reshape(shape)


def _texts(where: str, value: np.ndarray) -> np.ndarray:
    """Return the texts as Python strings; refuse anything else, and what UTF-8 cannot encode."""
    flat = value.ravel().tolist()
    for one in flat:
        if not isinstance(one, str):
            raise StoreError(f"{where}: {one!r} is not text; give str, of dtype object or str")
        try:
            one.encode()
        except UnicodeEncodeError as fault:
            raise StoreError(f"{where}: {one!r} is not valid Unicode ({fault.reason}); clean it") from None
    size = sum(len(one.encode()) for one in flat)
    if size > MAX_TEXT:
        raise StoreError(
            f"{where}: {size} bytes of text, at most {MAX_TEXT} are possible; make the units smaller"
        )
    texts = np.empty(value.shape, dtype=object)
    texts.ravel()[:] = flat
    return texts
