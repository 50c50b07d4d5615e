"""What a store holds, declared before anything is written: arrays, coordinates, groups and units.

All classes are frozen and validated on construction.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from operator import index
from typing import Any

import numpy as np

from posttrace.stores.errors import StoreError
from posttrace.stores.hashing import as_json, hash_json

# logical dtype -> (dtype on disk, fill value where nothing was written)
DTYPES: dict[str, tuple[str, Any]] = {
    "float64": ("<f8", float("nan")),
    "float32": ("<f4", float("nan")),
    "float16": ("<f2", float("nan")),
    "bfloat16": ("<u2", 0x7FC0),  # the bits of a bfloat16 NaN
    "int64": ("<i8", -1),
    "int32": ("<i4", -1),
    "bool": ("|b1", False),
    "string": ("|O", ""),  # text of any length, UTF-8
}
KINDS = ("result", "activation")
MAX_CHUNK = 2**30  # bytes of one chunk of results when unpacked, and of an inner chunk of activations
MAX_CHUNKS = 2**20  # chunks of one array in one unit
MAX_TEXTS = 2**22  # texts in one chunk
MAX_TEXT = 2**28  # bytes of all texts in one chunk
_NAME = re.compile(r"(?!__)[A-Za-z0-9_][A-Za-z0-9_.+=@-]*")

Region = Mapping[str, tuple[int, int]]


def check_path(value: str, what: str) -> None:
    """Refuse a name that is not valid in keys on every system, or that the format reserves."""
    parts = value.split("/") if isinstance(value, str) else []
    if not parts or not all(_NAME.fullmatch(part) for part in parts) or parts[-1].endswith(".json"):
        raise StoreError(
            f"{what} {value!r} is not a path-safe name: use letters, digits and _ . + = @ - "
            "between single '/', no leading dot or '__', and no '.json' ending"
        )


def check_name(value: str, what: str) -> None:
    """Refuse a name that is not valid as one part of a path."""
    check_path(value, what)
    if "/" in value or value in ("c", "zarr.json"):
        raise StoreError(
            f"{what} {value!r}: '/' and the names 'c' and 'zarr.json' are taken by the format; rename it"
        )


def check_key(key: str) -> None:
    """Refuse the key of a file that could lie outside the store or among its markers."""
    if not isinstance(key, str) or not all(_NAME.fullmatch(part) for part in key.split("/")):
        raise ValueError(f"{key!r} is not a file of a store")


@dataclass(frozen=True)
class Array:
    """One array of a group.

    Examples
    --------
    >>> Array("logit_diff", ("pair", "layer"), "float32", "logit difference, nats", "", {"pair": 16}).kind
    'result'
    """

    name: str
    dims: tuple[str, ...]
    """Dimension names, in order."""
    dtype: str
    """One of float64, float32, float16, bfloat16 (kept as uint16 bits), int64, int32, bool,
    string (text of any length)."""
    unit: str
    """Unit of the values, in words: "logit difference, nats"."""
    description: str
    block: Mapping[str, int] = field(default_factory=dict)
    """Chunk length along a dimension; dimensions not named are not split."""
    kind: str = "result"
    """"result": a block is one chunk, zstd + crc32c. "activation": one shard, a chunk per layer, crc32c."""

    def __post_init__(self) -> None:
        where = f"array {self.name!r}"
        check_name(self.name, "array name")
        object.__setattr__(self, "dims", tuple(self.dims))
        for dim in self.dims:
            check_name(dim, f"{where}: dimension")
        if len(set(self.dims)) != len(self.dims):
            raise StoreError(f"{where}: dims {self.dims} name a dimension twice; give each once")
        if self.dtype not in DTYPES:
            raise StoreError(
                f"{where}: dtype {self.dtype!r} is not one of {', '.join(DTYPES)}; choose one of them"
            )
        if " since " in self.unit:
            raise StoreError(
                f"{where}: unit {self.unit!r} would be read as a date by xarray; reword it without 'since'"
            )
        if self.kind not in KINDS:
            raise StoreError(
                f"{where}: kind {self.kind!r} is not one of {', '.join(KINDS)}; choose one of them"
            )
        if self.kind == "activation" and self.dtype == "string":
            raise StoreError(f"{where}: kind 'activation' is for numbers, dtype is 'string'; use 'result'")
        if self.kind == "activation" and "layer" not in self.dims:
            raise StoreError(
                f"{where}: kind 'activation' needs a dimension 'layer' in {self.dims}; add it or use 'result'"
            )
        for dim, length in self.block.items():
            if dim not in self.dims:
                raise StoreError(
                    f"{where}: block names {dim!r}, which is not in its dims {self.dims}; remove it"
                )
            if not isinstance(length, int) or isinstance(length, bool) or length < 1:
                raise StoreError(
                    f"{where}: block of {dim!r} is {length!r}, must be a whole number of at least 1"
                )


@dataclass(frozen=True)
class Coord:
    """Labels along one or more dimensions.

    Examples
    --------
    >>> Coord("token_label", ("token",), ["The", "city", "of", None], "label of a position").stored.tolist()
    ['The', 'city', 'of', '']
    """

    name: str
    dims: tuple[str, ...]
    values: Any
    """Numbers, bools or strings (None becomes ""), of the shape of dims."""
    description: str = ""

    def __post_init__(self) -> None:
        check_name(self.name, "coordinate name")
        object.__setattr__(self, "dims", tuple(self.dims))
        self.stored  # noqa: B018  refuse bad values on declaration

    @property
    def stored(self) -> np.ndarray:
        """The values as stored: object (str), int64, float64 or bool."""
        try:
            values = np.asarray(self.values)
        except ValueError as fault:
            raise StoreError(f"coordinate {self.name!r}: values are ragged; pad them to one shape") from fault
        if values.dtype.kind in "b":
            return values
        if values.dtype.kind in "iu":
            return values.astype("<i8")
        if values.dtype.kind == "f":
            return values.astype("<f8")
        # asarray(["a", 1]) turns 1 into "1" silently.
        given = np.asarray(self.values, dtype=object)
        flat = ["" if value is None else value for value in given.ravel()]
        for value in flat:
            if not isinstance(value, str):
                raise StoreError(
                    f"coordinate {self.name!r}: {value!r} among strings; "
                    "give only strings (or None), or only numbers"
                )
        stored = np.empty(given.shape, dtype=object)
        stored.ravel()[:] = [str(value) for value in flat]
        return stored

    def digest(self) -> str:
        """Hash the values, whatever list or array type they were given as."""
        return hash_json(
            [self.stored.dtype.kind, self.stored.shape, [repr(v) for v in self.stored.ravel().tolist()]]
        )


@dataclass(frozen=True)
class Group:
    """Arrays and coordinates over common dimensions: one study and data set.

    Examples
    --------
    >>> x = Array("x", ("pair",), "float32", "nats", "a number")
    >>> Group("knowledge/cities", {"pair": 100}, (x,)).shape("x")
    (100,)
    """

    path: str
    sizes: Mapping[str, int]
    """Length of every dimension."""
    arrays: tuple[Array, ...]
    coords: tuple[Coord, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)
    """JSON attributes of the group."""

    @property
    def items(self) -> tuple[Array | Coord, ...]:
        """Everything named in the group: its arrays, then its coordinates."""
        return (*self.arrays, *self.coords)

    def __post_init__(self) -> None:
        where = f"group {self.path!r}"
        check_path(self.path, "group path")
        object.__setattr__(self, "arrays", tuple(self.arrays))
        object.__setattr__(self, "coords", tuple(self.coords))
        for dim, size in self.sizes.items():
            if not isinstance(size, int | np.integer) or isinstance(size, bool) or size < 1:
                raise StoreError(
                    f"{where}: size of {dim!r} is {size!r}, must be a whole number of at least 1"
                )
        names = [item.name for item in self.items]
        for name in names:
            if names.count(name) > 1:
                raise StoreError(
                    f"{where}: {name!r} is declared twice; rename one of the arrays or coordinates"
                )
        for item in self.items:
            for dim in item.dims:
                if dim not in self.sizes:
                    raise StoreError(
                        f"{where}: {item.name!r} has dimension {dim!r}, which is not in sizes "
                        f"{list(self.sizes)}; add it"
                    )
        for array in self.arrays:
            # Without its own name among its dims it is no index: xarray lists it among the other coordinates.
            if array.name in self.sizes and (array.name in array.dims or not array.dims):
                raise StoreError(
                    f"{where}: array {array.name!r} has the name of a dimension, which only a "
                    "coordinate may; rename it"
                )
        for array in self.arrays:
            self._refuse_huge(where, array)
        for coord in self.coords:
            shape = tuple(self.sizes[dim] for dim in coord.dims)
            if coord.stored.shape != shape:
                raise StoreError(
                    f"{where}: coordinate {coord.name!r} has shape {coord.stored.shape}, its dims "
                    f"{coord.dims} have {shape}"
                )
            if coord.name in self.sizes and coord.dims != (coord.name,):
                raise StoreError(
                    f"{where}: coordinate {coord.name!r} has the name of a dimension, so its dims "
                    f"must be ({coord.name!r},)"
                )
        if "coordinates" in self.attrs:
            raise StoreError(f"{where}: attribute 'coordinates' is taken by the format; rename it")
        as_json(dict(self.attrs), f"{where} attrs")

    def _refuse_huge(self, where: str, array: Array) -> None:
        """Refuse chunks too large for memory: a chunk is always decompressed whole."""
        if array.dtype == "string":
            size, most, what = math.prod(self.chunk(array.name)), MAX_TEXTS, "texts"
        else:
            size, most, what = math.prod(self.inner(array.name)), MAX_CHUNK, "bytes"
            size *= np.dtype(DTYPES[array.dtype][0]).itemsize
        if size > most:
            raise StoreError(
                f"{where}: a chunk of {array.name!r} holds {size} {what}, at most {most} are possible; "
                "give it a smaller block"
            )

    def array(self, name: str) -> Array:
        """Return the declaration of one array."""
        for array in self.arrays:
            if array.name == name:
                return array
        raise StoreError(
            f"group {self.path!r} has no array {name!r}; it has {', '.join(a.name for a in self.arrays)}"
        )

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one array."""
        return tuple(int(self.sizes[dim]) for dim in self.array(name).dims)

    def chunk(self, name: str) -> tuple[int, ...]:
        """Return the shape of one chunk (result) or shard (activation) of an array."""
        array = self.array(name)
        return tuple(min(array.block.get(dim, self.sizes[dim]), self.sizes[dim]) for dim in array.dims)

    def inner(self, name: str) -> tuple[int, ...]:
        """Return the shape of what is decompressed at once: a chunk, or one layer of a shard of activations."""
        array = self.array(name)
        if array.kind == "result":
            return self.chunk(name)
        return tuple(1 if dim == "layer" else n for dim, n in zip(array.dims, self.chunk(name), strict=True))

    def window(self, name: str, region: Region | None, where: str) -> tuple[slice, ...]:
        """Return the region restricted to the dims of an array, checked against its shape."""
        region = region or {}
        for dim in region:
            if dim not in self.sizes:
                raise StoreError(
                    f"{where}: region names {dim!r}, group {self.path!r} has {', '.join(self.sizes)}"
                )
        bounds = []
        for dim, size in zip(self.array(name).dims, self.shape(name), strict=True):
            try:
                start, stop = map(index, region.get(dim, (0, size)))
            except (TypeError, ValueError) as fault:
                raise StoreError(
                    f"{where}: {dim} {region[dim]!r} must be (start, stop), whole numbers"
                ) from fault
            if not 0 <= start < stop <= size:
                raise StoreError(
                    f"{where}: {dim} [{start}, {stop}) is not within [0, {size}); correct the region"
                )
            bounds.append(slice(start, stop))
        return tuple(bounds)

    def chunks(self, name: str, window: tuple[slice, ...]) -> Iterator[tuple[str, tuple[slice, ...]]]:
        """Yield the key (relative to the store) and extent of every chunk that a window of an array touches."""
        shape, chunk = self.shape(name), self.chunk(name)
        spans = [range(w.start // n, -(-w.stop // n)) for w, n in zip(window, chunk, strict=True)]
        for place in itertools.product(*spans):
            sides = zip(place, chunk, shape, strict=True)
            extent = tuple(slice(i * n, min((i + 1) * n, size)) for i, n, size in sides)
            yield "/".join([self.path, name, "c", *map(str, place)]), extent


@dataclass(frozen=True)
class Unit:
    """The smallest resumable piece of work: whole chunks of some arrays.

    Examples
    --------
    >>> Unit("knowledge/cities/grid/0016", "knowledge/cities", {"pair": (16, 32)}, ("logit_diff",)).id
    'knowledge/cities/grid/0016'
    """

    id: str
    """Stable, readable, path-safe; unique in the store."""
    group: str
    region: Region
    """Dimension -> (start, stop); dimensions not named are whole."""
    arrays: tuple[str, ...]
    """Names of the arrays it writes, each over the region restricted to the array's dims."""

    def __post_init__(self) -> None:
        check_path(self.id, "unit id")
        object.__setattr__(self, "arrays", tuple(self.arrays))
        try:
            region = {dim: (index(start), index(stop)) for dim, (start, stop) in self.region.items()}
        except (TypeError, ValueError) as fault:
            raise StoreError(
                f"unit {self.id!r}: region {self.region!r} must give (start, stop), whole numbers, per dimension"
            ) from fault
        object.__setattr__(self, "region", region)
        if not self.arrays or len(set(self.arrays)) != len(self.arrays):
            raise StoreError(
                f"unit {self.id!r}: arrays {self.arrays} must name at least one array, each once"
            )
