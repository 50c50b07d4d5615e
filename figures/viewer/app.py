"""The viewer's page: what can be chosen, and the chart or table of the choice."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import panel as pn

from posttrace.figures.errors import FigureError
from posttrace.figures.store_reader import Source, open_sources
from posttrace.figures.viewer import charts
from posttrace.figures.viewer.charts import plain
from posttrace.figures.viewer.pages import PAGES, Page
from posttrace.figures.viewer.slices import (
    ALL,
    LENGTH,
    MEAN,
    MOST_CELLS,
    Slice,
    axes_of,
    differing_texts,
    flags,
    in_python,
    is_text,
    labels,
    matching,
    read,
    same_axes_texts,
    table,
    texts_of,
    tick_labels,
)
from posttrace.stores import StoreError
from posttrace.stores.reading import labelled

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

NOTHING = "nothing"
ANY = "every row"
FIRST = ("token", "layer", "position", "coefficient", "alpha", "step", "neuron", "target", "model", "source")
"""Axes shown first where no page names them."""
ROWS = 20
"""Rows of a table on a page."""
MOST_COLUMNS = 8
"""Columns up to which a table is fitted to the width of the page; a wider one scrolls."""
MOST_OPTIONS = 2000
"""Labels of an axis in a list; those of a longer axis are found by typing a part of them."""
DARK = Path(__file__).with_name("dark.css").read_text(encoding="utf-8")


pn.extension("tabulator", notifications=False, raw_css=[DARK])

LISTED = partial(pn.widgets.Select, stylesheets=[DARK])
SEARCHED = partial(
    pn.widgets.AutocompleteInput, case_sensitive=False, search_strategy="includes",
    placeholder="part of a label", description="Type a part of a label, then choose it.",
)  # fmt: skip


def open_stores(urls: Sequence[str | os.PathLike[str]]) -> list[Source]:
    """Open the stores that are to be viewed; values are read on use.

    Raises
    ------
    FigureError
        A store is named twice or has no groups.
    stores.StoreError
        There is no store at a URL, or a finished unit is lost or altered.
    """
    return [
        replace(source, opened={path: labelled(data) for path, data in source.opened.items()})
        for source in open_sources(urls)
    ]


class Viewer:
    """The page of one visitor.

    Parameters
    ----------
    sources
        As `open_stores` gives them.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self.quiet = False
        """Whether widgets change together; nothing is drawn meanwhile."""
        choose = partial(LISTED, sizing_mode="stretch_width")
        self.store = choose(label="Store", options={plain(s.url): i for i, s in enumerate(sources)})
        self.page = choose(label="Page")
        self.array = choose(label="Array")
        self.shown = choose(label="Shown as")
        self.x = choose(label="Columns, or x axis")
        self.y = choose(label="Rows, or lines")
        self.minus = choose(label="Subtract")
        self.text = choose(label="Text in cells")
        self.search = pn.widgets.TextInput(
            label="Search", placeholder="part of any text, then Enter", sizing_mode="stretch_width"
        )
        self.only = choose(label="Rows")
        self.axes: dict[str, pn.widgets.Widget] = {}
        """Widget of every axis that is neither x nor y."""
        self.chosen = pn.Column(sizing_mode="stretch_width")
        self.picture = pn.Column(sizing_mode="stretch_width")
        for follow, widgets in (
            (self._store_changed, [self.store]),
            (self._page_changed, [self.page]),
            (self._array_changed, [self.array]),
            (self._axes_changed, [self.shown, self.x, self.y]),
            (self._draw, [self.minus, self.text, self.search, self.only]),
        ):
            for widget in widgets:
                self._watch(widget, follow)
        self._store_changed()

    def view(self) -> pn.viewable.Viewable:
        """Return what is served."""
        side = pn.Column("## posttrace", self.store, self.page, self.array, self.shown, self.x, self.y, self.chosen,
                         self.minus, self.text, self.search, self.only, width=320, margin=(0, 20))  # fmt: skip
        return pn.Row(side, self.picture, sizing_mode="stretch_width")

    @property
    def source(self) -> Source:
        """The chosen store."""
        return self.sources[self.store.value]

    @property
    def group(self) -> str:
        """The group of the chosen array."""
        return self.array.value[0]

    @property
    def data(self) -> xr.Dataset:
        """That group."""
        return self.source.opened[self.group]

    @property
    def wanted(self) -> Slice:
        """What is to be shown."""
        return Slice(
            self.array.value[1],
            self.x.value or None,
            self.y.value or None,
            {d: w.value or 0 for d, w in self.axes.items()},  # nothing while a label is typed
        )

    def _watch(self, widget: pn.widgets.Widget, follow: Callable[[], None]) -> None:
        widget.param.watch(lambda _: None if self.quiet else follow(), "value")

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Change several widgets, then draw once."""
        outer, self.quiet = self.quiet, True
        try:
            yield
        finally:
            self.quiet = outer
        self._draw()

    def _store_changed(self) -> None:
        with self._together():
            page, array = self.page.value, self.array.value
            arrays = [
                (path, str(name)) for path, data in self.source.opened.items() for name in data.data_vars
            ]
            self.array.options = {plain("/".join(one)): one for one in arrays}
            self.page.options = {plain(title): title for title in pages_of(self.source)} or {"–": ""}
            self.page.value = (
                page if page in self.page.options.values() else next(iter(self.page.options.values()))
            )
            self.array.value = array if array in arrays else arrays[0]
            if self.page.value and array not in arrays:
                self._page_changed()
            else:
                self._array_changed()

    def _page_changed(self) -> None:
        path, page = pages_of(self.source)[self.page.value]
        with self._together():
            self.array.value = (path, page.array)
            self._array_changed(page)

    def _array_changed(self, page: Page | None = None) -> None:
        array = self.data[self.array.value[1]]
        dims = [str(d) for d in array.dims]
        with self._together():
            x, y = (page.x, page.y) if page else axes_of(self.data, str(array.name), FIRST)
            ways = ["table"] if is_text(array) else ["map", "lines", "table"]
            self.shown.options = ways
            self.shown.value = page.shown if page else ways[0]
            for widget, axis in ((self.x, x), (self.y, y)):
                widget.options = {"–": ""} | {d: d for d in dims}
                widget.value = axis or ""
            texts = [] if is_text(array) else same_axes_texts(self.data, str(array.name))
            self.text.options = {"none": ""} | {plain(t): t for t in texts}
            self.text.value = page.text if page and page.text in texts else ""
            self.only.options = {ANY: ""} | {
                f"{plain(flag)}: {words}": (flag, some)
                for flag in flags(self.data, str(array.name))
                for some, words in ((True, "yes in a column"), (False, "in no column"))
            }
            self.minus.options = {NOTHING: ""} | dict(self._subtrahends(array))
            self.only.value = self.minus.value = ""
            self._axes_changed(page.at if page else {})

    def _subtrahends(self, array: xr.DataArray) -> Iterator[tuple[str, tuple[str, Any]]]:
        """Yield what can be subtracted: another store, or one label of an axis with names."""
        if is_text(array):
            return
        for i, source in enumerate(self.sources):
            there = source.opened.get(self.group)
            if source is self.source or there is None or array.name not in there:
                continue
            if there[array.name].dims == array.dims:
                yield f"store {plain(source.url)}", ("", i)
        for dim in map(str, array.dims):
            if dim in array.coords and is_text(array[dim]):
                for i, label in enumerate(labels(self.data, dim)):
                    yield f"{dim} {plain(label)}", (dim, i)

    def _axes_changed(self, at: Mapping[str, int | str] | None = None) -> None:
        array = self.data[self.array.value[1]]
        kept = {d: w.value for d, w in self.axes.items()} | dict(at or {})
        with self._together():
            rest = [str(d) for d in array.dims if d not in (self.x.value, self.y.value)]
            self.axes = {dim: self._selector(array, dim, kept.get(dim)) for dim in rest}
            self.chosen.objects = list(self.axes.values())
            table_shown = self.shown.value == "table"
            self.search.visible, self.only.visible = table_shown, table_shown and len(self.only.options) > 1
            self.text.visible = self.shown.value == "map" and len(self.text.options) > 1
            self.minus.visible = len(self.minus.options) > 1

    def _selector(self, array: xr.DataArray, dim: str, value: int | str | None) -> pn.widgets.Widget:
        ways = [] if is_text(array) else [LENGTH, MEAN] if dim == "hidden" else [MEAN]
        ways += [ALL] if self.shown.value == "table" else []
        names = [] if dim == "hidden" else labels(self.data, dim)
        options: dict[str, int | str] = {plain(name): i for i, name in enumerate(names)}
        if len(options) < len(names):  # labels that look alike
            options = {f"{i}: {plain(name)}": i for i, name in enumerate(names)}
        options |= {f"({way})": way for way in ways}
        kind = LISTED if len(options) <= MOST_OPTIONS else SEARCHED
        value = value if value in options.values() else next(iter(options.values()))
        widget = kind(label=plain(dim), options=options, value=value, sizing_mode="stretch_width")
        self._watch(widget, self._draw)
        return widget

    def _draw(self) -> None:
        if self.quiet:
            return
        self.picture.objects = []  # if drawing fails, no outdated picture stays
        try:
            shown = list(self._drawn())
        except (FigureError, StoreError) as fault:
            shown = [pn.pane.Alert(escape(str(fault)), alert_type="warning")]
        self.picture.objects = shown

    def _drawn(self) -> Iterator[pn.viewable.Viewable]:
        wanted, data = self.wanted, self.data
        array = data[wanted.array]
        if wanted.x is not None and wanted.x == wanted.y:
            raise FigureError(f"{wanted.x}: is both x and y; choose another axis for one of them")
        unit = str(array.attrs.get("units", ""))
        yield _words(
            f"{self.group}/{wanted.array}: {array.attrs.get('description', '')} [{unit}]", strong=True
        )
        done, total = self.source.units
        if done < total:
            yield _words(f"UNFINISHED: {done} of {total} units are done; what is not is empty or NaN.")
        other = self._other()
        if other is not None:
            yield from self._warnings(other[0])
        yield from (_words(line) for line in self._item_texts())
        if self.shown.value == "table":
            frame = table(
                data, wanted, other=other, search=self.search.value or "", only=self.only.value or None
            )
            yield _words(f"{len(frame)} rows")
            yield _tabulator(frame)
        else:
            yield self._chart(read(data, wanted, other), unit)
        yield pn.pane.Str(in_python(self.source.url, self.group, data, wanted), styles={"opacity": "0.7"})

    def _other(self) -> tuple[xr.Dataset, Slice] | None:
        """Return what is subtracted."""
        if not self.minus.value or is_text(self.data[self.wanted.array]):
            return None
        dim, index = self.minus.value
        if dim == "":
            there = self.sources[index].opened[self.group]
            return there, replace(self.wanted, at=matching(self.data, there, self.wanted.at))
        if dim not in self.axes:
            raise FigureError(
                f"{dim}: is an axis of the picture, so no label of it can be subtracted; choose another"
            )
        return self.data, replace(self.wanted, at={**self.wanted.at, dim: index})

    def _warnings(self, there: xr.Dataset) -> Iterator[pn.viewable.Viewable]:
        for dim in map(str, self.data[self.wanted.array].dims):
            if there is not self.data and (n := differing_texts(self.data, there, dim)):
                yield _words(
                    f"{n} of the labels of {dim} stand for other texts in the store that is subtracted."
                )

    def _item_texts(self) -> Iterator[str]:
        """Yield the texts of the chosen labels: both statements of a pair, a prompt."""
        for dim, at in self.wanted.at.items():
            if isinstance(at, int):
                names = texts_of(self.data, dim)
                for name in [n for n in names if not n.endswith("_prompt")] or names:
                    yield f"{name}: {self.data[name].values[at]}"

    def _chart(self, values: xr.DataArray, unit: str) -> pn.viewable.Viewable:
        wanted = self.wanted
        if values.size > MOST_CELLS:
            raise FigureError(
                f"{values.size:,} cells are more than the {MOST_CELLS:,} that a page draws; choose other axes"
            )
        x, y = wanted.x, wanted.y
        here = values.to_dataset(name="values") if x else None
        columns = tick_labels(here, x, wanted.at) if here is not None and x else [""]
        rows = tick_labels(here, y, wanted.at) if here is not None and y else [""]
        matrix = values.values.reshape(len(rows), len(columns))
        axes = (x or "", y or "")
        if self.shown.value == "lines":
            numbers = values[x].values.tolist() if x in values.coords else columns
            points = numbers if columns == [str(number) for number in numbers] else columns
            chart = charts.lines(matrix, x=points, names=rows, axes=axes, unit=unit)
            return pn.pane.Bokeh(chart)
        texts = None
        if self.text.value and not self.minus.value and MEAN not in wanted.at.values():
            texts = read(self.data, replace(wanted, array=self.text.value)).values.reshape(matrix.shape)
        return pn.pane.Bokeh(
            charts.heat_map(matrix, columns=columns, rows=rows, axes=axes, unit=unit, texts=texts)
        )


def pages_of(source: Source) -> dict[str, tuple[str, Page]]:
    """Return the pages that a store can show: title -> group and page."""
    return {
        f"{path}: {page.title}": (path, page)
        for path, data in source.opened.items()
        for page in PAGES.get(source.study_of(path), ())
        if page.array in data.data_vars and {page.x, page.y} <= set(data[page.array].dims)
    }


def _words(text: str, strong: bool = False) -> pn.viewable.Viewable:
    """Return a line of text; what comes from a store is escaped."""
    return pn.pane.HTML(escape(text), sizing_mode="stretch_width", margin=(2, 10), disable_math=True,
                        styles={"font-weight": "600" if strong else "400", "white-space": "pre-wrap"})  # fmt: skip


def _tabulator(frame: pd.DataFrame) -> pn.viewable.Viewable:
    columns = [plain(name) for name in frame.columns]
    if len(set(columns)) < len(columns):
        columns = [f"{i}: {name}" for i, name in enumerate(columns)]
    return pn.widgets.Tabulator(
        frame.set_axis(columns, axis=1), titles={name: escape(name) for name in columns},  # it takes titles for HTML
        formatters={name: {"type": "textarea"} for name in columns}, show_index=False, disabled=True,
        pagination="local", page_size=ROWS, header_filters=True, sizing_mode="stretch_width", stylesheets=[DARK],
        layout="fit_columns" if len(columns) <= MOST_COLUMNS else "fit_data_stretch",
    )  # fmt: skip
