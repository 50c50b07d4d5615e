"""The truthfulness study in a few sentences: the first stage's truth direction in the last stage."""

from __future__ import annotations

from collections.abc import Sequence

from posttrace.figures.measures.intervals import Bootstrap, Estimate, mean_of, middle_range
from posttrace.figures.studies.truthfulness.data import (
    StatementSet,
    Summary,
    accuracy,
    effect,
    parted,
    steered_sets,
    tested_sets,
)
from posttrace.figures.studies.truthfulness.tables import PERCENT, PROBES
from posttrace.figures.verdict import Verdict, in_words, listed

CHANCE = 50.0
"""Accuracy of guessing, per cent: sets have as many true as false statements."""


def verdict(groups: Sequence[Summary | StatementSet]) -> Verdict:
    """Say how well the first stage's probe and direction do on the last stage, next to its own and to random ones.

    Numbers are the means over sets in the tables `truthfulness_accuracy` and `truthfulness_effects`.
    """
    summary, sets = parted(groups)
    if summary is None:
        return Verdict(sentence="No set has been held out yet.", weak=True)
    base, stage = summary.stages[0], summary.stages[-1]
    sources = list(dict.fromkeys([base, stage]))
    words, caveats = [], []
    doubtful: dict[str, str] = {}
    if tested := tested_sets(summary, sets):
        found = {name: accuracy(sets[name], summary.layer(name)) for name in tested}
        mean, probe = mean_of(list(found.values())), 0
        at = summary.stages.index
        target = at(stage)
        read = {source: _entry(mean, (probe, at(source), target), PERCENT) for source in sources}
        name = PROBES.get(summary.probes[probe], summary.probes[probe])
        each = ", ".join(f"{_whose(source, stage)} {in_words(e, 1)} %" for source, e in read.items())
        words.append(
            f"Accuracy of the {name} on {stage}: {each} (mean over {len(tested)} sets held out, n = {mean.n} "
            "statements)."
        )
        for held_out, one in found.items():
            own = _entry(one, (probe, target, target), PERCENT)
            if not own.low > CHANCE:
                doubtful[held_out] = (
                    f"{stage}'s own probe judges {in_words(own, 1)} % of {own.n} statements right, not clearly above "
                    f"guessing ({CHANCE:g} %)."
                )
    weak = not tested
    if steered := steered_sets(summary, sets):
        mean = mean_of([effect(sets[name]) for name in steered])
        controls, target = sets[steered[0]].controls, summary.stages.index(stage)
        steer = {source: _entry(mean, (0, summary.directions.index(source), target)) for source in sources}
        each = ", ".join(f"{_whose(source, stage)} {in_words(e, 2)}" for source, e in steer.items())
        random = middle_range(mean.value[0, controls, target]) if controls else None
        control = (
            f"; {random.n} random directions, median and 95 % range {in_words(random, 2)}" if random else ""
        )
        words.append(
            f"Steering turns {stage}'s answers by this share of the way to certainty of the opposite: {each}{control} "
            f"(mean over {len(steered)} sets, n = {mean.n} statements)."
        )
        if random is None:
            caveats.append("No control: no random direction was tried, so any vector might do the same.")
        idle = [source for source, e in steer.items() if random and e.value <= random.high]
        if idle:
            caveats.append(
                f"The direction of {listed(idle)} steers no more than random directions of the same norm do, so the "
                "effect is not due to the direction."
            )
        weak = weak or random is None
    if doubtful:
        caveats.append(f"{stage}'s own probe is near guessing on {listed(list(doubtful))}: faded below.")
    return Verdict(
        sentence=" ".join(words) or "No set has been held out and tested yet.",
        caveat=" ".join(caveats),
        doubtful=doubtful,
        weak=weak or (bool(doubtful) and len(doubtful) == len(tested)),
    )


def _whose(source: str, stage: str) -> str:
    return "its own" if source == stage else f"{source}'s"


def _entry(found: Bootstrap, at: tuple[int, ...], factor: float = 1.0) -> Estimate:
    """Return one entry of a bootstrapped array."""
    value, low, high = (factor * float(array[at]) for array in (found.value, *found.interval))
    return Estimate(value, low, high, found.n)
