"""The look of every figure, and reproducible image files.

Differences and raw logit differences use cmcrameri's `vik` centred on 0 (red: towards TRUE, blue: towards
FALSE). Normalised maps (0 ... 1) use the upper half of `vik` in eleven steps, from its neutral centre to dark
red, so that "towards TRUE" has one colour in every figure. `vik` is perceptually uniform and safe for
colour-blind readers (Crameri et al. 2020, doi:10.1038/s41467-020-19160-7).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.colors import Colormap, ListedColormap, Normalize
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

DPI = 200
FORMATS = ("png", "pdf")
INK = "#22262b"
MUTED = "#6b7280"
GUIDE = "#c3c8cf"
"""Lines to compare with: 0, 1, the diagonal, chance."""
KEY = "#8a3a00"
"""Subject and object labels; a dark orange that differs from INK even in greyscale."""
STAGE_COLOURS = ("#3b4252", "#d1752b", "#2a7fa8", "#7a4fa3", "#3f8f5b", "#b2456e")
"""Stages in the store's order; they differ in lightness as well as hue."""

FONT = "DejaVu Sans"
"""Comes with matplotlib: the same glyphs on every machine."""

LOOK = {
    "figure.facecolor": "white",
    "figure.dpi": DPI,
    "font.family": FONT,
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7,
    "axes.linewidth": 0.6,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "text.parse_math": False,  # a token label may hold a dollar sign
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 6,
    "ytick.labelsize": 6,
    "xtick.major.size": 2,
    "ytick.major.size": 2,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.pad": 1.5,
    "ytick.major.pad": 1.5,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "pdf.fonttype": 42,  # text stays text in an editor
}

# No dates and no versions: the same store always gives the same bytes.
METADATA = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "ModDate": None, "Creator": None, "Producer": None},
}


@dataclass(frozen=True)
class Scale:
    """A colour scale with its bar."""

    colours: Colormap
    norm: Normalize
    ticks: tuple[float, ...] | None
    label: str
    """Meaning of the colour, with its unit."""


def look() -> AbstractContextManager:
    """Return a context with our settings only, regardless of the user's matplotlibrc.

    Examples
    --------
    >>> with look():
    ...     figure = new_figure(width=3.5, height=2.0)
    """
    from matplotlib import style

    return style.context([LOOK], after_reset=True)


def new_figure(
    width: float,
    height: float,
    *,
    w_pad: float | None = None,
    h_pad: float | None = None,
    wspace: float | None = None,
    hspace: float | None = None,
) -> Figure:
    """Return an empty figure outside pyplot's global state; call it inside `look()`.

    Parameters
    ----------
    width, height
        Inches.
    w_pad, h_pad, wspace, hspace
        Padding around and between axes, as in matplotlib's constrained layout.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=w_pad, h_pad=h_pad, wspace=wspace, hspace=hspace)
    # No canvas: seaborn.heatmap would draw the whole figure on it after each panel to look for overlapping labels.
    return Figure(figsize=(width, height), layout=layout)


def whole_numbers(axis: Axis, **options: int) -> None:
    """Restrict the ticks of an axis with matplotlib's default locator to whole numbers."""
    from matplotlib.ticker import MaxNLocator

    locator = axis.get_major_locator()
    assert isinstance(locator, MaxNLocator), f"not the default locator: {locator}"
    locator.set_params(integer=True, **options)


def plain_numbers(axis: Axis) -> None:
    """Label the ticks of a logarithmic axis with plain numbers, as mathematical notation is switched off."""
    from matplotlib.ticker import NullFormatter

    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def heading(figure: Figure, text: str) -> None:
    """Write the line above a figure, flush left."""
    figure.suptitle(text, x=0.008, ha="left", fontsize=8, color=INK)


def spelled_out(text: str) -> str:
    """Return a text with every character that our font lacks written as its code.

    Example
    -------
    >>> spelled_out("city 位")
    'city U+4F4D'
    """
    known = _characters()
    return "".join(c if ord(c) in known or c.isspace() else f"U+{ord(c):04X}" for c in text)


@cache
def _characters() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont(FONT)).get_charmap())


