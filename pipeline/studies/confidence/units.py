"""The units of the study `confidence`."""

from __future__ import annotations

from collections.abc import Iterator

from posttrace.pipeline.studies.confidence.arrays import ANSWERS, EFFECTS, MEANS, PATH, WEIGHTS, kinds
from posttrace.pipeline.studies.confidence.inputs import ConfidenceInputs
from posttrace.pipeline.studies.confidence.job import TEXT, ConfidenceJob
from posttrace.pipeline.study import Work, blocks, make_work


def planned(job: ConfidenceJob, inputs: ConfidenceInputs) -> Iterator[Work]:
    """Yield what needs no model first, then everything of one stage after the other.

    Examples
    --------
    >>> next(planned(job, inputs)).unit.id                            # doctest: +SKIP
    'confidence/weights/base'
    """
    stages, text = (
        [(stage, {"model": (i, i + 1)}) for i, stage in enumerate(job.stage_names)],
        f"{PATH}/{TEXT}",
    )
    for stage, model in stages:
        yield make_work("weights", PATH, stage, region=model, arrays=WEIGHTS, stage=None, cells=1)
    if inputs.documents:
        for stage, model in stages:
            needs = [f"{PATH}/weights/{stage}"]
            yield make_work(
                "chosen", text, stage, region=model, arrays=["ablated"], stage=None, cells=1, needs=needs
            )
    for stage, model in stages:
        if job.text is not None:
            n = len(inputs.documents)
            yield make_work("means", text, stage, region=model, arrays=MEANS, stage=stage, cells=n)
            for begin, end in blocks(n, job.text.per_unit):
                yield make_work(
                    "ablation",
                    text,
                    stage,
                    begin,
                    region={**model, "document": (begin, end)},
                    arrays=EFFECTS,
                    stage=stage,
                    cells=len(kinds(job)) * (end - begin),
                    needs=[f"{text}/chosen/{stage}", f"{text}/means/{stage}"],
                )
        for asked in inputs.asked.values():
            for begin, end in blocks(len(asked.statements), job.statements_per_unit):
                yield make_work(
                    "answers",
                    asked.path,
                    stage,
                    begin,
                    region={**model, "statement": (begin, end)},
                    arrays=ANSWERS,
                    stage=stage,
                    cells=end - begin,
                )
