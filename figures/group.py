"""What the readers of all studies share: the interface of a group, and access to its dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from posttrace.figures.errors import FigureError

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

T = TypeVar("T")
F = TypeVar("F", bound=Callable)


class Group(Protocol):
    """A group as its study's figures need it; a reader in `studies/<study>/data.py` returns one."""

    @property
    def name(self) -> str:
        """Which group of the study it is, for messages."""

    @property
    def any_finished(self) -> bool:
        """Whether there is something to draw."""

    @property
    def progress(self) -> str:
        """How much is done, in words."""


@dataclass(frozen=True)
class StageGroup:
    """A group with one entry per stage, along the dimension `model`; studies derive their groups from it."""

    data: xr.Dataset

    @property
    def family(self) -> str:
        """Name of the family."""
        return str(self.data.attrs.get("family", ""))

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages, in the store's order."""
        return names_of(self.data, "model")

    def array(self, name: str) -> np.ndarray:
        """Return an array of the group, dims as stored; it is read once, and kept by the dataset."""
        return self.data[name].load().values

    def values(self, name: str) -> np.ndarray:
        """Return an array as float64."""
        return self.array(name).astype("float64")


def kept(function: F) -> F:
    """Have a group keep what a function of it and hashable arguments gives, which its tables and verdict share."""

    @wraps(function)
    def get(group: Any, *arguments: Any) -> Any:
        found = vars(group).setdefault("_kept", {})
        key = (function, *arguments)
        if key not in found:
            found[key] = function(group, *arguments)
        return found[key]

    return get  # type: ignore[return-value]


def of_type(groups: Iterable, kind: type[T]) -> list[T]:
    """Return the groups of one type.

    Examples
    --------
    >>> of_type([1, "cities"], str)
    ['cities']
    """
    return [group for group in groups if isinstance(group, kind)]


def first_of(groups: Iterable, kind: type[T]) -> T | None:
    """Return the first group of a type, None if there is none."""
    return next(iter(of_type(groups, kind)), None)


def names_of(dataset: xr.Dataset, coordinate: str) -> tuple[str, ...]:
    """Return the labels along a coordinate, in the store's order.

    Examples
    --------
    >>> names_of(xr.Dataset(coords={"model": ["base", "instruct"]}), "model")
    ('base', 'instruct')
    """
    return tuple(map(str, dataset[coordinate].values))


def require(dataset: xr.Dataset, variables: Sequence[str], *, place: str, study: str) -> None:
    """Refuse a group that lacks a variable every group of its study has.

    Raises
    ------
    FigureError
        Names the first missing variable.

    Examples
    --------
    >>> require(xr.Dataset(), ["p_diff"], place="cities", study="truthfulness")
    Traceback (most recent call last):
    posttrace.figures.errors.FigureError: cities: no variable p_diff; is this a store of the truthfulness study?
    """
    for name in variables:
        if name not in dataset.variables:
            raise FigureError(f"{place}: no variable {name}; is this a store of the {study} study?")
