"""Heat maps of the difference of residual streams, by layer and role of the token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures import theme
from posttrace.figures.drawing import Drawing
from posttrace.figures.heatmaps import Panel, heatmap_grid
from posttrace.figures.studies.difference.data import Difference, Pair

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

FLOOR = 0.05
"""Rounding error, as a share of the difference, above which a cell is grey."""


def streams(groups: Sequence[Difference]) -> Iterator[Drawing]:
    """Yield two figures for each set: relative length, and cosine."""
    for one in groups:
        if not one.any_finished:
            continue
        how = int(one.data.attrs.get("projection", 0))
        about = (
            "" if not how else f" Streams were projected to {how} random dimensions: a length is within "
            f"{np.sqrt(0.5 / how):.0%} of the true one (standard deviation)."
        )  # fmt: skip
        for name, matrices, scale, words in (
            ("lengths", _lengths(one), _length_scale, "length of the difference of the streams (resid_post), relative "
             "to that of the source's stream"),
            ("cosines", _cosines(one), _cosine_scale, "cosine of the two stages' streams (resid_post)"),
        ):  # fmt: skip
            panels = [Panel(p.label, matrix) for p, matrix in zip(one.forward, matrices, strict=True)]
            if not any(np.isfinite(matrix).any() for matrix in matrices):
                continue
            yield Drawing(
                name=f"difference/{one.name}/{name}",
                heading=f"Difference of the streams: {name}",
                caption=(
                    f"{one.n}. Mean {words}, by layer and role of the token. Grey: cells where rounding "
                    f"to the stored 16 bits makes more than {FLOOR:.0%} of the difference.{about} {one.control_note}"
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
            )


def _lengths(one: Difference) -> list[np.ndarray]:
    length, norm = one.values("norm_difference"), one.values("norm")
    found = []
    for pair in one.forward:
        relative = length[pair.number] / np.maximum(norm[one.stages.index(pair.source)], 1e-12)
        found.append(_by_role(one, relative, pair))
    return found


def _cosines(one: Difference) -> list[np.ndarray]:
    cosine = one.values("cosine")
    return [_by_role(one, cosine[pair.number], pair) for pair in one.forward]


def _by_role(one: Difference, values: np.ndarray, pair: Pair) -> np.ndarray:
    """Means of values (dims document x layer x token) by layer and role, NaN in layers below the rounding floor."""
    matrix = np.full((values.shape[1], len(one.roles)), np.nan)
    for column, role in enumerate(one.roles):
        here = (one.role == role) & np.isfinite(values).all(axis=1)
        if here.any():
            matrix[:, column] = values.transpose(1, 0, 2)[:, here].mean(axis=1)
    matrix[floor(one, pair) > FLOOR] = np.nan
    return matrix


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
