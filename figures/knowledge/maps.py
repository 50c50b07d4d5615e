"""Figures of the knowledge study: where facts are stored, and whether another stage can read them.

Each function takes the study's sets and yields one drawing a set. Rows are sources, columns targets; the
diagonal is *storage* (source = target), the rest *transfer*.

Source: Du et al. 2025 (arXiv 2504.02904), section "Knowledge Storage and Representation".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from posttrace.figures import theme
from posttrace.figures.drawing import Drawing
from posttrace.figures.heatmaps import Panel, heatmap_grid
from posttrace.figures.knowledge.patchgrid import PatchGrid
from posttrace.figures.statistics import normalise

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NATS = "mean logit difference, nats"
NORMALISED_IN_WORDS = (
    "each map's range is cut into 20 equal bins, the lower ten are shown as 0, "
    "the upper ten as 0.1 to 1.0, so a map shows where patching works best, not how much it does"
)

GUIDE = (
    (
        "The experiment",
        "A true and a false statement differ in one word. The activation of the true run (clean, in the "
        "source stage) at one layer and one token replaces that of the false run (corrupt, in the target "
        "stage), and the run goes on. Where this turns the answer towards TRUE, the activation carries the "
        "fact. Source = target is storage; another source is transfer: forward from an earlier stage into a "
        "later one, backward the other way.",
    ),
    (
        "Judgement table",
        "Read it first. Where a stage does not judge both halves of a pair right (clean > 0 > corrupt), its "
        "maps say little about knowledge.",
    ),
    (
        "Storage and transfer tables",
        "Pearson r near 1 and small maxima mean: the same layers and tokens matter, to the same degree. K "
        "is the maximum over subject and object tokens only. Normalised values hide an overall gain or "
        "loss; raw values (nats) show it. Intervals are over pairs. Read those of max and K as “no larger "
        "than”, those of r as “no less than”.",
    ),
    (
        "Heat maps",
        "Rows are layers, the first on top; columns are the tokens of the statement, subject [s] and object "
        "[o] in colour. Rows of panels are sources, columns of panels targets, the diagonal is storage. "
        "Normalised panels show where patching works best, each by its own range; panels in nats share one "
        "scale, red where the patched run answers TRUE.",
    ),
    (
        "Difference maps",
        "On the diagonal a stage minus base; elsewhere transfer minus the target's own activation. Neutral "
        "means no difference, blue that patching does less than what is subtracted, red that it does more.",
    ),
    (
        "Attention heads",
        "Drawn where single heads were patched: the change of the answer by one head at one token, in nats. "
        "Small next to whole sites, as a head is one of many that write into the stream.",
    ),
    (
        "Recovery",
        "0: patching changed nothing; 1: the patched run answers as the clean run. A dashed line (transfer) "
        "below the solid one (own) in the same panel: the target makes less of the other stage's activation "
        "than of its own.",
    ),
)
"""How to read each kind of figure: heading and text."""

ESTIMATE_GUIDE = (
    (
        "Attribution patching",
        "Where a title says so, no activation was put in: the change of the answer is estimated from its slope "
        "at the unpatched corrupt run (first order), for all layers and tokens from one backward pass. Large "
        "moves through norms and saturated attention miss, worst in early layers. The attribution table and the "
        "scatter figures show estimate against exact patching on a sample of pairs: look at them before you "
        "trust a map, and repeat with exact patching what you build on.",
    ),
)
"""Added to the guide where a set holds estimates."""


def heatmaps(sets: Sequence[PatchGrid]) -> Iterator[Drawing]:
    """Yield, per set, the normalised heat map of every (source, target).

    Example
    -------
    >>> [drawing.name for drawing in heatmaps([grid])]
    ['knowledge/cities/heatmaps']

    Arguments
    ---------
    sets: as read from the store; values in nats, normalised here panel by panel.
    """
    for grid in by_token(sets):
        scale = theme.normalised_scale("normalised effect of patching")
        yield Drawing(
            f"knowledge/{grid.name}/heatmaps",
            titled(grid, "Normalised heat maps"),
            f"{_subject(grid)} Normalised: {NORMALISED_IN_WORDS}. {_layout(grid)} {pairs_in_words(grid)}",
            f"{titled(grid, f'Normalised patching heat maps of {grid.name}')}, layer by token, "
            f"for {_cells_in_words(grid)}.",
            _stage_grid(grid, grid.normalised, scale, "normalised"),
            grid.complete,
        )


def heatmaps_raw(sets: Sequence[PatchGrid]) -> Iterator[Drawing]:
    """Yield, per set, the mean logit difference of every (source, target) on one colour scale, nats.

    Example
    -------
    >>> [drawing.name for drawing in heatmaps_raw([grid])]
    ['knowledge/cities/heatmaps_raw']
    """
    for grid in by_token(sets):
        scale = theme.centred_scale([grid.mean(s, t) for s in grid.sources for t in grid.targets], NATS)
        yield Drawing(
            f"knowledge/{grid.name}/heatmaps_raw",
            titled(grid, "Heat maps, not normalised"),
            f"{_subject(grid)} Mean over pairs of logit(TRUE) - logit(FALSE) at the last position after "
            f"patching, nats; not normalised, one colour scale for all panels, centred on 0: red means that "
            f"the patched run answers TRUE, blue FALSE. {_layout(grid)} {pairs_in_words(grid)}",
            f"{titled(grid, f'Heat maps of {grid.name}')}, mean logit difference after patching, layer by token, "
            f"for {_cells_in_words(grid)}.",
            _stage_grid(grid, grid.mean, scale, "mean logit difference"),
            grid.complete,
        )


def differences(sets: Sequence[PatchGrid]) -> Iterator[Drawing]:
    """Yield, per set, differences of normalised maps: storage minus base's, transfer minus the target's own.

    Example
    -------
    >>> [drawing.name for drawing in differences([grid])]
    ['knowledge/cities/differences']
    """
    for grid in by_token(sets):
        scale = theme.normalised_difference_scale()
        yield from _difference_drawing(grid, normalise, scale, "differences", "Differences of normalised maps",
            f"Both maps are normalised first ({NORMALISED_IN_WORDS}); "
            "the colour scale is the whole possible range, -1 to 1.")  # fmt: skip


def differences_raw(sets: Sequence[PatchGrid]) -> Iterator[Drawing]:
    """Yield, per set, differences of mean logit difference, nats: storage minus base's, transfer minus own.

    Example
    -------
    >>> [drawing.name for drawing in differences_raw([grid])]
    ['knowledge/cities/differences_raw']
    """
    for grid in by_token(sets):
        matrices = [difference(grid, s, t) for s in grid.sources for t in grid.targets]
        scale = theme.centred_scale(matrices, "difference of mean\nlogit differences, nats")
        yield from _difference_drawing(grid, np.asarray, scale, "differences_raw", "Differences, not normalised",
            "Mean logit differences in nats, not normalised; one colour scale for the panels of this set, "
            "centred on 0. An even shade all over a storage panel is the difference between the two "
            "stages' unpatched corrupt answers.")  # fmt: skip


def by_token(sets: Sequence[PatchGrid]) -> list[PatchGrid]:
    """Return the sets that layer x token maps are drawn of: those of whole sites, not of single heads."""
    return [grid for grid in sets if not grid.heads]


def difference(
    grid: PatchGrid, source: str, target: str, transform: Callable[[np.ndarray], np.ndarray] = np.asarray
) -> np.ndarray | None:
    """Return transform(M) of (source, target) minus that of what it is compared with, dims layer x column.

    Storage (source = target) is compared with the reference stage's storage, transfer with the target's own
    storage; both means are over the pairs finished in both. None for the reference itself and where nothing
    is finished.

    Example
    -------
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
    """Return the (source, target) that a difference subtracts; None where there is none."""
    base = grid.reference
    if source == target:
        return None if source == base or base not in grid.stages else (base, base)
    return (target, target) if target in grid.sources else None


