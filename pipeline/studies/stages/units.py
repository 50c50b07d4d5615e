"""The units of the study `stages`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from posttrace.pipeline.studies.stages.arrays import ATTRIBUTION, SLOPE_ENDS, SWAPS, WEIGHTS, updates
from posttrace.pipeline.studies.stages.inputs import PATH, Asked
from posttrace.pipeline.studies.stages.job import StagesJob
from posttrace.pipeline.study import Work, blocks, make_work
from posttrace.tracers.engines.weights import KINDS


def planned(job: StagesJob, inputs: Mapping[str, Asked]) -> Iterator[Work]:
    """Yield what the files say first; then every stage once: values, its own update, and, of the last, all removals."""
    names = updates(job)
    for k, update in enumerate(names):
        yield make_work(
            "weights",
            PATH,
            update,
            region={"update": (k, k + 1)},
            arrays=WEIGHTS,
            stage=None,
            cells=1,
            update=update,
        )
    for m, stage in enumerate(job.stage_names):
        for path, asked in inputs.items():
            spans = blocks(len(asked.questions), job.prompts_per_unit)
            for begin, end in spans:
                region = {"model": (m, m + 1), "prompt": (begin, end)}
                yield make_work(
                    "values",
                    path,
                    stage,
                    begin,
                    region=region,
                    arrays=["behaviour"],
                    stage=stage,
                    cells=end - begin,
                )
            if m:
                yield from _of_update(job, path, spans, m - 1, stage)
    for k, update in enumerate(names):
        for path, asked in inputs.items():
            yield from _removed(job, path, asked, k, update)
    if job.controls:
        for path, asked in inputs.items():
            n = job.controls * len(asked.questions)
            final = job.stage_names[-1]
            yield make_work("rounding", path, region={}, arrays=["rounding"], stage=final, cells=n)


def _of_update(job: StagesJob, path: str, spans, k: int, stage: str) -> Iterator[Work]:
    """Yield what is done along an update, with the stage that it made."""
    swapped = [name for kind in job.swaps for name in SWAPS[kind]]
    for begin, end in spans:
        common = {"update": (k, k + 1), "prompt": (begin, end)}
        yield make_work(
            "path",
            path,
            stage,
            begin,
            region={**common, "slope_end": (0, 2)},
            arrays=ATTRIBUTION,
            stage=stage,
            cells=end - begin,
            update=stage,
        )
        if swapped:
            yield make_work(
                "swaps",
                path,
                stage,
                begin,
                region=common,
                arrays=swapped,
                stage=stage,
                cells=end - begin,
                update=stage,
            )


def _removed(job: StagesJob, path: str, asked: Asked, k: int, update: str) -> Iterator[Work]:
    """Yield what is taken out of the final stage."""
    n, final = len(asked.questions), job.stage_names[-1]
    for begin, end in blocks(n, job.prompts_per_unit):
        yield make_work(
            "removed",
            path,
            update,
            begin,
            region={"update": (k, k + 1), "slope_end": (2, len(SLOPE_ENDS)), "prompt": (begin, end)},
            arrays=["removed", "slope"],
            stage=final,
            cells=(len(job.alphas) + 1) * (end - begin),
            update=update,
        )
    for c, control in enumerate(KINDS if job.controls else ()):
        yield make_work(
            "control",
            path,
            update,
            control,
            region={"update": (k, k + 1), "control": (c, c + 1)},
            arrays=["control_removed"],
            stage=final,
            cells=job.controls * n,
            update=update,
            control=control,
        )
