"""The units of the study `stages`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from posttrace.pipeline.studies.stages.arrays import (
    ATTRIBUTION,
    DATA_ORDERS,
    SLOPE_ENDS,
    SWAPS,
    WEIGHTS,
    left_out,
    updates,
)
from posttrace.pipeline.studies.stages.inputs import PATH, Asked
from posttrace.pipeline.studies.stages.job import StagesJob
from posttrace.pipeline.study import Work, blocks, make_work
from posttrace.tracers.engines.weights import KINDS


def planned(job: StagesJob, inputs: Mapping[str, Asked]) -> Iterator[Work]:
    """Yield what the files say first; then every stage once: values, its own update, and, of the last, all removals."""
    if job.effects_only:
        for m, stage in enumerate(job.stage_names):
            for path, asked in inputs.items():
                yield from _values(path, asked, m, stage, job.prompts_per_unit)
        return
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
    trained = {name: list(_trainings(w, name)) for w, name in enumerate(left_out(job))}
    for works in trained.values():
        yield from works
    for m, stage in enumerate(job.stage_names):
        for path, asked in inputs.items():
            yield from _values(path, asked, m, stage, job.prompts_per_unit)
            if m:
                spans = blocks(len(asked.questions), job.prompts_per_unit)
                yield from _of_update(job, path, spans, m - 1, stage)
    for k, update in enumerate(names):
        for path, asked in inputs.items():
            yield from _removed(job, path, asked, k, update)
    for w, (name, works) in enumerate(trained.items()):
        for path, asked in inputs.items():
            for begin, end in blocks(len(asked.questions), job.prompts_per_unit):
                yield make_work(
                    "without",
                    path,
                    name,
                    begin,
                    region={"without": (w, w + 1), "prompt": (begin, end)},
                    arrays=["retrained", "estimate", "replayed"],
                    stage=job.stage_names[-1],
                    cells=end - begin,
                    needs=[one.unit.id for one in works],
                    update=name,
                )
    if job.controls:
        for path, asked in inputs.items():
            n = job.controls * len(asked.questions)
            final = job.stage_names[-1]
            yield make_work("rounding", path, region={}, arrays=["rounding"], stage=final, cells=n)


def _values(path: str, asked: Asked, m: int, stage: str, size: int) -> Iterator[Work]:
    """Yield the behaviour of a stage."""
    for begin, end in blocks(len(asked.questions), size):
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


def _trainings(w: int, stage: str) -> Iterator[Work]:
    """Yield the stages after one trained again: with its update, and what becomes of it; and without, in each order."""
    yield make_work(
        "replay",
        PATH,
        stage,
        region={"without": (w, w + 1)},
        arrays=["replayed_weights", "propagated_update"],
        stage=None,
        cells=1,
        update=stage,
    )
    for order in range(DATA_ORDERS):
        yield make_work(
            "retrain",
            PATH,
            stage,
            order,
            region={"without": (w, w + 1), "data_order": (order, order + 1)},
            arrays=["retrained_weights"],
            stage=None,
            cells=1,
            update=stage,
        )


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
