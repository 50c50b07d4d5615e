"""Heat maps of single attention heads (site `z`): layer x head, by the role of the token.

Nothing is normalised: a single head has little effect, and bins over each map's own range would make noise look like
structure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from posttrace.figures import theme
from posttrace.figures.drawing import Drawing
from posttrace.figures.heatmaps import Panel, heatmap_grid
from posttrace.figures.measures.intervals import mean_over_items
from posttrace.figures.studies.knowledge.captions import heading_line, pairs_in_words, titled
from posttrace.figures.studies.knowledge.data import ROLES, PatchGrid, pair_items, usable

CHANGE = "mean change of the\nlogit difference, nats"


def heads(sets: Sequence[PatchGrid]) -> Iterator[Drawing]:
    """Yield `knowledge/<set>/heads`: mean change of the answer by layer and head, a column of panels per role.

    Parameters
    ----------
    sets
        As read from the store, nats; sets of other sites are skipped.
    """
    for grid in sets:
        if not grid.heads:
            continue
        roles = [role for role in ROLES if role in grid.roles]
        cells = [(s, t) for s in grid.sources for t in grid.targets]
        cells.sort(key=lambda cell: cell[0] != cell[1])  # storage first
        each = {(cell, role): changes(grid, cell, role) for cell in cells for role in roles}
        maps = {key: _mean(values) for key, values in each.items()}
        if all(matrix is None for matrix in maps.values()):
            continue
        named = {f"{s} → {t}, {role}": values for ((s, t), role), values in each.items()}
        rows = [
            [
                Panel(
                    f"{cell[0]} → {cell[1]}, {role}",
                    maps[cell, role],
                    strong=cell[0] == cell[1],
                    note="no finished pair",
                    of=(f"{cell[0]} → {cell[1]}, {role}",),
                )
                for role in roles
            ]
            for cell in cells
        ]
        yield Drawing(
            name=f"knowledge/{grid.name}/heads",
            heading=titled(grid, "Attention heads"),
            caption=(
                f"{grid.family + ', ' if grid.family else ''}{titled(grid, grid.name)}: output of one attention head "
                "of the clean (true) run in the source stage put into the corrupt (false) run in the target stage, "
                "at one layer and token at a time. Mean change of logit(TRUE) - logit(FALSE) at the last position "
                "(patched - unpatched), nats, over pairs and over the tokens of a role; not normalised, one colour "
                "scale for all panels, centred on 0: red towards TRUE. Columns of panels: role of the patched token; "
                f"rows: source → target, storage (bold) first. Heads act together, so their changes need "
                f"not add up to that of the whole attention. {pairs_in_words(grid)}"
            ),
            alt=(
                f"{titled(grid, f'Heat maps of {grid.name}')}, change of the answer by patching one attention head, "
                f"layer by head, for {', '.join(roles)} tokens."
            ),
            figure=heatmap_grid(
                rows,
                [str(head) for head in grid.heads],
                [],
                list(dict.fromkeys(grid.layers)),
                theme.centred_scale(list(maps.values()), CHANGE),
                heading_line(grid, "change by patching one attention head"),
                columns_are="head",
            ),
            complete=grid.complete,
            items=pair_items(grid, named, "change of the logit difference, nats"),
        )


def head_map(grid: PatchGrid, cell: tuple[str, str], role: str) -> np.ndarray | None:
    """Return the mean change by patching each head at the tokens of a role, nats, dims layer x head.

    None if no pair is finished.

    Examples
    --------
    >>> head_map(grid, ("base", "instruct"), "last").shape
    (8, 4)
    """
    return _mean(changes(grid, cell, role))


def changes(grid: PatchGrid, cell: tuple[str, str], role: str) -> np.ndarray:
    """Return the same of every pair, dims pair x layer x head; NaN where it is not finished."""
    pairs = usable(grid, cell)
    _, corrupt = grid.unpatched(*cell, pairs)
    columns = [i for i, one in enumerate(grid.roles) if one == role]
    found = np.full((grid.planned, len(grid.values[0, 0, 0]) // len(grid.heads), len(grid.heads)), np.nan)
    patched = grid.patched(*cell, pairs).astype(np.float64)[..., columns]
    found[pairs] = (patched - corrupt[:, None, None]).mean(axis=-1).reshape(-1, *found.shape[1:])
    return found


def _mean(values: np.ndarray) -> np.ndarray | None:
    finished = values[np.isfinite(values).all(axis=(1, 2))]
    return mean_over_items(finished) if len(finished) else None
