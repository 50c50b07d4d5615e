"""Data for the page's tooltips: the values of the marks of a figure, and their places in it.

Figures `note` what a mark cannot tell itself: its interval, its n, its name. Places and values are read from the
figure once it is laid out.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from posttrace.figures import theme
from posttrace.figures.measures.intervals import mean_draws, percentile_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

MOST_BYTES = 150_000
"""Limit, for each `Items`, of the values in a page; beyond it, evenly spaced items are kept."""
MOST_POINTS = 6000
"""Marks of a figure that a page tells of; a scatter beyond it has no tooltips."""
DIGITS = 4


@dataclass(frozen=True, eq=False)
class Items:
    """Values of the single items that maps average: their intervals, and the list of a cell that is clicked."""

    what: str
    """One item: "pair"."""
    headings: tuple[str, ...]
    """Of the texts of an item: true statement, false statement."""
    texts: Sequence[tuple[str, ...]]
    """Dims item."""
    values: Mapping[str, np.ndarray]
    """Name of a map -> values, dims item x row x column; NaN where an item has none."""
    unit: str
    """What the values are, with their unit: "logit difference after patching, nats"."""

    def packed(self) -> dict[str, Any]:
        """Return what a page holds: 16-bit numbers with a scale for each map, -32768 for none."""
        n = len(self.texts)
        bytes_of_one = sum(2 * v[0].size for v in self.values.values())
        kept = np.unique(
            np.linspace(0, n - 1, min(n, max(1, MOST_BYTES // max(bytes_of_one, 1)))).astype(int)
        )
        maps = {}
        for name, values in self.values.items():
            some = values[kept].astype(float)
            scale = float(np.nanmax(np.abs(some), initial=0)) / 32767 or 1.0
            whole = np.where(np.isfinite(some), np.round(some / scale), -32768).astype("<i2")
            maps[name] = {"scale": scale, "values": base64.b64encode(whole.tobytes()).decode()}
        texts = [[str(i), *self.texts[i]] for i in kept.tolist()]
        return {"what": self.what, "headings": [self.what, *self.headings], "texts": texts, "total": n,
                "unit": self.unit, "maps": maps}  # fmt: skip

    def interval(
        self, of: Sequence[str], transform: Callable[[np.ndarray], np.ndarray] | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return how many items each cell of a map has, and the 95 % percentile interval over them.

        Parameters
        ----------
        of
            The map whose mean is shown, or two, of whose means the first minus the second is shown.
        transform
            Applied to every mean before they are subtracted; None for the means themselves.

        Returns
        -------
        n
            Dims row x column.
        interval
            Lower and upper end, dims 2 x row x column; None with fewer than two items.
        """
        values = np.stack([np.asarray(self.values[name], np.float64) for name in of], axis=1)
        values = values[np.logical_or.reduce(np.isfinite(values), axis=(2, 3)).all(axis=1)]
        finite = np.isfinite(values)
        n = np.logical_and.reduce(finite, axis=1).sum(axis=0)
        if len(values) < 2:
            return n, None
        draws = mean_draws(np.where(finite, values, 0.0))
        if not finite.all():  # the same resamples: an item counts where it has a value
            with np.errstate(invalid="ignore", divide="ignore"):
                draws = draws / mean_draws(finite)
        draws = draws if transform is None else transform(draws)
        return n, percentile_interval(draws[:, 0] - draws[:, 1] if len(of) == 2 else draws[:, 0])


def note(artist: Any, **facts: Any) -> None:
    """Keep facts about axes or marks of a figure for its regions.

    Parameters
    ----------
    **facts
        Of a line, scatter or bars, for all marks or a sequence with one for each: `name`, `n`, and `interval`, lower
        and upper ends, dims 2 x mark, or a function that returns them, which only a page calls; `at` replaces the
        place along the axis of categories; with `guide` nothing is told of a line. Of axes: `x` and `y`, what the
        axes are. Of axes with a map: `rows`, `columns` (labels), `columns_are`, `unit`, `texts`, `n`, and `of` and
        `transform` as in `Items.interval`.
    """
    vars(artist)["posttrace"] = facts


def _facts(artist: Any) -> dict[str, Any]:
    return vars(artist).get("posttrace", {})


def regions(figure: Figure, items: Items | None = None) -> list[dict[str, Any]]:
    """Return the maps and marks of a figure that is laid out: place (left, top, width, height as shares) and values.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> figure = Figure()
    >>> bars = figure.subplots().bar(["true", "false"], [2.0, 3.0])
    >>> note(bars, n=[12, 9], interval=[[1.5, 2.5], [2.5, 3.5]])
    >>> regions(figure)[0]["points"][1][3:8]
    ['false', 3.0, 2.5, 3.5, 9]
    """
    left = MOST_POINTS
    found = []
    for ax in filter(lambda one: one.get_visible(), figure.axes):
        points = list(_points(ax, left))
        left -= len(points)
        if points:
            across, up = ("y", "x") if _categories(ax.yaxis) else ("x", "y")
            found.append({"box": _box(ax), "title": ax.get_title(), "x": _said(figure, ax, across),
                          "y": _said(figure, ax, up), "points": points})  # fmt: skip
        if region := _map(ax, items):
            found.append(region)
    return found


def _box(ax: Axes) -> list[float]:
    left, bottom, width, height = ax.get_position().bounds
    return [round(v, 5) for v in (left, 1 - bottom - height, width, height)]


