"""What the viewer shows of a store: one slice of one array, read on demand, with its labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures.errors import FigureError

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

MEAN, LENGTH, ALL = "mean", "length", "all"
"""Ways to show an axis as a whole: its mean, its Euclidean length (of vectors), every label a column (of tables)."""
WAYS = (MEAN, LENGTH, ALL)
LARGEST = 2**28
"""Bytes that a slice may read."""
MOST_CELLS = 20_000
"""Cells that a page draws."""
MOST_COLUMNS = 200
"""Columns of a table that a page shows."""
LONGEST = 70
"""Characters of an axis's label in a list."""


@dataclass(frozen=True)
class Slice:
    """A choice of what to show: an array, the axes of the picture, and what of every other axis."""

    array: str
    x: str | None
    """Columns of a map or table, x axis of lines."""
    y: str | None
    """Rows of a map or table, one line each."""
    at: Mapping[str, int | str] = field(default_factory=dict)
    """Other axis -> number of the label, or one of `WAYS`."""


def is_text(array: xr.DataArray) -> bool:
    """Tell whether an array holds text."""
    return array.dtype.kind in "TOU"


def labels(data: xr.Dataset, dim: str) -> list[str]:
    """Return a line for every label of an axis; numbers are followed by their text where the axis has one.

    Examples
    --------
    >>> labels(open_store("runs/knowledge")["knowledge/cities"].to_dataset(), "source")
    ['base', 'instruct']
    """
    names = [str(n) for n in data[dim].values] if dim in data.coords else [*map(str, range(data.sizes[dim]))]
    if dim not in data.coords or not is_text(data[dim]):
        for coord in texts_of(data, dim)[:1]:
            names = [f"{name}: {text}" for name, text in zip(names, data[coord].values, strict=True)]
    return [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in names]


def texts_of(data: xr.Dataset, dim: str) -> list[str]:
    """Return the text coordinates along an axis, statements before the prompts that hold them."""
    found = [str(n) for n, c in data.coords.items() if c.dims == (dim,) and n != dim and is_text(c)]
    return sorted(found, key=lambda name: name.endswith("prompt"))


def tick_labels(data: xr.Dataset, dim: str, at: Mapping[str, int | str]) -> list[str]:
    """Return short labels along an axis: the tokens of the chosen prompt where the store knows them.

    Examples
    --------
    >>> tick_labels(open_store("runs/knowledge")["knowledge/cities"].to_dataset(), "token", {"pair": 0})[:2]
    ['The', 'city']
    """
    fixed = {name: index for name, index in at.items() if isinstance(index, int)}
    candidates = [
        coord
        for name, coord in data.coords.items()
        if dim in coord.dims and name != dim and is_text(coord) and "role" not in str(name)
        and set(coord.dims) <= {dim, *fixed} and str(name).startswith(dim)
    ]  # fmt: skip
    if not candidates:
        return [label.partition(": ")[0] for label in labels(data, dim)]
    coord = max(candidates, key=lambda one: (one.ndim, str(one.name).endswith("_of_pair")))
    return [str(text) for text in coord.isel({d: fixed[d] for d in coord.dims if d != dim}).values]


def read(data: xr.Dataset, wanted: Slice, other: tuple[xr.Dataset, Slice] | None = None) -> xr.DataArray:
    """Read a slice, or its difference from another one; dims y, x (those that are not None).

    Parameters
    ----------
    other
        What is subtracted, label by label; labels that only one of the two has are left out.

    Raises
    ------
    FigureError
        More than `LARGEST` bytes would have to be read, or nothing has the same labels in both.
    """
    values = _picked(data, wanted)
    if other is not None:
        import xarray as xr

        minus = _picked(*other)
        # xarray aligns indexes; text along an axis that differs (another prompt of the same number) is dropped
        try:
            values, minus = (one.astype("float32") for one in xr.align(values, minus, join="inner"))
        except ValueError as fault:  # an axis without labels has another size
            raise FigureError(
                f"{wanted.array}: the two do not fit: {fault}; choose another one to subtract"
            ) from None
        if 0 in values.shape:
            raise FigureError(
                f"{wanted.array}: the two have no labels in common; choose another one to subtract"
            )
        values = values - minus
    for dim, way in wanted.at.items():
        if way == MEAN:
            values = values.mean(dim)
        if way == LENGTH:
            values = (values.astype("float32") ** 2).sum(dim, skipna=False) ** 0.5
    return values.transpose(*(d for d in (wanted.y, wanted.x) if d), ...)


def _picked(data: xr.Dataset, wanted: Slice) -> xr.DataArray:
    array = data[wanted.array]
    array = array.isel({d: i for d, i in wanted.at.items() if isinstance(i, int) and d in array.dims})
    if array.nbytes > LARGEST:
        raise FigureError(
            f"{wanted.array}: this view reads {array.nbytes / 2**20:,.0f} MiB, more than {LARGEST / 2**20:,.0f} MiB; "
            "choose one label of an axis instead of its mean"
        )
    return array.load()


def matching(data: xr.Dataset, other: xr.Dataset, at: Mapping[str, int | str]) -> dict[str, int | str]:
    """Return the numbers that the same labels have in another group.

    Raises
    ------
    FigureError
        It lacks a label.
    """
    found = dict(at)
    for dim, index in at.items():
        if isinstance(index, int) and dim in data.indexes and dim in other.indexes:
            label = data.indexes[dim][index]
            if label not in other.indexes[dim]:
                raise FigureError(
                    f"{dim} {label}: is not in the store that is subtracted; choose another label"
                )
            found[dim] = int(other.indexes[dim].get_loc(label))
    return found


