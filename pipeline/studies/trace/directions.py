"""Read a direction from a file or from the store of another job."""

from __future__ import annotations

import io
from collections.abc import Callable
from tokenize import TokenError

import numpy as np

from posttrace.pipeline.errors import JobError, shown
from posttrace.pipeline.files import read_bytes
from posttrace.pipeline.studies.trace.job import Direction

LARGEST = 1e9
"""Of a direction's values: together with the largest coefficient, its square is still a number of float32."""


def load_direction(name: str, spec: Direction, hidden_size: int, n_layers: int) -> np.ndarray:
    """Return the vector, float32; dims hidden, or layer x hidden (one per block).

    Raises
    ------
    JobError
        If it is not there, not finite, zero, or of another size than the model.

    Examples
    --------
    >>> load_direction("mine", Direction(file="mine.npy"), 160, 8).shape          # doctest: +SKIP
    (160,)
    """
    shapes = ((hidden_size,), (n_layers, hidden_size))

    def check(shape: tuple[int, ...], dtype: np.dtype) -> None:
        if shape not in shapes:
            more = "" if spec.file else "; add to `at` what is left to choose"
            raise JobError(
                f"directions.{name}: shape {shape}, must be {shapes[0]} or {shapes[1]} for this family{more}"
            )
        if dtype.kind not in "fiu":
            raise JobError(f"directions.{name}: its values are {dtype}, not real numbers; save it as float32")

    values = _from_file(name, spec.file, check) if spec.file else _from_store(name, spec, check)
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(values, dtype="float32")
    if not (np.abs(values) <= LARGEST).all() or not values.any(axis=-1).all():
        raise JobError(
            f"directions.{name}: a direction must be finite, no value beyond {LARGEST:g}, and not zero"
            f"{' in any block' if values.ndim > 1 else ''}; check where it comes from"
        )
    return values


def _from_file(name: str, file: str, check: Callable) -> np.ndarray:
    """Return the array of a .npy file; its header is checked before anything else is read."""
    place, fix = f"directions.{name}", f"edit directions.{name}.file"
    stream = io.BytesIO(read_bytes(file, place, fix))
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = read[version](stream)
        check(shape, dtype)
        stream.seek(0)
        return np.lib.format.read_array(stream, allow_pickle=False)
    except (ValueError, KeyError, SyntaxError, TokenError) as error:  # the header is Python
        what = f"version {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise JobError(
            f"{place}: {shown(file)} is no readable .npy file ({shown(what)}); save one array with numpy.save"
        ) from None


def _from_store(name: str, spec: Direction, check: Callable) -> np.ndarray:
    from posttrace.stores import open_group

    assert spec.store is not None and spec.array is not None, "a direction is in a file or in a store"
    group, _, array = spec.array.rpartition("/")
    data = open_group(spec.store, group)
    if array not in data:
        there = ", ".join(map(str, data.data_vars))
        raise JobError(f"directions.{name}: {spec.store} has no array {spec.array!r} ({group} has {there})")
    values = data[array]
    for key, label in spec.at.items():
        if key not in values.dims:
            raise JobError(
                f"directions.{name}: at: {key!r} is none of {', '.join(map(str, values.dims))}; edit at"
            )
        try:
            values = values.sel({key: label})
        except (KeyError, TypeError, ValueError, IndexError):
            known = ", ".join(map(str, values[key].values[:20]))
            raise JobError(f"directions.{name}: at: {key}: {label!r} is none of {known}; edit at") from None
    check(values.shape, values.dtype)
    return values.values