def pairs_in_words(grid: PatchGrid) -> str:
    """Say how many pairs the means are over, and which (source, target) lack some."""
    lacking = [
        f"{source} → {target} {int(grid.pairs((source, target)).sum())}"
        for source in grid.sources
        for target in grid.targets
        if not grid.pairs((source, target)).all()
    ]
    if not lacking:
        return f"n = {grid.planned} pairs."
    return f"INCOMPLETE: of {grid.planned} pairs there are only: {', '.join(lacking)}."


def _difference_drawing(
    grid: PatchGrid, transform: Callable, scale: theme.Scale, kind: str, heading: str, words: str
) -> Iterator[Drawing]:
    rows = [[_difference_panel(grid, s, t, transform) for t in grid.targets] for s in grid.sources]
    if all(panel.matrix is None for row in rows for panel in row):
        return  # one stage only: there is nothing to subtract
    caption = (
        f"{_subject(grid)} Diagonal: a stage's storage minus that of {grid.reference}. Off the diagonal: "
        f"transfer (source → target) minus the target's own (target → target). Red: patching does more "
        f"towards TRUE than in what is subtracted. {words} {pairs_in_words(grid)}"
    )
    yield Drawing(
        f"knowledge/{grid.name}/{kind}",
        titled(grid, heading),
        caption,
        f"{titled(grid, f'Difference maps of {grid.name}')}, layer by token: storage minus {grid.reference}'s "
        f"and transfer minus own.",
        heatmap_grid(
            rows, grid.labels, grid.key_columns, grid.layers, scale, heading_line(grid, heading.lower())
        ),
        grid.complete,
    )


