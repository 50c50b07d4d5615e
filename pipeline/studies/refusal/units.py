"""Which units a refusal job is cut into, and which of them need which."""

from __future__ import annotations

from collections.abc import Iterator

from posttrace.pipeline.studies.refusal.arrays import (
    ANSWERS,
    DIRECTIONS,
    INTERVENTIONS,
    PATH,
    REASONING,
    SEARCH,
    SELECTED,
    SWEEP,
    direction_names,
)
from posttrace.pipeline.studies.refusal.instructions import Splits
from posttrace.pipeline.studies.refusal.job import RefusalJob
from posttrace.pipeline.study import Work, blocks, make_work


def planned(
    job: RefusalJob, splits: dict[str, Splits], n_layers: int, n_positions: int, may_reason: bool = False
) -> Iterator[Work]:
    """Per stage its directions, sweep and choices; then the answers, beginning with the stage that is still open.

    Examples
    --------
    >>> [work.unit.id for work in planned(job, splits, 8, 4)][:2]     # doctest: +SKIP
    ['refusal/directions/base', 'refusal/sweep/base/000']

    may_reason: whether any stage may reason before it answers.
    """
    answers = (*ANSWERS, *REASONING) if may_reason else ANSWERS
    stages, validation = job.stage_names, {kind: len(s.validation) for kind, s in splits.items()}
    for m, stage in enumerate(stages):
        model = {"model": (m, m + 1)}
        n = sum(len(s.direction) for s in splits.values())
        yield _work("directions", stage, region=model, arrays=DIRECTIONS, cells=n)
        swept = [f"{layer:03d}" for layer in range(n_layers) if stage not in job.choices]
        for layer, name in enumerate(swept):
            region = {**model, "layer": (layer, layer + 1)}
            n = sum(validation.values()) * n_positions
            needs = [f"directions/{stage}"]
            yield _work("sweep", stage, name, region=region, arrays=SWEEP, cells=n, needs=needs)
        needs = [f"directions/{stage}", *(f"sweep/{stage}/{name}" for name in swept)]
        yield _work("selection", stage, region=model, arrays=SELECTED, cells=0, needs=needs, opens=False)
        n = validation["harmless"] * len(job.coefficient_search)
        arrays = ("coefficient", *(SEARCH if n else ()))
        needs = [f"directions/{stage}", f"selection/{stage}"]
        yield _work("coefficient", stage, region=model, arrays=arrays, cells=n, needs=needs, opens=n > 0)
    chosen = [f"{kind}/{stage}" for stage in stages for kind in ("directions", "selection", "coefficient")]
    n, names = sum(len(s.test) for s in splits.values()), direction_names(job)
    for t, target in reversed(list(enumerate(stages))):
        plain = {"target": (t, t + 1), "intervention": (0, 1), "direction": (0, len(names))}
        for begin, end in blocks(n, job.prompts_per_unit):
            region = {**plain, "prompt": (begin, end)}
            yield _work(
                "answers",
                target,
                "none",
                begin,
                region=region,
                arrays=answers,
                cells=end - begin,
                direction="none",
            )
        for d, name in enumerate(names):
            both = {"target": (t, t + 1), "intervention": (1, len(INTERVENTIONS)), "direction": (d, d + 1)}
            for begin, end in blocks(n, job.prompts_per_unit):
                yield _work(
                    "answers",
                    target,
                    name,
                    begin,
                    region={**both, "prompt": (begin, end)},
                    arrays=answers,
                    cells=2 * (end - begin),
                    needs=chosen,
                    direction=name,
                )


def _work(kind: str, stage: str, *names: str | int, needs=(), opens=True, **declared) -> Work:
    """Return a unit about one stage; opens: whether it needs the stage's model."""
    needs = [f"{PATH}/{one}" for one in needs]
    return make_work(
        kind, PATH, stage, *names, stage=stage if opens else None, needs=needs, subject=stage, **declared
    )
