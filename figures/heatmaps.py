"""Grids of layer x token heat maps that share axes and one colour bar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures import theme
from posttrace.figures.hover import note

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONGEST_IN_CELL = 8
"""Characters of a text in a cell."""
CELL_OF_TEXT = 0.42
"""Width in inches of a column with texts in its cells."""
LONGEST_LABEL = 14
"""Characters of a token label; longer labels are cut with an ellipsis."""


@dataclass(frozen=True)
class Panel:
    """One heat map of a grid."""

    title: str
    matrix: np.ndarray | None
    """Dims layer x column; None leaves the panel empty except for its note."""
    strong: bool = False
    """Set the title in bold."""
    note: str = ""
    """Shown in the middle of an empty panel."""
    texts: Sequence[Sequence[str]] = ()
    """Written into the cells, dims layer x column."""
    n: int = 0
    """How many items the matrix is of, where the drawing has no `hover.Items`; the page tells it."""
    of: tuple[str, ...] = ()
    """Which map of the drawing's `hover.Items` it is the mean of, or the first of two minus the second."""
    transform: Callable[[np.ndarray], np.ndarray] | None = None
    """What was done to these means, before they were subtracted."""


def heatmap_grid(
    panels: Sequence[Sequence[Panel]],
    labels: Sequence[str],
    key_columns: Sequence[int],
    layers: Sequence[int],
    scale: theme.Scale,
    title: str,
    columns_are: str = "",
) -> Figure:
    """Draw a grid of heat maps, layer 0 at the top as in the paper, and return the figure.

    Parameters
    ----------
    panels
        Rows with the same number of panels.
    labels
        Labels of the columns of every matrix; those of key_columns (subject, object) are coloured.
    layers
        Layer numbers of the rows of every matrix.
    columns_are
        Axis label, for columns that are not tokens.

    Examples
    --------
    >>> panel, scale = Panel("base → base", np.eye(2)), theme.normalised_scale()
    >>> figure = heatmap_grid([[panel]], ["[s1]", ":"], [0], [0, 1], scale, "cities")
    """
    rows, columns = len(panels), len(panels[0])
    width, height, size = _panel_size(
        len(labels), len(layers), max(len(p.title) for row in panels for p in row)
    )
    if any(p.texts for row in panels for p in row):
        width, height = max(width, CELL_OF_TEXT * len(labels)), max(height, 0.14 * len(layers))
    with theme.look():
        figure = theme.new_figure(
            0.95 + columns * width,
            0.75 + rows * (height + 0.22),
            w_pad=0.03,
            h_pad=0.03,
            wspace=0.02,
            hspace=0.02,
        )
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for row, row_axes in zip(panels, axes, strict=True):
            for panel, ax in zip(row, row_axes, strict=True):
                _draw(ax, panel, scale, size)
                note(ax, rows=layers, columns=labels, columns_are=columns_are, unit=scale.label, n=panel.n,
                     of=panel.of, transform=panel.transform, texts=panel.texts)  # fmt: skip
        for ax in axes.flat:
            ax.tick_params(bottom=False, left=False)
        for ax in axes[-1]:
            label_tokens(ax, labels, key_columns)
            ax.set_xlabel(columns_are, labelpad=2)
        for ax in axes[:, 0]:
            label_layers(ax, layers)
        theme.heading(figure, title)
        _colour_bar(figure, axes, scale, rows)
    return figure


def _panel_size(tokens: int, layers: int, title: int) -> tuple[float, float, float]:
    """Return width and height in inches and title size in points, so that neither labels nor titles overlap."""
    width = float(np.clip(0.125 * tokens, 1.4, max(1.9, 0.087 * tokens)))
    smallest, em = 6.0, 0.72 / 72  # a bold letter of this font is at most about 0.72 em wide on average
    width = max(width, smallest * em * title)
    return width, float(np.clip(0.12 * layers, 1.0, 2.1)), min(7.5, width / (em * max(title, 1)))


def _draw(ax: Axes, panel: Panel, scale: theme.Scale, size: float) -> None:
    ax.set_title(panel.title, pad=3, fontsize=size, fontweight="bold" if panel.strong else "normal")
    for spine in ax.spines.values():
        spine.set_visible(True)
        spine.set_color(theme.GUIDE)
    if panel.matrix is None:
        theme.empty(ax, panel.note)
        return
    draw_matrix(ax, panel.matrix, scale)
    for row, line in enumerate(panel.texts):
        for column, text in enumerate(line):
            colour = scale.colours(scale.norm(panel.matrix[row, column]))
            dark = np.dot(colour[:3], (0.299, 0.587, 0.114)) < 0.55  # luma, ITU-R BT.601
            ax.text(column + 0.5, row + 0.5, text[:LONGEST_IN_CELL], ha="center", va="center", fontsize=5,
                    color="white" if dark else theme.INK)  # fmt: skip


def draw_matrix(ax: Axes, matrix: np.ndarray, scale: theme.Scale) -> None:
    """Draw the cells of a heat map, dims layer x column, row 0 at the top, without labels."""
    import seaborn

    seaborn.heatmap(matrix, ax=ax, cmap=scale.colours, norm=scale.norm, cbar=False,
                    xticklabels=False, yticklabels=False,
                    linewidths=0.4 if len(matrix) <= 16 else 0.2, linecolor="white")  # fmt: skip


def label_tokens(ax: Axes, labels: Sequence[str], key_columns: Sequence[int]) -> None:
    """Label the columns of a heat map, those of key_columns in colour."""
    size = 6.0 if len(labels) <= 20 else 5.5
    shown = [label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…" for label in labels]
    ax.set_xticks(np.arange(len(labels)) + 0.5, shown, rotation=90 if len(labels) > 4 else 0, fontsize=size)
    ax.tick_params(axis="x", labelbottom=True, bottom=True)
    texts = ax.get_xticklabels()
    for column in key_columns:
        texts[column].set(color=theme.KEY, fontweight="bold")


def label_layers(ax: Axes, layers: Sequence[int]) -> None:
    """Label at most eight rows of a heat map with their layers."""
    step = max(1, -(-len(layers) // 8))
    positions = range(0, len(layers), step)
    ax.set_yticks([i + 0.5 for i in positions], [str(layers[i]) for i in positions], rotation=0)
    ax.tick_params(axis="y", labelleft=True, left=True)
    ax.set_ylabel("layer", labelpad=2)


def _colour_bar(figure: Figure, axes: np.ndarray, scale: theme.Scale, rows: int) -> None:
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(ScalarMappable(scale.norm, scale.colours), ax=axes, ticks=scale.ticks,
                          shrink=1.0 if rows == 1 else 0.6, aspect=12 if rows == 1 else 24, pad=0.015)  # fmt: skip
    bar.set_label(scale.label, labelpad=4)
    bar.outline.set_visible(False)
    bar.ax.minorticks_off()
    bar.ax.tick_params(length=2, width=0.5)
