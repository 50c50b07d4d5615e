"""What the units of the study `refusal` cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from posttrace.pipeline.spot_checks import check_cost
from posttrace.tracers.batching.memory import MAX_TOKENS, batches
from posttrace.tracers.cost import Cost, Shape, run_cost

if TYPE_CHECKING:
    from posttrace.pipeline.studies.refusal.study import Refusal
    from posttrace.pipeline.study import Work


def unit_cost(study: Refusal, work: Work) -> Cost:
    """Forward passes and multiply-adds of a unit; answers that end early cost less than is counted.

    Examples
    --------
    >>> unit_cost(study, study.work[0]).forwards                      # doctest: +SKIP
    6
    """
    if work.stage is None:
        return Cost()
    kind, stage = work.kind, work.about["subject"]
    prompts, max_tokens = study.inputs.prompts[stage], study.job.execution.max_tokens or MAX_TOKENS
    lengths = {key: [len(p) for p in some] for key, some in prompts.ids.items()}

    def once(*keys) -> Cost:
        return sum((passes(study.stages.shape, lengths[key], 0, max_tokens) for key in keys), Cost())

    harmful, harmless = (("harmful", "validation"), ("harmless", "validation"))
    if kind == "directions":
        return once(("harmful", "direction"), ("harmless", "direction"), harmful, harmless)
    if kind == "sweep":
        steered = once(harmful, harmless, harmless)
        return once(harmless) + steered * prompts.tail
    if kind == "answers":
        begin, end = work.unit.region["prompt"]
        some = (lengths["harmful", "test"] + lengths["harmless", "test"])[begin:end]
        n = work.unit.region["intervention"][1] - work.unit.region["intervention"][0]
    else:
        some, n = lengths[harmless], len(study.job.coefficient_search)
    new = study.job.new_tokens
    scored = passes(study.stages.shape, [length + new for length in some], 0, max_tokens)
    checks = check_cost(study.job, study.stages.shape, len(some), max(some, default=0))
    return (passes(study.stages.shape, some, new, max_tokens) + scored + checks) * n


def passes(shape: Shape, lengths: Sequence[int], new: int, max_tokens: int) -> Cost:
    """Cost of running prompts in batches, and of `new` - 1 further tokens each on their caches.

    Examples
    --------
    >>> passes(Shape(1, 10, 6, 4), [2, 2], new=0, max_tokens=99)
    Cost(forwards=1, multiply_adds=72)
    """
    total = Cost()
    for rows in batches([length + new for length in lengths], max_tokens, one_length=bool(shape.whole)):
        sizes = [lengths[row] for row in rows]
        total += run_cost(shape, [0], sizes)
        for step in range(1, new):
            each = shape.block + (max(sizes) + step) * shape.attention
            total += Cost(1, shape.n_layers * len(rows) * each)
    return total
