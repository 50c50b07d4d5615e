"""Shared by the line figures of the truthfulness study: panels, axes, legends, words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from posttrace.figures import theme
from posttrace.figures.studies.truthfulness.data import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


COLUMNS = 4
"""Panels per row."""


def panels(n: int, height: float, columns: int = COLUMNS) -> tuple[Figure, list[Axes]]:
    """Return a figure with n panels that share their axes, filled row by row."""
    columns = min(n, columns)
    rows = -(-n // columns)
    figure = theme.new_figure(
        max(3.4, 0.5 + 1.6 * columns), 0.75 + height * rows, w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02
    )
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for empty in axes.flat[n:]:
        empty.set_visible(False)
    for column in range(columns):
        last = (n - 1 - column) // columns
        axes[last, column].tick_params(labelbottom=True)
    return figure, list(axes.flat[:n])


def label_outer(axes: Sequence[Axes], y: str, x: str) -> None:
    place = axes[0].get_subplotspec()
    assert place is not None, "the axes are not in a grid"
    columns = place.get_gridspec().ncols
    for i, ax in enumerate(axes):
        if i % columns == 0:
            ax.set_ylabel(y)
        if i + columns >= len(axes):
            ax.set_xlabel(x, labelpad=2)


def layer_axis(ax: Axes, summary: Summary) -> None:
    """Show layer numbers along the horizontal axis."""
    ax.set_xlim(summary.layers[0] - 0.2, summary.layers[-1] + 0.2)
    theme.whole_numbers(ax.xaxis, nbins=8)


def stage_legend(figure: Figure, summary: Summary, colours, transferred: str, random: bool = False) -> None:
    handles = [theme.key(color=colours[stage], label=f"{stage}, own") for stage in summary.stages]
    if len(summary.stages) > 1:
        handles.append(theme.key(color=theme.MUTED, linestyle=(0, (3, 3)), linewidth=0.9, label=transferred))
    if random:
        handles.append(theme.key(color=theme.MUTED, linewidth=4, alpha=0.3, label="random directions"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), handlelength=2.4)


def title(summary: Summary, what: str) -> str:
    """Return the line above a figure."""
    return f"{summary.family}: {what}" if summary.family else what


def family(summary: Summary) -> str:
    """Return the beginning of a caption."""
    return f"{summary.family}: " if summary.family else ""


def gaps(summary: Summary, names: Sequence[str]) -> str:
    """Return what a caption says about missing sets."""
    lacking = [name for name in summary.sets if name not in names]
    return f" INCOMPLETE: nothing yet for {', '.join(lacking)}." if lacking else ""