def _said(figure: Figure, ax: Axes, axis: str) -> str:
    """Return what an axis is: as noted, as labelled, or as its row or column of axes is labelled."""
    if axis in _facts(ax):
        return _facts(ax)[axis]
    whole = getattr(figure, f"get_sup{axis}label")()
    start = getattr(ax.get_position(), f"{axis}0")
    near = sorted(
        figure.axes, key=lambda one: (one is not ax, abs(getattr(one.get_position(), f"{axis}0") - start))
    )
    labels = [getattr(one, f"get_{axis}label")() for one in near]
    said = labels[0] or whole or next(filter(None, labels), "")
    return " ".join(said.split())


def _map(ax: Axes, items: Items | None) -> dict[str, Any] | None:
    from matplotlib.collections import QuadMesh

    facts = _facts(ax)
    mesh = next((c for c in ax.collections if isinstance(c, QuadMesh)), None)
    if mesh is None or "rows" not in facts:
        return None
    shape = len(facts["rows"]), len(facts["columns"])
    found = {name: facts[name] for name in ("n", "texts") if facts.get(name)}
    if items is not None and facts["of"]:
        found["of"] = list(facts["of"])
        n, ends = items.interval(facts["of"], facts["transform"])
        found["n"] = int(n.max()) if n.max() == n.min() else n.tolist()
        if ends is not None:
            found["low"], found["high"] = map(_short, ends)
    values: np.ndarray = np.asarray(
        np.ma.filled(np.ma.asarray(mesh.get_array(), dtype=float), np.nan)
    ).reshape(shape)
    return {"box": _box(ax), "title": ax.get_title(), "rows": list(map(str, facts["rows"])),
            "columns": list(map(str, facts["columns"])), "columns_are": facts["columns_are"],
            "unit": " ".join(facts["unit"].split()), "values": _short(values), **found}  # fmt: skip


def _points(ax: Axes, most: int) -> Iterator[list[Any]]:
    """Yield place, name, category or x, value, interval, n and (of bars) box of every mark."""
    from matplotlib.collections import PathCollection
    from matplotlib.container import BarContainer

    for line in ax.lines:
        if not _is_guide(ax, line):
            yield from _described(ax, line, line.get_xydata(), line.get_label())
    for bars in ax.containers:
        if isinstance(bars, BarContainer):
            boxes = np.array([bar.get_bbox().get_points().ravel() for bar in bars])
            middle = (boxes[:, :2] + boxes[:, 2:]) / 2
            middle[:, int(bars.orientation == "vertical")] = bars.datavalues
            yield from _described(ax, bars, middle, bars.get_label(), boxes)
    for dots in ax.collections:
        if isinstance(dots, PathCollection):
            xy = np.asarray(np.ma.filled(dots.get_offsets(), np.nan))
            if len(xy) <= most:
                yield from _described(ax, dots, xy, dots.get_label())


def _is_guide(ax: Axes, line: Any) -> bool:
    """Tell whether a line is there to compare with, or a ring around another mark."""
    from matplotlib.colors import to_rgb, to_rgba

    elsewhere = line.get_transform() != ax.transData
    return (
        _facts(line).get("guide")
        or elsewhere
        or to_rgb(line.get_color()) == to_rgb(theme.GUIDE)
        or not to_rgba(line.get_color())[3]
    )


def _described(ax: Axes, marks: Any, xy: Any, label: Any, boxes: Any = None) -> Iterator[list[Any]]:
    facts, xy = _facts(marks), np.asarray(xy, dtype=float)
    name = facts.get("name") or ("" if str(label).startswith("_") else str(label))
    ends = facts.get("interval")
    ends = (
        np.full((2, len(xy)), np.nan)
        if ends is None
        else np.asarray(ends() if callable(ends) else ends, float)
    )
    across = int(bool(_categories(ax.yaxis)))  # values are along y unless y has categories
    known = _categories(ax.yaxis if across else ax.xaxis)
    places = _shares(ax, xy)
    for i, (one, (x, y)) in enumerate(zip(xy, places.tolist(), strict=True)):
        if not np.isfinite([*one, x, y]).all():
            continue
        at = _one(facts["at"], i) if "at" in facts else one[across]
        at = known[min(known, key=lambda tick: abs(tick - one[across]))] if known else _short([at])[0]
        found = [round(x, 4), round(1 - y, 4), _one(name, i), at, *_short([one[1 - across], *ends[:, i]])]
        n = _one(facts.get("n"), i)
        found.append(None if n is None else int(n))
        if boxes is not None:
            (left, bottom), (right, top) = _shares(ax, boxes[i].reshape(2, 2)).tolist()
            found.append([round(v, 4) for v in (left, 1 - top, right, 1 - bottom)])
        while found[-1] is None:
            found.pop()
        yield found


def _one(values: Any, i: int) -> Any:
    """Return the i-th of several values, or the one that holds for all."""
    return values if values is None or isinstance(values, str) or np.ndim(values) == 0 else values[i]


def _shares(ax: Axes, xy: np.ndarray) -> np.ndarray:
    """Return places as shares of the axes, from below left; dims place x 2."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return ax.transAxes.inverted().transform(ax.transData.transform(xy))


def _categories(axis: Axis) -> dict[float, str]:
    """Return place -> label of the ticks of an axis whose labels are not numbers."""
    places = [float(place) for place in axis.get_majorticklocs()]
    labels = axis.get_major_formatter().format_ticks(places)  # also where another axes of a grid shows them
    return {} if all(map(_is_number, labels)) else dict(zip(places, labels, strict=True))


def _is_number(text: str) -> bool:
    try:
        float(text.replace("\N{MINUS SIGN}", "-") or 0)
    except ValueError:
        return False
    return True


def _short(values: Any) -> Any:
    """Return numbers with few digits, None for NaN."""
    array = np.asarray(values, dtype=float)
    if array.ndim > 1:
        return [_short(row) for row in array]
    return [float(f"{v:.{DIGITS}g}") if np.isfinite(v) else None for v in array.tolist()]