def spell_out(figure: Figure) -> bool:
    """Write characters that our font lacks as their codes, wherever they stand in a figure; whether there were any."""
    from matplotlib.text import Text

    found = False
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            labels = [label.get_text() for label in axis.get_majorticklabels()]
            if any(spelled_out(label) != label for label in labels):
                axis.set_ticks(axis.get_majorticklocs(), labels=[spelled_out(label) for label in labels])
                found = True
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if spelled_out(text.get_text()) != text.get_text():
            text.set_text(spelled_out(text.get_text()))
            found = True
    return found


def key(**style: Any) -> Line2D:
    """Return a legend entry: a line or marker that is not in the figure."""
    from matplotlib.lines import Line2D

    return Line2D([], [], **style)


def empty(ax: Axes, note: str) -> None:
    """Say in the middle of a panel why it is empty."""
    ax.text(0.5, 0.5, note, transform=ax.transAxes, ha="center", va="center", color=MUTED, fontsize=6)


def encode(figure: Figure, kind: str) -> bytes:
    """Return the figure as "png" or "pdf", always with the same bytes.

    Examples
    --------
    >>> encode(figure, "png")[1:4]
    b'PNG'
    """
    buffer = io.BytesIO()
    with look():
        if figure.get_layout_engine() is not None:
            # Lay out once for all formats: it takes half the time of a save, and positions stay the same.
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        figure.savefig(buffer, format=kind, dpi=DPI, metadata=METADATA[kind])
    return buffer.getvalue()


def vik(levels: int = 255) -> ListedColormap:
    """Return cmcrameri's diverging map `vik` (blue below, red above its neutral centre) with an odd number of levels.

    Examples
    --------
    >>> vik(21).N
    21
    """
    from cmcrameri import cm
    from matplotlib.colors import ListedColormap

    # The map has 256 colours, so none for exactly 0; an odd number of levels has its neutral centre there.
    colours = np.asarray(cm.vik.colors)
    positions = np.linspace(0, len(colours) - 1, levels)
    channels = [np.interp(positions, np.arange(len(colours)), channel) for channel in colours.T[:3]]
    return ListedColormap(np.stack(channels, axis=1), name=f"vik_{levels}")


def normalised_scale(label: str = "normalised effect") -> Scale:
    """Return the scale of normalised maps: eleven steps, 0 to 1, upper half of `vik`."""
    from matplotlib.colors import BoundaryNorm, ListedColormap

    colours = ListedColormap(np.asarray(vik(21).colors)[10:], name="vik_upper_11")
    return Scale(colours, BoundaryNorm(np.arange(12) / 10 - 0.05, 11), (0, 0.2, 0.4, 0.6, 0.8, 1.0), label)


def normalised_difference_scale(label: str = "difference of normalised effects") -> Scale:
    """Return the scale of differences of normalised maps: 21 steps over their whole range, -1 to 1, in every figure."""
    from matplotlib.colors import BoundaryNorm

    return Scale(vik(21), BoundaryNorm(np.arange(22) / 10 - 1.05, 21), (-1.0, -0.5, 0.0, 0.5, 1.0), label)


def centred_scale(matrices: Sequence[np.ndarray | None], label: str) -> Scale:
    """Return `vik` centred on 0, up to the largest absolute value of all matrices.

    Examples
    --------
    >>> scale = centred_scale([np.array([[-2.0, 1.0]])], "logit difference, nats")
    >>> scale.norm.vmin, scale.norm.vmax
    (-2.0, 2.0)
    """
    from matplotlib.colors import Normalize

    limit = max((float(np.abs(m).max()) for m in matrices if m is not None), default=0.0) or 1.0
    return Scale(vik(), Normalize(-limit, limit), None, label)


def stage_colours(stages: Sequence[str]) -> dict[str, str]:
    """Return a colour for each stage; with more than six stages, colours repeat.

    Examples
    --------
    >>> stage_colours(["base", "instruct"])["base"]
    '#3b4252'
    """
    return {stage: STAGE_COLOURS[i % len(STAGE_COLOURS)] for i, stage in enumerate(stages)}
