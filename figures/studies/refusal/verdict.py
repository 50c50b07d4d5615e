"""The refusal study in one sentence: what ablating each direction does to the last stage's refusals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from posttrace.figures.measures.intervals import Estimate
from posttrace.figures.studies.refusal.data import Refusal
from posttrace.figures.studies.refusal.tables import estimated, random_range
from posttrace.figures.verdict import Verdict, in_words, listed


def verdict(groups: Sequence[Refusal]) -> Verdict:
    """Say how often the last finished stage refuses, unsteered and with each direction ablated.

    Numbers are those of the table `refusal_refused`, 95 % Wilson intervals over prompts.
    """
    group = groups[0]
    finished = [stage for stage in group.stages if _refused(group, stage, stage, "ablation").n]
    target = finished[-1] if finished else group.stages[-1]
    before, after = (_refused(group, target, target, how) for how in ("none", "ablation"))
    words = [
        f"{target}'s own direction ablated: refusals of harmful prompts {in_words(before, 2)} → {in_words(after, 2)} "
        f"(n = {after.n})"
    ]
    others = {
        stage: found
        for stage in group.stages
        if stage != target and (found := _refused(group, stage, target, "ablation")).n
    }
    words += [f"{stage}'s direction {in_words(found, 2)}" for stage, found in others.items()]
    random = random_range(group, "refused", target, "ablation", "harmful")
    if random:
        words.append(f"{random.n} random directions, mean and range {in_words(random, 2)}")
    doubtful = _unqualified(group)
    caveats = []
    if not random:
        caveats.append("No control: no random direction was ablated, so any vector might do the same.")
    if random and after.n and after.value >= random.low:
        caveats.append(f"{target}'s own direction does no more than the random ones.")
    if doubtful:
        caveats.append(f"The direction of {listed(list(doubtful))} does not qualify: faded below.")
    return Verdict(
        sentence=f"{'; '.join(words)}.",
        caveat=" ".join(caveats),
        doubtful=doubtful,
        weak=not random or target in doubtful,
    )


def _refused(group: Refusal, direction: str, target: str, intervention: str) -> Estimate:
    return estimated(group, "refused", direction, target, intervention, "harmful")


def _unqualified(group: Refusal) -> dict[str, str]:
    """Return the stages whose sweep found no direction that meets the conditions."""
    data = group.data
    chosen = np.asarray(data["selected_layer"].values) >= 0
    swept = np.array([str(by) == "sweep" for by in data["selected_by"].values])
    poor = chosen & swept & ~np.asarray(data["selected_qualifies"].values, dtype=bool)
    return {
        stage: "No place of the sweep meets the conditions on induce and KL."
        for stage, p in zip(group.stages, poor, strict=True)
        if p
    }
