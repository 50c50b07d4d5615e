"""A figure with its captions, as figure functions yield it. (Tables are in `figures.tables`.)"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure with its output path, heading, caption and alt text."""

    name: str
    """`study/set/kind`: the path under the output folder, without ending."""
    heading: str
    """A few words for the report: "Normalised heat maps"."""
    caption: str
    """What is shown: n, units, what was normalised, in full sentences of plain text."""
    alt: str
    """The same for someone who cannot see it, one sentence."""
    figure: Figure
    complete: bool
    """Whether every pair that was planned is in it."""
