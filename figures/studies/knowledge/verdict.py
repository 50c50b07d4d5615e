"""The knowledge study in one sentence: how alike the storage and transfer maps are."""

from __future__ import annotations

from collections.abc import Sequence

from posttrace.figures.measures.intervals import Estimate
from posttrace.figures.studies.knowledge.data import PatchGrid
from posttrace.figures.studies.knowledge.tables import Comparison, comparisons, estimates, judged_right
from posttrace.figures.verdict import Verdict, in_words, listed

CHANCE = 0.25
"""Share of pairs with both halves right if both answers are guessed."""


def verdict(sets: Sequence[PatchGrid]) -> Verdict:
    """Compare the last stage with the first, over the sets that every stage knows (over all if there is none).

    Numbers are those of the tables `knowledge_storage`, `knowledge_transfer` and `knowledge_judgement`.

    Parameters
    ----------
    sets
        As read from the store, nats.
    """
    doubtful = {grid.name: why for grid in sets if (why := _unknown(grid))}
    known = [grid for grid in sets if grid.name not in doubtful]
    used = known or list(sets)
    storage = _correlations(used, "storage")
    transfer = _correlations(used, "forward")
    sentence = _storage(used, storage) if storage else _alone(used[0])
    if transfer:
        (comparison, grid), lowest = min(transfer.items(), key=lambda item: item[1].value)
        (source, target), least = comparison.first, "" if len(transfer) == 1 else " or more"
        sentence += (
            f" Transfer from {source} into {target} correlates with {target}'s own map with r = "
            f"{in_words(lowest, 2)}{least} ({_where(used[grid], lowest)})."
        )
    caveat = ""
    if doubtful:
        left_out = "left out of the sentence and faded below" if known else "no set is left that says more"
        caveat = (
            f"In {len(doubtful)} of {len(sets)} sets ({listed(list(doubtful))}) a stage judges pairs no better than "
            f"guessing does ({CHANCE:g}); its maps say little about knowledge: {left_out}."
        )
    return Verdict(sentence=sentence, caveat=caveat, doubtful=doubtful, weak=not known)


def _unknown(grid: PatchGrid) -> str:
    shares = {stage: judged_right(grid, stage) for stage in grid.stages}
    poor = [
        f"{stage} judges {in_words(share, 2)} of {share.n} pairs right"
        for stage, share in shares.items()
        if share.n and not share.low > CHANCE
    ]
    return f"{listed(poor)}, not clearly above guessing ({CHANCE:g})." if poor else ""


def _correlations(sets: Sequence[PatchGrid], kind: str) -> dict[tuple[Comparison, int], Estimate]:
    """Return r of normalised maps for the last stage's comparison of a kind with the first, by its set's index."""
    found = {}
    for index, grid in enumerate(sets):
        for one in comparisons(grid):
            if one.kind == kind and one.first[0] == grid.reference and one.second[1] == grid.stages[-1]:
                r = estimates(grid, one).get(("normalised", "correlation"))
                if r is not None and r.value == r.value:
                    found[one, index] = r
    return found


def _storage(sets: Sequence[PatchGrid], found: dict[tuple[Comparison, int], Estimate]) -> str:
    ordered = sorted(found.items(), key=lambda item: item[1].value)
    (comparison, low), lowest = ordered[0]
    stages = f"{comparison.first[0]} and {comparison.second[0]}"
    words = f"Storage maps of {stages} correlate with r = {in_words(lowest, 2)} ({_where(sets[low], lowest)}"
    if len(ordered) == 1:
        return f"{words})."
    (_, high), highest = ordered[-1]
    return (
        f"{words}, the lowest of {len(ordered)} sets) to {in_words(highest, 2)} ({_where(sets[high], highest)}, the "
        "highest)."
    )


def _alone(grid: PatchGrid) -> str:
    stages = grid.stages or grid.targets
    share = judged_right(grid, stages[-1])
    return (
        f"{stages[-1]} judges {in_words(share, 2)} of {share.n} pairs right ({grid.name}); there is no finished second "
        "stage to compare it with."
    )


def _where(grid: PatchGrid, estimate: Estimate) -> str:
    return f"{grid.name}, n = {estimate.n} pairs{', an estimate' if grid.estimate else ''}"
