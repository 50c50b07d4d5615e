"""Tables of the knowledge study: how similar two patching matrices are, and whether the stages know the facts.

Source: Du et al. 2025 (arXiv 2504.02904), table on knowledge storage; the intervals are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from posttrace.figures import published
from posttrace.figures.group import kept
from posttrace.figures.measures.intervals import CONFIDENCE, RESAMPLES, SEED, Estimate, bootstrap_mean
from posttrace.figures.measures.patching import compare
from posttrace.figures.studies.knowledge.data import ESTIMATE, PatchGrid
from posttrace.figures.tables import Block, Cell, Row, Table, cell, number

LABELS = {
    ("normalised", "correlation"): ("Pearson r, normalised", 4),
    ("normalised", "max"): ("max |M1 − M2|, normalised", 1),
    ("normalised", "max_k"): ("K, normalised", 1),
    ("raw", "correlation"): ("Pearson r, raw", 4),
    ("raw", "max"): ("max |M1 − M2|, raw, nats", 2),
    ("raw", "max_k"): ("K, raw, nats", 2),
}
"""(scale, statistic) -> label and digits, in the order of the rows."""
UNITS = {"correlation": "", "max": "nats", "max_k": "nats"}


@dataclass(frozen=True)
class Comparison:
    """Two (source, target) whose matrices are compared."""

    kind: str
    """storage, forward (from an earlier stage into a later one) or backward."""
    first: tuple[str, str]
    second: tuple[str, str]

    @property
    def heading(self) -> str:
        source, target = self.first[0], self.second[1]
        if self.kind == "storage":
            return f"{source} and {target}, storage"
        return f"{source} → {target} and {target}'s own, {self.kind} transfer"


def comparisons(grid: PatchGrid) -> list[Comparison]:
    """Return the comparisons of a set: storage with the reference stage's, transfer with the target's own.

    Examples
    --------
    >>> [c.kind for c in comparisons(grid)]        # stages base and instruct
    ['storage', 'forward', 'backward']
    """
    base = grid.reference
    stages = grid.stages
    storage = [Comparison("storage", (base, base), (s, s)) for s in stages if s != base and base in stages]
    order = list(dict.fromkeys([*grid.targets, *grid.sources]))
    transfer = [
        Comparison("forward" if order.index(s) < order.index(t) else "backward", (s, t), (t, t))
        for t in stages
        for s in grid.sources
        if s != t
    ]
    return storage + sorted(transfer, key=lambda c: c.kind == "backward")


def statistics(sets: Sequence[PatchGrid]) -> Iterator[Table]:
    """Yield the tables `knowledge_storage` and `knowledge_transfer`; rows are statistics, columns sets.

    Parameters
    ----------
    sets
        As read from the store, nats. Each comparison uses the pairs finished in both matrices.
    """
    results = {(grid.name, c): estimates(grid, c) for grid in sets for c in comparisons(grid)}
    names = column_names(sets)
    for name, heading, kinds in (
        ("knowledge_storage", "Storage: is knowledge in the same place?", ("storage",)),
        ("knowledge_transfer", "Transfer: does another stage's activation do as well as one's own?",
         ("forward", "backward")),
    ):  # fmt: skip
        chosen = {key: value for key, value in results.items() if key[1].kind in kinds}
        if not any(chosen.values()):
            continue
        blocks = [_block(c, sets, chosen) for c in dict.fromkeys(c for _, c in chosen)]
        tidy = [row for grid in sets for row in _tidy(grid, chosen)]
        yield Table(
            name=name,
            heading=_titled(sets, heading),
            caption=_caption(sets),
            columns=names,
            blocks=tuple(blocks),
            records=_with_method(sets, tidy),
        )


def judgement(sets: Sequence[PatchGrid]) -> Iterator[Table]:
    """Yield `knowledge_judgement`: unpatched logit differences, and how often both halves are judged right."""
    tidy, blocks = [], []
    names = tuple(grid.name for grid in sets)
    quantities = (
        ("clean", "mean logit difference, clean (true), nats", 2),
        ("corrupt", "mean logit difference, corrupt (false), nats", 2),
        ("knows_both", "share of pairs with clean > 0 > corrupt", 2),
    )
    for stage in dict.fromkeys(stage for grid in sets for stage in grid.stages):
        found = {grid.name: _unpatched(grid, stage) for grid in sets}
        rows = [Row("pairs", tuple(_count(len(found[grid.name]), grid) for grid in sets))]
        for column, (key, label, digits) in enumerate(quantities):
            cells = []
            for grid in sets:
                estimate = bootstrap_mean(found[grid.name][:, column])
                cells.append(cell(estimate.value, estimate.low, estimate.high, digits))
                tidy.append({**_common(grid), "stage": stage, "statistic": key, **_numbers(grid, estimate),
                             "unit": "" if key == "knows_both" else "nats"})  # fmt: skip
            rows.append(Row(label, tuple(cells)))
        blocks.append(Block(stage, tuple(rows)))
    if blocks:
        caption = (
            f"{_families(sets)}logit(TRUE) - logit(FALSE) of the unpatched runs, nats, mean over pairs, and "
            f"the share of pairs where the true statement is judged TRUE and the false one FALSE: where it "
            f"is low, the maps show little about knowledge. {interval_words()}"
        )
        if estimated := _estimated(sets):
            caption += f" These are unpatched runs, exact also in {estimated}; {ESTIMATE} concerns patched runs only."
        yield Table(
            name="knowledge_judgement",
            heading="Judgement: does each stage know the facts?",
            caption=caption,
            columns=names,
            blocks=tuple(blocks),
            records=tidy,
        )


@kept
def estimates(grid: PatchGrid, comparison: Comparison) -> dict[tuple[str, str], Estimate]:
    """Return (scale, statistic) -> estimate on the pairs finished in both matrices; empty if there are none."""
    pairs = grid.pairs(comparison.first, comparison.second)
    if not pairs.any():
        return {}
    first, second = (grid.patched(*matrix, pairs) for matrix in (comparison.first, comparison.second))
    return compare(first, second, grid.key_columns, np.random.default_rng(SEED))


def judged_right(grid: PatchGrid, stage: str) -> Estimate:
    """Return the share of pairs with both halves judged right, unpatched."""
    return bootstrap_mean(_unpatched(grid, stage)[:, 2])


def _count(n: int, grid: PatchGrid) -> Cell:
    return Cell(str(n) if n == grid.planned else f"{n} of {grid.planned}")


def _block(comparison: Comparison, sets: Sequence[PatchGrid], results: dict) -> Block:
    names = [grid.name for grid in sets]
    found = {name: results.get((name, comparison), {}) for name in names}
    counts = {name: next(iter(estimates.values())).n if estimates else 0 for name, estimates in found.items()}
    rows = [Row("pairs", tuple(_count(counts[grid.name], grid) for grid in sets))]
    for (scale, statistic), (label, digits) in LABELS.items():
        cells = []
        for name in names:
            e = found[name].get((scale, statistic))
            cells.append(cell(e.value, e.low, e.high, digits) if e else Cell("–"))
        rows.append(Row(label, tuple(cells)))
        reference = published.STORAGE[statistic]
        if (comparison.first, comparison.second) == published.STORAGE_COMPARED and scale == "normalised":
            # The paper's values are exact; next to estimates they would be misleading.
            exact = {grid.name for grid in sets if not grid.estimate and published.is_about(grid.family)}
            if any(name in reference for name in exact):
                theirs = tuple(
                    Cell(number(reference.get(name, np.nan) if name in exact else np.nan, digits))
                    for name in names
                )
                rows.append(Row(published.PAPER, theirs, published=True))
    return Block(comparison.heading, tuple(rows))


def _tidy(grid: PatchGrid, results: dict) -> Iterator[dict]:
    for (name, comparison), estimates in results.items():
        if name != grid.name:
            continue
        for (scale, statistic), estimate in estimates.items():
            yield {
                **_common(grid),
                "comparison": comparison.kind,
                "matrix_1": "->".join(comparison.first),
                "matrix_2": "->".join(comparison.second),
                "scale": scale,
                "statistic": statistic,
                **_numbers(grid, estimate),
                "unit": UNITS[statistic] if scale == "raw" else "",
            }


def _common(grid: PatchGrid) -> dict:
    return {"study": "knowledge", "set": grid.name, "family": grid.family, "site": grid.site}


def _numbers(grid: PatchGrid, estimate: Estimate) -> dict:
    return {
        "estimate": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "n_pairs": estimate.n,
        "n_pairs_planned": grid.planned,
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "seed": SEED,
    }


def _unpatched(grid: PatchGrid, stage: str) -> np.ndarray:
    """Return clean, corrupt, and whether both are right, for pairs that have both; dims pair x 3."""
    if stage not in grid.stages:
        return np.empty((0, 3))
    clean, corrupt = grid.unpatched(stage, stage, slice(None))
    values = np.stack([clean, corrupt, (clean > 0) & (corrupt < 0)], axis=1).astype(np.float64)
    return values[np.isfinite(values).all(axis=1)]


def column_names(sets: Sequence[PatchGrid]) -> tuple[str, ...]:
    """Return a heading for each set's column, marked if its values are estimates.

    Examples
    --------
    >>> column_names([grid])
    ('cities',)
    """
    return tuple(f"{grid.name} (estimate)" if grid.estimate else grid.name for grid in sets)


def _titled(sets: Sequence[PatchGrid], heading: str) -> str:
    """Add the method to a heading if values are estimates, and of which sets if only some are."""
    estimated = _estimated(sets)
    some = "" if all(grid.estimate for grid in sets) else f" in {estimated}"
    return f"{heading} · {ESTIMATE}{some}" if estimated else heading


def _estimated(sets: Sequence[PatchGrid]) -> str:
    return ", ".join(grid.name for grid in sets if grid.estimate)


def _estimate_words(sets: Sequence[PatchGrid]) -> str:
    estimated = _estimated(sets)
    return f"Columns of {estimated}: {ESTIMATE}, not exact. " if estimated else ""


def _with_method(sets: Sequence[PatchGrid], tidy: list[dict]) -> list[dict]:
    """Add the method to every row, after the fourth column, if any set's values are estimates."""
    if not _estimated(sets):
        return tidy
    methods = {grid.name: "attribution" if grid.estimate else "exact" for grid in sets}
    return [dict([*row.items()][:4]) | {"method": methods[row["set"]]} | row for row in tidy]


