"""A figure with its caption, as figure functions yield it (tables are in `figures.tables`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from posttrace.figures.hover import Items


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure with its output path, heading, caption and alt text."""

    name: str
    """`study/set/kind`: the path under the output folder, without ending."""
    heading: str
    """A few words for the report: "Normalised heat maps"."""
    caption: str
    """What is shown, in full sentences of plain text: n, units, what was normalised."""
    alt: str
    """One sentence for readers who cannot see the figure."""
    figure: Figure
    complete: bool
    """Whether every planned item is in it."""
    items: Items | None = None
    """The single items of a figure's maps, for the page."""