def differing_texts(data: xr.Dataset, other: xr.Dataset, dim: str) -> int:
    """Return how many labels of an axis that both groups have stand for different texts."""
    known = [name for name in texts_of(data, dim) if name in other.coords and other[name].dims == (dim,)]
    if not known or dim not in data.coords or dim not in other.coords:
        return 0
    import xarray as xr

    one, two = xr.align(data[known[0]].load(), other[known[0]].load(), join="inner")
    return int((one.values != two.values).sum())


def table(
    data: xr.Dataset,
    wanted: Slice,
    *,
    other: tuple[xr.Dataset, Slice] | None = None,
    search: str = "",
    only: tuple[str, bool] | None = None,
) -> pd.DataFrame:
    """Read a slice as a table: the texts of every row, then a column for each label of x and of the axes at `ALL`.

    Parameters
    ----------
    search
        Keep rows that have this in one of their texts, in any case.
    only
        A Boolean array with the same axes; keep the rows where it holds in some column (True), or in none (False).

    Raises
    ------
    FigureError
        More than `MOST_COLUMNS` columns, and what `read` raises.
    """
    import pandas as pd

    spread = [d for d in (wanted.x, *(d for d, way in wanted.at.items() if way == ALL)) if d]
    if (columns := prod(data.sizes[d] for d in spread)) > MOST_COLUMNS:
        raise FigureError(
            f"{wanted.array}: a table of {' x '.join(spread)} has {columns:,} columns, more than the {MOST_COLUMNS} "
            "that a page shows; make a longer axis the rows, or choose one label of it"
        )
    values = read(data, wanted, other)
    rows = values.sizes[wanted.y] if wanted.y else 1
    frame = pd.DataFrame(index=range(rows))
    if wanted.y:
        kept = data if other is None else data.sel({wanted.y: values[wanted.y]})
        if wanted.y in kept.coords:
            frame[wanted.y] = list(map(str, kept[wanted.y].values))
        for name in texts_of(data, wanted.y):
            frame[name] = list(map(str, kept[name].values))
    # labels of the values: a difference has only those that both have
    names = [[label.partition(": ")[0] for label in labels(values.to_dataset(name="v"), d)] for d in spread]
    for indices in product(*(range(len(n)) for n in names)):
        column = values.isel(dict(zip(spread, indices, strict=True))).values.reshape(rows)
        title = ", ".join(n[i] for n, i in zip(names, indices, strict=True)) or wanted.array
        frame[title] = [str(v) for v in column] if is_text(values) else column
    keep = np.ones(rows, bool)
    if search:
        text = frame.select_dtypes(exclude="number").astype(str)
        found = [text[c].str.contains(search, case=False, regex=False) for c in text]
        keep &= np.logical_or.reduce(found) if found else False
    if only is not None:
        array, yes = only
        marked = read(data, replace(wanted, array=array)).reindex_like(values)
        some = marked.values.reshape(rows, -1).any(axis=1)
        keep &= some if yes else ~some
    return frame[keep]


def flags(data: xr.Dataset, array: str) -> list[str]:
    """Return the Boolean arrays with the axes of an array, by which its table can be filtered."""
    dims = set(data[array].dims)
    return [
        str(n) for n, a in data.data_vars.items() if a.dtype == bool and set(a.dims) == dims and n != array
    ]


def same_axes_texts(data: xr.Dataset, array: str) -> list[str]:
    """Return the text arrays with the axes of an array, which its map can show in its cells."""
    dims = data[array].dims
    return [str(n) for n, a in data.data_vars.items() if is_text(a) and a.dims == dims]


def in_python(url: str, group: str, data: xr.Dataset, wanted: Slice) -> str:
    """Return a line of Python that gives the same values."""
    labelled, numbered, reduced = [], [], ""
    for dim, at in wanted.at.items():
        if isinstance(at, int) and dim in data.indexes:
            value = data[dim].values[at]
            labelled.append(f"{dim}={(str(value) if is_text(data[dim]) else value.item())!r}")
        elif isinstance(at, int):
            numbered.append(f"{dim}={at}")
        elif at == MEAN:
            reduced += f'.mean("{dim}")'
        elif at == LENGTH:
            reduced += f'.reduce(np.linalg.norm, "{dim}")'
    chosen = "".join(f".{by}({', '.join(at)})" for by, at in (("sel", labelled), ("isel", numbered)) if at)
    return f"pt.open_store({url!r})[{group!r}][{wanted.array!r}]{chosen}{reduced}"


def axes_of(data: xr.Dataset, array: str, first: Sequence[str]) -> tuple[str | None, str | None]:
    """Return the axes to show as x and y by default."""
    dims = [str(d) for d in data[array].dims if d != "hidden"]
    if is_text(data[array]):
        items = [d for d in dims if texts_of(data, d)] or dims
        y = max(items, key=lambda d: data.sizes[d], default=None)
        return next((d for d in dims if d != y), None), y
    ranked = sorted(dims, key=lambda d: first.index(d) if d in first else len(first))
    return next(iter(ranked), None), next(iter(ranked[1:]), None)
