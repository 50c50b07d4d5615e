"""The units of the study `trace`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from posttrace.pipeline.studies.trace.job import TraceJob
from posttrace.pipeline.study import Work, blocks, make_work
from posttrace.stores import Group

KINDS = {"output": "next_token", "completion": "generate"}
"""Group -> kind of its units; reads, lenses and sources have units of the kinds `read`, `lens` and `source`."""


def planned(job: TraceJob, groups: Mapping[str, Group], order: tuple[str, ...]) -> Iterator[Work]:
    """Source runs first, then everything that may need them, stage by stage.

    Parameters
    ----------
    groups
        By path.
    order
        The stages whose checkpoints the job looks at.

    Examples
    --------
    >>> next(planned(job, groups, ("base", "sft"))).unit.id           # doctest: +SKIP
    'trace/source-0/source/base/0000'
    """
    spans = blocks(len(job.prompts), job.prompts_per_unit)
    patches = sorted(enumerate(job.patches), key=lambda item: order.index(item[1].source))
    sources: dict[tuple[int, int], list[str]] = {span: [] for span in spans}
    for number, patch in patches:
        for span in spans:
            path = f"trace/source-{number}"
            work = _work(job, groups[path], "source", patch.source, 0, span, cells=span[1] - span[0])
            sources[span].append(work.unit.id)
            yield work
    for stage in reversed(job.stage_names):
        for path, group in groups.items():
            part = path.removeprefix("trace/").split("-")[0]
            for span in spans if part != "source" else ():
                yield _work(
                    job,
                    group,
                    KINDS.get(part, part),
                    stage,
                    job.stage_names.index(stage),
                    span,
                    cells=(span[1] - span[0]) * len(job.interventions),
                    needs=sources[span],
                )


def _work(job: TraceJob, group: Group, kind: str, stage: str, model: int, span, **declared) -> Work:
    return make_work(
        kind,
        group.path,
        stage,
        span[0],
        region={"model": (model, model + 1), "prompt": span},
        arrays=[array.name for array in group.arrays],
        stage=stage,
        **declared,
    )
