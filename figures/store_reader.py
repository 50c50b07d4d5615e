"""Read a store for drawing: its run's record and its groups. The only module that imports `stores`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
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
    """Group path -> its data, read when they are used; all were found whole before anything is drawn."""

    @property
    def groups(self) -> Mapping[str, Any]:
        """Group path -> its record."""
        return self.summary["groups"]

    @property
    def units(self) -> tuple[int, int]:
        """Units done, and planned."""
        return self.summary["units"]["done"], self.summary["units"]["total"]

    @property
    def finished(self) -> bool:
        """Whether every unit is done."""
        done, total = self.units
        return done >= total

    def study_of(self, path: str) -> str:
        """Return the study a group belongs to: its attribute, else the first part of its path."""
        return str(self.groups[path].get("attrs", {}).get("study") or path.split("/")[0])

    def datasets(self, study: str) -> Iterator[xr.Dataset]:
        """Give the groups of a study one after the other, in the store's order; values are read when used.

        Raises
        ------
        stores.Damaged: values that are used turn out to be damaged.
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


def open_source(url: str | os.PathLike[str]) -> Source:
    """Open a store for drawing, all of its groups: what is lost or altered is found before anything is drawn.

    Example
    -------
    >>> open_source("runs/knowledge").units
    (5, 5)

    Raises
    ------
    stores.StoreError: no store at this URL.
    stores.Damaged: a finished unit or a coordinate is lost or altered; the message says how to mend it.
    FigureError: a store without groups.
    """
    from posttrace.stores import Store, open_group, summary

    store = Store.open(url)
    known = summary(store)
    if not known["groups"]:
        raise FigureError(f"{store.url}: the store has no groups, nothing to draw; run a job into it first")
    # one open store for all: its markers are read once
    return Source(os.fspath(url), known, {path: open_group(store, path) for path in known["groups"]})