def _caption(sets: Sequence[PatchGrid]) -> str:
    return (
        f"{_families(sets)}{_estimate_words(sets)}"
        f"M: mean over pairs of the logit difference after patching, layer "
        f"{'and head ' if any(grid.heads for grid in sets) else ''}x token. "
        f"Normalised: 20 equal bins over the range of M, the lower ten 0, the upper ten 0.1 to 1.0, as in "
        f"{published.PAPER_TITLE}; raw: M itself, nats. K: max |M1 − M2| over the subject and object tokens "
        f"only (knowledge tokens in free-form sets). {interval_words()} The same pairs are drawn for both "
        f"matrices. Resampling adds noise, so intervals are biased low for r and high for max and K, and can "
        f"exclude the estimate."
    )


def interval_words() -> str:
    return (
        f"Brackets: {CONFIDENCE:.0%} percentile bootstrap interval over pairs, {RESAMPLES} resamples, "
        f"seed {SEED}."
    )


def _families(sets: Sequence[PatchGrid]) -> str:
    families = dict.fromkeys(grid.family for grid in sets if grid.family)
    lacking = [f"{grid.name}" for grid in sets if not grid.complete]
    unfinished = f"INCOMPLETE: {', '.join(lacking)}. " if lacking else ""
    return unfinished + (f"Family: {', '.join(families)}. " if families else "")
