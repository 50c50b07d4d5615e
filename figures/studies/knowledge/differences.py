"""Difference maps: storage minus base's, transfer minus the target's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from posttrace.figures import theme
from posttrace.figures.drawing import Drawing
from posttrace.figures.heatmaps import Panel, heatmap_grid
from posttrace.figures.measures.patching import normalise
from posttrace.figures.studies.knowledge.captions import (
    NORMALISED_IN_WORDS,
    heading_line,
    pairs_in_words,
    subject,
    titled,
)
from posttrace.figures.studies.knowledge.data import PatchGrid, by_token, pairs_of


def differences(sets: Sequence[PatchGrid]) -> Iterator[Drawing]:
    """Yield `knowledge/<set>/differences`: differences of normalised maps."""
    for grid in by_token(sets):
        scale = theme.normalised_difference_scale()
        yield from _difference_drawing(grid, normalise, scale, "differences", "Differences of normalised maps",
            f"Both maps are normalised first ({NORMALISED_IN_WORDS}); "
            "the colour scale covers the whole range, -1 to 1.")  # fmt: skip


def differences_raw(sets: Sequence[PatchGrid]) -> Iterator[Drawing]:
    """Yield `knowledge/<set>/differences_raw`: differences of mean logit differences, nats."""
    for grid in by_token(sets):
        matrices = [difference(grid, s, t) for s in grid.sources for t in grid.targets]
        scale = theme.centred_scale(matrices, "difference of mean\nlogit differences, nats")
        yield from _difference_drawing(grid, np.asarray, scale, "differences_raw", "Differences, not normalised",
            "Mean logit differences in nats, not normalised; one colour scale for the panels of this set, "
            "centred on 0. A uniform shade across a storage panel is the difference between the two "
            "stages' unpatched corrupt answers.")  # fmt: skip


def difference(
    grid: PatchGrid, source: str, target: str, transform: Callable[[np.ndarray], np.ndarray] = np.asarray
) -> np.ndarray | None:
    """Return transform(M) of (source, target) minus that of its reference, dims layer x column.

    Storage (source = target) is compared with the reference stage's storage, transfer with the target's own
    storage; both means are over the pairs finished in both. None for the reference itself and if nothing is finished.

    Examples
    --------
    >>> difference(grid, "instruct", "instruct").shape
    (8, 14)
    """
    other = compared_with(grid, source, target)
    if other is None:
        return None
    pairs = grid.pairs((source, target), other)
    if not pairs.any():
        return None
    one, two = (
        grid.patched(*cell, pairs).mean(axis=0, dtype=np.float64) for cell in ((source, target), other)
    )
    return transform(one) - transform(two)


def compared_with(grid: PatchGrid, source: str, target: str) -> tuple[str, str] | None:
    """Return the (source, target) that a difference subtracts; None if there is none."""
    base = grid.reference
    if source == target:
        return None if source == base or base not in grid.stages else (base, base)
    return (target, target) if target in grid.sources else None


def _difference_drawing(
    grid: PatchGrid, transform: Callable, scale: theme.Scale, kind: str, heading: str, words: str
) -> Iterator[Drawing]:
    rows = [[_difference_panel(grid, s, t, transform) for t in grid.targets] for s in grid.sources]
    if all(panel.matrix is None for row in rows for panel in row):
        return  # with one stage there is nothing to subtract
    caption = (
        f"{subject(grid)} Diagonal: a stage's storage minus that of {grid.reference}. Off the diagonal: "
        f"transfer (source → target) minus the target's own (target → target). Red: patching does more "
        f"towards TRUE than in what is subtracted. {words} {pairs_in_words(grid)}"
    )
    yield Drawing(
        name=f"knowledge/{grid.name}/{kind}",
        heading=titled(grid, heading),
        caption=caption,
        alt=(
            f"{titled(grid, f'Difference maps of {grid.name}')}, layer by token: storage minus {grid.reference}'s "
            f"and transfer minus own."
        ),
        figure=heatmap_grid(
            rows, grid.labels, grid.key_columns, grid.layers, scale, heading_line(grid, heading.lower())
        ),
        complete=grid.complete,
        items=pairs_of(grid),
    )


def _difference_panel(grid: PatchGrid, source: str, target: str, transform: Callable) -> Panel:
    other = compared_with(grid, source, target)
    if other is None:
        words = f"reference:\n{source} → {target}" if source == target else "no own map\nto subtract"
        return Panel("", None, note=words)
    title = f"storage: {source} − {other[0]}" if source == target else f"{source} → {target} − own"
    matrix = difference(grid, source, target, transform)
    of = (f"{source} → {target}", " → ".join(other))
    words = "no finished pair" if matrix is None else ""
    return Panel(title, matrix, strong=source == target, note=words, of=of, transform=transform)
