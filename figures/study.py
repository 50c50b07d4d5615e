"""How a study declares its figures: a `STUDY` in `figures/studies/<study>/__init__.py`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One kind of figure or table of a study."""

    name: str
    """`study/kind`, as given to `--only`."""
    description: str
    """One line for `posttrace ls figures`."""
    function: str
    """`module:function`, imported when drawn: takes the study's groups as read, yields Drawing and Table."""
    folded: bool = False
    """Whether the page keeps it closed until asked: full grids, long lists."""


@dataclass(frozen=True)
class Study:
    """How the groups of one study become figures."""

    reader: str
    """`module:function`, imported when read: opened group (xarray Dataset) -> a `group.Group`."""
    guide: str
    """`module:constant`: (heading, text) for each kind of figure, shown on the page."""
    verdict: str
    """`module:function`: the study's groups as read -> a `verdict.Verdict`, with which the page begins."""
    hero: str
    """Name of the figure (or table, for a study without figures) that the page shows under the verdict."""
    figures: tuple[Figure, ...]
    """In the order of the report."""
    estimate_guide: str | None = None
    """Like `guide`, added if a group holds estimates (its attribute `method` is "attribution")."""
