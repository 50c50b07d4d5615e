"""Open a store for drawing: its record and its groups. The only module that opens stores."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from posttrace.figures.errors import FigureError

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Source:
    """A store opened for drawing."""

    url: str
    summary: Mapping[str, Any]
    """As `stores.summary` gives it: job, fingerprint, provenance, groups, units, complete."""
    opened: Mapping[str, xr.Dataset]
    """Group path -> its data, read on use; checked for completeness before anything is drawn."""

    @property
    def groups(self) -> Mapping[str, Any]:
        """Group path -> its record."""
        return self.summary["groups"]

    @property
    def units(self) -> tuple[int, int]:
        """Numbers of units done and planned."""
        return self.summary["units"]["done"], self.summary["units"]["total"]

    def study_of(self, path: str) -> str:
        """Return the study of a group: its attribute, or else the first part of its path."""
        return str(self.groups[path].get("attrs", {}).get("study") or path.split("/")[0])

    def datasets(self, study: str) -> Iterator[xr.Dataset]:
        """Yield the groups of a study in the store's order; values are read on use.

        Raises
        ------
        stores.Damaged
            Values turn out to be damaged when they are read.
        """
        for path in self.groups:
            if self.study_of(path) == study:
                yield self.opened[path]

    def stages(self) -> list[str]:
        """Return the stages of the models, in the store's order."""
        found: dict[str, None] = {}
        for dataset in self.opened.values():
            for dim in ("target", "source", "model"):
                if dim in dataset.coords:
                    found |= dict.fromkeys(map(str, dataset[dim].values))
        return list(found)


def open_sources(urls: Sequence[str | os.PathLike[str]]) -> list[Source]:
    """Open several stores for drawing, as `open_source` does.

    Raises
    ------
    FigureError
        A store is named twice or has no groups.
    stores.StoreError
        There is no store at a URL, or a finished unit is lost or altered.

    Examples
    --------
    >>> [source.units for source in open_sources(["runs/knowledge"])]
    [(5, 5)]
    """
    names = [os.fspath(url) for url in urls]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise FigureError(f"{twice[0]}: named more than once; name each store once")
    return [open_source(name) for name in names]


def open_source(url: str | os.PathLike[str]) -> Source:
    """Open all groups of a store for drawing, so that lost or altered data is found before anything is drawn.

    Raises
    ------
    stores.StoreError
        There is no store at this URL.
    stores.Damaged
        A finished unit or a coordinate is lost or altered; the message says how to repair it.
    FigureError
        The store has no groups.

    Examples
    --------
    >>> open_source("runs/knowledge").units
    (5, 5)
    """
    from posttrace.stores import Store, open_group, summary

    store = Store.open(url)
    known = summary(store)
    if not known["groups"]:
        raise FigureError(f"{store.url}: the store has no groups, nothing to draw; run a job into it first")
    # One open store for all groups: its markers are read once.
    return Source(os.fspath(url), known, {path: open_group(store, path) for path in known["groups"]})
