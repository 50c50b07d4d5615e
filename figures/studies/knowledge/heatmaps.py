"""Heat maps of the knowledge study: where facts are stored, and whether another stage can read them.

Each function yields one drawing per set. Rows are sources, columns targets; the diagonal is *storage* (source =
target), the rest *transfer*.

Source: Du et al. 2025 (arXiv 2504.02904), section "Knowledge Storage and Representation".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from matplotlib.figure import Figure


NATS = "mean logit difference, nats"


def heatmaps(sets: Sequence[PatchGrid]) -> Iterator[Drawing]:
    """Yield `knowledge/<set>/heatmaps`: the normalised heat map of every (source, target).

    Parameters
    ----------
    sets
        As read from the store, nats; normalised here panel by panel.
    """
    for grid in by_token(sets):
        scale = theme.normalised_scale("normalised effect of patching")
        yield Drawing(
            name=f"knowledge/{grid.name}/heatmaps",
            heading=titled(grid, "Normalised heat maps"),
            caption=f"{subject(grid)} Normalised: {NORMALISED_IN_WORDS}. {_layout(grid)} {pairs_in_words(grid)}",
            alt=(
                f"{titled(grid, f'Normalised patching heat maps of {grid.name}')}, layer by token, "
                f"for {_cells_in_words(grid)}."
            ),
            figure=_stage_grid(grid, grid.normalised, scale, "normalised", normalise),
            complete=grid.complete,
            items=pairs_of(grid),
        )


def heatmaps_raw(sets: Sequence[PatchGrid]) -> Iterator[Drawing]:
    """Yield `knowledge/<set>/heatmaps_raw`: the mean logit difference of every (source, target), nats."""
    for grid in by_token(sets):
        scale = theme.centred_scale([grid.mean(s, t) for s in grid.sources for t in grid.targets], NATS)
        yield Drawing(
            name=f"knowledge/{grid.name}/heatmaps_raw",
            heading=titled(grid, "Heat maps, not normalised"),
            caption=(
                f"{subject(grid)} Mean over pairs of logit(TRUE) - logit(FALSE) at the last position after "
                f"patching, nats; not normalised, one colour scale for all panels, centred on 0: red means that "
                f"the patched run answers TRUE, blue FALSE. {_layout(grid)} {pairs_in_words(grid)}"
            ),
            alt=(
                f"{titled(grid, f'Heat maps of {grid.name}')}, mean logit difference after patching, layer by token, "
                f"for {_cells_in_words(grid)}."
            ),
            figure=_stage_grid(grid, grid.mean, scale, "mean logit difference"),
            complete=grid.complete,
            items=pairs_of(grid),
        )


def _stage_grid(
    grid: PatchGrid,
    matrix: Callable[[str, str], np.ndarray | None],
    scale: theme.Scale,
    what: str,
    transform: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Figure:
    rows = []
    for source in grid.sources:
        row = []
        for target in grid.targets:
            done = int(grid.pairs((source, target)).sum())
            title = f"{source} → {target}"
            if 0 < done < grid.planned:
                title += f" ({done}/{grid.planned})"
            row.append(
                Panel(
                    title,
                    matrix(source, target),
                    strong=source == target,
                    note="no finished pair",
                    of=(f"{source} → {target}",),
                    transform=transform,
                )
            )
        rows.append(row)
    return heatmap_grid(rows, grid.labels, grid.key_columns, grid.layers, scale, heading_line(grid, what))


def _layout(grid: PatchGrid) -> str:
    columns = (
        "Columns: per pair the mean over knowledge tokens (those that differ within the pair), the last "
        "token, and all others."
        if grid.free
        else "Columns: statement tokens, [s] subject and [o] object in colour."
    )
    return f"Rows of panels: source; columns of panels: target; bold: storage (source = target). {columns}"


def _cells_in_words(grid: PatchGrid) -> str:
    return f"sources {', '.join(grid.sources)} and targets {', '.join(grid.targets)}"