def _difference_panel(grid: PatchGrid, source: str, target: str, transform: Callable) -> Panel:
    other = compared_with(grid, source, target)
    if other is None:
        words = f"reference:\n{source} → {target}" if source == target else "no own map\nto subtract"
        return Panel("", None, note=words)
    title = f"storage: {source} − {other[0]}" if source == target else f"{source} → {target} − own"
    matrix = difference(grid, source, target, transform)
    return Panel(title, matrix, strong=source == target, note="no finished pair" if matrix is None else "")


def _stage_grid(
    grid: PatchGrid, matrix: Callable[[str, str], np.ndarray | None], scale: theme.Scale, what: str
) -> Figure:
    rows = []
    for source in grid.sources:
        row = []
        for target in grid.targets:
            done = int(grid.pairs((source, target)).sum())
            title = f"{source} → {target}"
            if 0 < done < grid.planned:
                title += f" ({done}/{grid.planned})"
            row.append(Panel(title, matrix(source, target), strong=source == target, note="no finished pair"))
        rows.append(row)
    return heatmap_grid(rows, grid.labels, grid.key_columns, grid.layers, scale, heading_line(grid, what))


def heading_line(grid: PatchGrid, what: str) -> str:
    """Return the line above a figure: set, what is shown, n; and a second one where values are estimates."""
    pairs = f"n = {grid.planned} pairs" if grid.complete else f"INCOMPLETE ({grid.planned} pairs planned)"
    return "\n".join(filter(None, [f"{grid.name}  ·  {what}  ·  {pairs}", grid.estimate]))


def titled(grid: PatchGrid, heading: str) -> str:
    """Return a heading that says so where values are estimates."""
    return ", ".join(filter(None, [heading, grid.estimate]))


def _subject(grid: PatchGrid) -> str:
    family = f"{grid.family}, " if grid.family else ""
    if grid.estimate:
        return (
            f"{family}{grid.name}: {grid.estimate} of what {grid.site or 'the activation'} of the clean (true) run "
            f"in the source stage would do in the corrupt (false) run in the target stage, one layer and token at "
            f"a time; not exact, the attribution table tells how far off."
        )
    return (
        f"{family}{grid.name}: {grid.site or 'activation'} of the clean (true) run in the source stage put "
        f"into the corrupt (false) run in the target stage, one layer and token at a time."
    )


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
