"""Which units a refusal job is cut into, and which of them need which."""

from __future__ import annotations

from collections.abc import Iterator

from posttrace.pipeline.plan import Work
from posttrace.pipeline.studies.refusal.arrays import (
    ANSWERS,
    DIRECTIONS,
    INTERVENTIONS,
    PATH,
    SEARCH,
    SELECTED,
    SWEEP,
    direction_names,
)
from posttrace.pipeline.studies.refusal.instructions import Splits
from posttrace.pipeline.studies.refusal.job import RefusalJob
from posttrace.stores import Unit


def planned(job: RefusalJob, splits: dict[str, Splits], n_layers: int, n_positions: int) -> Iterator[Work]:
    """Per stage its directions, sweep and choices; then the answers, beginning with the stage that is still open.

    >>> [work.unit.id for work in planned(job, splits, 8, 4)][:2]     # doctest: +SKIP
    ['refusal/directions/base', 'refusal/sweep/base/000']
    """
    stages, validation = job.stage_names, {kind: len(s.validation) for kind, s in splits.items()}
    for m, stage in enumerate(stages):
        model = {"model": (m, m + 1)}
        n = sum(len(s.direction) for s in splits.values())
        yield _work("directions", stage, model, DIRECTIONS, cells=n, needs=())
        swept = [f"{layer:03d}" for layer in range(n_layers) if stage not in job.choices]
        for layer, name in enumerate(swept):
            region = {**model, "layer": (layer, layer + 1)}
            n = sum(validation.values()) * n_positions
            yield _work("sweep", stage, region, SWEEP, name, cells=n, needs=[f"directions/{stage}"])
        needs = [f"directions/{stage}", *(f"sweep/{stage}/{name}" for name in swept)]
        yield _work("selection", stage, model, SELECTED, cells=0, needs=needs, model=False)
        n = validation["harmless"] * len(job.coefficient_search)
        arrays = ("coefficient", *(SEARCH if n else ()))
        needs = [f"directions/{stage}", f"selection/{stage}"]
        yield _work("coefficient", stage, model, arrays, cells=n, needs=needs, model=n > 0)
    chosen = [f"{kind}/{stage}" for stage in stages for kind in ("directions", "selection", "coefficient")]
    n, names = sum(len(s.test) for s in splits.values()), direction_names(job)
    for t, target in reversed(list(enumerate(stages))):
        for begin in range(0, n, job.prompts_per_unit):
            end = min(begin + job.prompts_per_unit, n)
            region = {
                "target": (t, t + 1),
                "prompt": (begin, end),
                "intervention": (0, 1),
                "direction": (0, len(names)),
            }
            rest = f"none/{begin:04d}"
            yield _work(
                "answers", target, region, ANSWERS, rest, cells=end - begin, needs=(), direction="none"
            )
        both = (1, len(INTERVENTIONS))
        for d, name in enumerate(names):
            for begin in range(0, n, job.prompts_per_unit):
                end = min(begin + job.prompts_per_unit, n)
                region = {
                    "target": (t, t + 1),
                    "prompt": (begin, end),
                    "intervention": both,
                    "direction": (d, d + 1),
                }
                rest = f"{name}/{begin:04d}"
                n_cells = 2 * (end - begin)
                yield _work(
                    "answers", target, region, ANSWERS, rest, cells=n_cells, needs=chosen, direction=name
                )


def _work(kind, stage, region, arrays, rest="", *, cells, needs, model=True, **about) -> Work:
    unit_id = "/".join(filter(None, [PATH, kind, stage, rest]))
    return Work(
        unit=Unit(id=unit_id, group=PATH, region=region, arrays=arrays),
        kind=kind,
        stage=stage if model else None,
        cells=cells,
        needs=tuple(f"{PATH}/{one}" for one in needs),
        about={"stage": stage, **about},
    )
