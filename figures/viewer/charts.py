"""Maps and lines of a labelled slice for the browser; tokens and stage names are drawn as text, never as markup."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures import theme

if TYPE_CHECKING:
    from bokeh.plotting import figure as BokehFigure

PALETTE_SIZE = 255
CELL = 44
"""Width of a map's column, pixels, where there is room."""
WIDEST = 1100
DARK = 0.55
"""Share of the largest absolute value from which on a cell is dark."""


def plain(text: object, longest: int = 200) -> str:
    """Return a text on one line that Bokeh does not take for TeX, for which it would load a library.

    Examples
    --------
    >>> plain("$$x$$") == "$$x$$"
    False
    """
    kept = str(text).replace("\n", "⏎").replace("\t", "⇥")[:longest]
    for opening in ("$$", "\\(", "\\["):
        kept = kept.replace(opening, f"{opening[0]}\u2060{opening[1]}")
    return kept


def heat_map(
    values: np.ndarray,
    *,
    columns: Sequence[str],
    rows: Sequence[str],
    axes: tuple[str, str],
    unit: str,
    texts: np.ndarray | None = None,
) -> BokehFigure:
    """Draw a map with its first row at the top; hovering tells a cell's labels and value.

    Parameters
    ----------
    values
        Dims row x column; NaN is grey.
    axes
        Names of the horizontal and the vertical axis.
    texts
        Written into the cells, dims row x column.

    Examples
    --------
    >>> chart = heat_map(np.eye(2), columns=["a", "b"], rows=["0", "1"], axes=("token", "layer"), unit="nats")
    """
    from bokeh.models import ColorBar, ColumnDataSource, LinearColorMapper
    from bokeh.plotting import figure
    from matplotlib.colors import to_hex

    n_rows, n_columns = values.shape
    y, x = (axis.ravel() for axis in np.mgrid[:n_rows, :n_columns])
    columns, rows = [plain(c) for c in columns], [plain(r) for r in rows]
    unit = plain(unit.partition(":")[0], 60)
    cells = {
        "x": x,
        "y": y,
        "value": values.astype(float).ravel(),
        "column": [columns[i] or " " for i in x],
        "row": [rows[i] for i in y],
    }
    hover = [(axes[1], "@row"), (axes[0], "@column"), (unit or "value", "@value{0.000}")]
    finite = np.abs(values[np.isfinite(values)])
    limit = float(finite.max()) if finite.size else 1.0
    if texts is not None:
        cells["text"] = [plain(t) for t in texts.ravel().tolist()]
        cells["short"] = [t[:9] for t in cells["text"]]
        cells["ink"] = np.where(np.abs(cells["value"]) > DARK * limit, "white", "black").tolist()
        hover.insert(2, ("text", "@text"))
    colours = [to_hex(c) for c in theme.vik(PALETTE_SIZE)(range(PALETTE_SIZE))]
    mapper = LinearColorMapper(palette=colours, low=-limit or -1.0, high=limit or 1.0, nan_color="#dddddd")
    width = CELL * (2 if texts is not None else 1)
    chart = figure(
        x_range=(-0.5, n_columns - 0.5),
        y_range=(n_rows - 0.5, -0.5),
        width=int(np.clip(width * n_columns + 190, 380, WIDEST)),
        height=int(np.clip(24 * n_rows + 150, 260, 900)),
        tools="hover,tap,box_zoom,wheel_zoom,pan,reset,save",
        active_scroll=None,
        tooltips=hover,
        x_axis_label=plain(axes[0]),
        y_axis_label=plain(axes[1]),
        toolbar_location="above",
    )
    source = ColumnDataSource(cells)
    chart.rect("x", "y", 1, 1, source=source, fill_color={"field": "value", "transform": mapper}, line_color="white",
               line_width=0.5, nonselection_fill_alpha=1.0)  # fmt: skip
    if texts is not None:
        chart.text("x", "y", text="short", source=source, text_align="center", text_baseline="middle",
                   text_font_size="10px", text_color="ink", nonselection_text_alpha=1.0)  # fmt: skip
    _label(chart.xaxis[0], columns)
    _label(chart.yaxis[0], rows, at_most=40)
    chart.xaxis.major_label_orientation = pi / 3 if n_columns > 4 else 0
    chart.grid.visible = False
    chart.add_layout(ColorBar(color_mapper=mapper, title=unit, width=12), "right")
    return chart


def lines(
    values: np.ndarray,
    *,
    x: Sequence[float] | Sequence[str],
    names: Sequence[str],
    axes: tuple[str, str],
    unit: str,
) -> BokehFigure:
    """Draw a line for every row; hovering tells its name and value.

    Parameters
    ----------
    values
        Dims line x point.
    x
        Numbers, or labels at equal distances.

    Examples
    --------
    >>> chart = lines(np.eye(2), x=[0, 1], names=["base", "sft"], axes=("layer", "model"), unit="nats")
    """
    from bokeh.models import HoverTool
    from bokeh.palettes import Category10_10
    from bokeh.plotting import figure

    unit = plain(unit.partition(":")[0], 60)
    chart = figure(width=900, height=420, tools="box_zoom,wheel_zoom,pan,reset,save", active_scroll=None,
                   x_axis_label=plain(axes[0]), y_axis_label=unit, toolbar_location="above")  # fmt: skip
    numeric = all(isinstance(one, int | float) for one in x)
    places = list(x) if numeric else list(range(len(x)))
    known = [*theme.STAGE_COLOURS, *Category10_10]
    for i, (name, row) in enumerate(zip(map(plain, names), values.astype(float), strict=True)):
        colour = known[i % len(known)]
        data = {"x": places, "y": row, "name": [name] * len(places), "label": [plain(one) for one in x]}
        chart.line("x", "y", source=data, color=colour, line_width=2, legend_label=name)
        dots = chart.scatter("x", "y", source=data, color=colour, size=6, legend_label=name)
        tips = [(axes[1] or "line", "@name"), (axes[0], "@label"), (unit or "value", "@y{0.000}")]
        chart.add_tools(HoverTool(renderers=[dots], tooltips=tips))
    if not numeric:
        _label(chart.xaxis[0], [plain(one) for one in x])
    if chart.legend:
        chart.legend.click_policy = "hide"
        chart.add_layout(chart.legend[0], "right")
    return chart


def _label(axis, texts: Sequence[str], at_most: int = 60) -> None:
    """Label whole numbers along an axis with texts, not more than fit."""
    step = max(1, -(-len(texts) // at_most))
    axis.ticker = list(range(0, len(texts), step))
    axis.major_label_overrides = {i: text[:18] or " " for i, text in enumerate(texts)}
