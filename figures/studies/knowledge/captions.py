"""Text shared by the captions and titles of the knowledge study."""

from __future__ import annotations

from posttrace.figures.studies.knowledge.data import PatchGrid

NORMALISED_IN_WORDS = (
    "each map's range is cut into 20 equal bins, the lower ten are shown as 0, "
    "the upper ten as 0.1 to 1.0, so a map shows where patching works best, not how much it does"
)


def heading_line(grid: PatchGrid, what: str) -> str:
    """Return the line above a figure: set, what is shown, n; and a second line if values are estimates."""
    pairs = f"n = {grid.planned} pairs" if grid.complete else f"INCOMPLETE ({grid.planned} pairs planned)"
    return "\n".join(filter(None, [f"{grid.name}  ·  {what}  ·  {pairs}", grid.estimate]))


def titled(grid: PatchGrid, heading: str) -> str:
    """Return a heading that says so if values are estimates."""
    return ", ".join(filter(None, [heading, grid.estimate]))


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


def subject(grid: PatchGrid) -> str:
    family = f"{grid.family}, " if grid.family else ""
    if grid.estimate:
        return (
            f"{family}{grid.name}: {grid.estimate} of what {grid.site or 'the activation'} of the clean (true) run "
            f"in the source stage would do in the corrupt (false) run in the target stage, one layer and token at "
            f"a time; not exact: the attribution table shows how far off."
        )
    return (
        f"{family}{grid.name}: {grid.site or 'activation'} of the clean (true) run in the source stage put "
        f"into the corrupt (false) run in the target stage, one layer and token at a time."
    )
