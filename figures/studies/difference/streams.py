"""Heat maps of the difference of residual streams, by layer and role of the token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures import theme
from posttrace.figures.drawing import Drawing
from posttrace.figures.heatmaps import Panel, heatmap_grid
from posttrace.figures.hover import Items
from posttrace.figures.measures.intervals import mean_over_items
from posttrace.figures.studies.difference.data import Difference, Pair

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

BEGINNING = 100
"""Characters of a document that tell which it is."""
FLOOR = 0.05
"""Rounding error, as a share of the difference, above which a cell is grey."""


def streams(groups: Sequence[Difference]) -> Iterator[Drawing]:
    """Yield two figures for each set: relative length, and cosine."""
    for one in groups:
        if not one.any_finished:
            continue
        for name, each, scale, words in (
            ("lengths", _lengths(one), _length_scale, "length of the difference of the streams (resid_post), relative "
             "to that of the source's stream"),
            ("cosines", _cosines(one), _cosine_scale, "cosine of the two stages' streams (resid_post)"),
        ):  # fmt: skip
            matrices = [_mean(one, p, values) for p, values in zip(one.forward, each.values(), strict=True)]
            panels = [Panel(title, matrix, of=(title,)) for title, matrix in zip(each, matrices, strict=True)]
            if not any(np.isfinite(matrix).any() for matrix in matrices):
                continue
            yield Drawing(
                name=f"difference/{one.name}/{name}",
                heading=f"Difference of the streams: {name}",
                caption=(
                    f"{one.n}. {words[0].upper()}{words[1:]}, by layer and role of the token: mean over documents of "
                    f"each one's mean. Grey: cells where rounding to the stored 16 bits makes more than {FLOOR:.0%} of "
                    f"the difference.{one.projection_note} {one.control_note}"
                ),
                alt=f"Heat maps of {words}, layer by role, for {', '.join(p.label for p in one.forward)}.",
                figure=heatmap_grid(
                    [panels],
                    one.roles,
                    [],
                    [int(layer) for layer in one.data["layer"].values],
                    scale(matrices),
                    f"{one.family}  ·  {one.name}",
                    "role",
                ),
                complete=one.complete,
                items=Items("document", ("text",), _beginnings(one), each, words),
            )


def _lengths(one: Difference) -> dict[str, np.ndarray]:
    length, norm = one.values("norm_difference"), one.values("norm")
    found = {}
    for pair in one.forward:
        relative = length[pair.number] / np.maximum(norm[one.stages.index(pair.source)], 1e-12)
        found[pair.label] = _by_role(one, relative)
    return found


def _cosines(one: Difference) -> dict[str, np.ndarray]:
    cosine = one.values("cosine")
    return {pair.label: _by_role(one, cosine[pair.number]) for pair in one.forward}


def _by_role(one: Difference, values: np.ndarray) -> np.ndarray:
    """Means of values (dims document x layer x token) over tokens of a role; dims document x layer x role."""
    found = np.full((*values.shape[:2], len(one.roles)), np.nan)
    for column, role in enumerate(one.roles):
        here = ((one.role == role) & np.isfinite(values).all(axis=1))[:, None]
        some = here.any(axis=2)[:, 0]
        found[some, :, column] = values[some].mean(axis=2, where=here[some])
    return found


def _mean(one: Difference, pair: Pair, values: np.ndarray) -> np.ndarray:
    """Means over documents, dims layer x role, NaN in layers below the rounding floor."""
    matrix = np.full(values.shape[1:], np.nan)
    for column in range(len(one.roles)):
        there = values[np.isfinite(values[:, 0, column]), :, column]
        matrix[:, column] = mean_over_items(there) if len(there) else np.nan
    matrix[floor(one, pair) > FLOOR] = np.nan
    return matrix


def _beginnings(one: Difference) -> list[tuple[str]]:
    """Return the first words of every document."""
    return [(" ".join(str(text)[:BEGINNING].split()),) for text in one.data["document_text"].values]


def floor(one: Difference, pair: Pair) -> np.ndarray:
    """Return rounding error over difference, by layer, over all tokens but the first; NaN where nothing differs."""
    slot = [str(s) for s in one.data["slot"].values].index("all")
    done = one.finished_units
    rounding = one.values("rounding_sum")[..., slot][:, done].sum(axis=1)
    squared = one.values("squared_difference_sum")[pair.number, ..., slot][done].sum(axis=0)
    s, t = (one.stages.index(stage) for stage in (pair.source, pair.target))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt((rounding[s] + rounding[t]) / np.where(squared > 0, squared, np.nan))


def greyed(colours: Colormap) -> Colormap:
    """Return a colour map that is grey where there is no value."""
    return colours.with_extremes(bad="#c3c8cf")


def _length_scale(matrices: Sequence[np.ndarray]) -> theme.Scale:
    from matplotlib.colors import ListedColormap, Normalize

    largest = max((float(np.nanmax(m)) for m in matrices if np.isfinite(m).any()), default=0.0) or 1.0
    upper = ListedColormap(np.asarray(theme.vik().colors)[127:], name="vik_upper")
    return theme.Scale(greyed(upper), Normalize(0, largest), None, "|difference| / |source|")


def _cosine_scale(matrices: Sequence[np.ndarray]) -> theme.Scale:
    from matplotlib.colors import Normalize

    return theme.Scale(
        greyed(theme.vik()), Normalize(-1, 1), (-1.0, -0.5, 0.0, 0.5, 1.0), "cosine similarity"
    )
