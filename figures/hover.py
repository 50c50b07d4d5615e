"""Data for the page's tooltips: the values of the maps and lines of a figure, and their places in it."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from posttrace.figures import theme

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_BYTES = 150_000
"""Limit, for each set, of the single items' values in a page; beyond it, evenly spaced items are kept."""
DIGITS = 3

_facts: WeakKeyDictionary[Artist, dict[str, Any]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Items:
    """Values of the single items that a map averages, listed where one of its cells is clicked."""

    headings: tuple[str, ...]
    """Of the texts of an item: true statement, false statement."""
    texts: Sequence[tuple[str, ...]]
    """Dims item."""
    values: Mapping[str, np.ndarray]
    """Title of a map -> values, dims item x row x column."""

    def packed(self) -> dict[str, Any]:
        """Return what a page holds: 16-bit numbers with a scale for each map, -32768 for none."""
        n = len(self.texts)
        bytes_of_one = sum(2 * v[0].size for v in self.values.values())
        kept = np.unique(
            np.linspace(0, n - 1, min(n, max(1, MOST_BYTES // max(bytes_of_one, 1)))).astype(int)
        )
        maps = {}
        for title, values in self.values.items():
            some = values[kept].astype(float)
            scale = float(np.nanmax(np.abs(some), initial=0)) / 32767 or 1.0
            whole = np.where(np.isfinite(some), np.round(some / scale), -32768).astype("<i2")
            maps[title] = {"scale": scale, "values": base64.b64encode(whole.tobytes()).decode()}
        texts = [[str(i), *self.texts[i]] for i in kept.tolist()]
        return {"headings": ["pair", *self.headings], "texts": texts, "total": n, "maps": maps}


def note(artist: Artist, **facts: Any) -> None:
    """Keep facts about axes or a line of a figure for its regions.

    Parameters
    ----------
    **facts
        Of axes with a map: `rows`, `columns` (labels), `n`, `interval` (a function that gives lower and upper ends,
        dims 2 x row x column) and `items` (which map of `Items` it is); of a line: `name`, `n`.
    """
    _facts[artist] = facts


def regions(figure: Figure) -> list[dict[str, Any]]:
    """Return the maps and lines of a figure that is laid out: place (left, top, width, height as shares) and values.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> figure = Figure()
    >>> _ = figure.subplots().plot([0, 1], [2, 3], label="base")
    >>> regions(figure)[0]["points"][0][2:5]
    ['base', 0.0, 2.0]
    """
    # where axes share x, only the last is labelled
    x = next((ax.get_xlabel() for ax in figure.axes if ax.get_xlabel()), "x")
    return [region for ax in figure.axes for region in (_map(ax), _lines(ax, x)) if region]


def _box(ax: Axes) -> list[float]:
    left, bottom, width, height = ax.get_position().bounds
    return [round(v, 5) for v in (left, 1 - bottom - height, width, height)]


def _map(ax: Axes) -> dict[str, Any] | None:
    from matplotlib.collections import QuadMesh

    facts = _facts.get(ax, {})
    mesh = next((c for c in ax.collections if isinstance(c, QuadMesh)), None)
    if mesh is None or "rows" not in facts:
        return None
    shape = len(facts["rows"]), len(facts["columns"])
    found = {name: facts[name] for name in ("n", "items") if facts.get(name)}
    if facts.get("interval"):
        found["low"], found["high"] = map(_short, facts["interval"]())
    values: np.ndarray = np.asarray(
        np.ma.filled(np.ma.asarray(mesh.get_array(), dtype=float), np.nan)
    ).reshape(shape)
    return {"box": _box(ax), "title": ax.get_title(), "rows": list(map(str, facts["rows"])),
            "columns": list(map(str, facts["columns"])), "values": _short(values), **found}  # fmt: skip


def _lines(ax: Axes, x: str) -> dict[str, Any] | None:
    points = [point for line in ax.lines for point in _points(ax, line)]
    return (
        {"box": _box(ax), "title": ax.get_title(), "x": ax.get_xlabel() or x, "points": points}
        if points
        else None
    )


def _points(ax: Axes, line: Any) -> Iterator[list[Any]]:
    """Yield place, name, x, y and, from the band of the same colour, the interval of every point of a line."""
    from matplotlib.colors import to_rgb

    xy = np.asarray(line.get_xydata(), dtype=float)
    facts = _facts.get(line, {})
    guide = line.get_transform() != ax.transData or to_rgb(line.get_color()) == to_rgb(theme.GUIDE)
    if guide or len(xy) < 2:
        return
    label = facts.get("name") or (line.get_label() if not str(line.get_label()).startswith("_") else "")
    band = _band(ax, to_rgb(line.get_color()))
    places = ax.transAxes.inverted().transform(ax.transData.transform(xy))
    for (x, y), (across, up) in zip(xy.tolist(), places.tolist(), strict=True):
        if np.isfinite([x, y, across, up]).all():
            ends = band[np.isclose(band[:, 0], x), 1]
            interval = _short([ends.min(), ends.max()]) if len(ends) else [None, None]
            yield [round(across, 4), round(1 - up, 4), label, *_short([x, y]), *interval, facts.get("n")]


def _band(ax: Axes, colour: tuple[float, ...]) -> np.ndarray:
    """Return the corners of a colour's bands, dims corner x 2."""
    from matplotlib.collections import PolyCollection

    found = [
        path.vertices
        for band in ax.collections
        if isinstance(band, PolyCollection) and np.allclose(np.asarray(band.get_facecolor())[0, :3], colour)
        for path in band.get_paths()
    ]
    return np.concatenate(found) if found else np.empty((0, 2))


def _short(values: Any) -> Any:
    """Return numbers with few digits, None for NaN."""
    array = np.asarray(values, dtype=float)
    if array.ndim > 1:
        return [_short(row) for row in array]
    return [float(f"{v:.{DIGITS + 1}g}") if np.isfinite(v) else None for v in array.tolist()]
