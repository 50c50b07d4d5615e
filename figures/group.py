"""What a study's reader makes of a group, and what all readers share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from posttrace.figures.errors import FigureError

if TYPE_CHECKING:
    import xarray as xr


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


def names_of(dataset: xr.Dataset, coordinate: str) -> tuple[str, ...]:
    """Return the labels along a coordinate, in the store's order.

    Example
    -------
    >>> names_of(xr.Dataset(coords={"model": ["base", "instruct"]}), "model")
    ('base', 'instruct')
    """
    return tuple(map(str, dataset[coordinate].values))


def require(dataset: xr.Dataset, variables: Iterable[str], *, place: str, study: str) -> None:
    """Refuse a group that lacks a variable every group of its study has.

    Example
    -------
    >>> require(xr.Dataset(), ["logit_diff"], place="knowledge/cities", study="knowledge")
    Traceback (most recent call last):
    posttrace.figures.errors.FigureError: knowledge/cities: no variable logit_diff; is this a store of the knowledge study?

    Raises
    ------
    FigureError: the first variable that is missing.
    """  # noqa: E501
    for name in variables:
        if name not in dataset.variables:
            raise FigureError(f"{place}: no variable {name}; is this a store of the {study} study?")
