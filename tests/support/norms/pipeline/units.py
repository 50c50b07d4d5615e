"""The units of the study `norms`."""

from collections.abc import Iterator

from posttrace.pipeline.job import Job
from posttrace.pipeline.study import Work, blocks, make_work
from tests.support.norms.pipeline.inputs import NormsSet


def planned(job: Job, sets: dict[str, NormsSet]) -> Iterator[Work]:
    """Read every set with every stage; then one unit without a model for each set."""
    read: dict[str, list[str]] = {name: [] for name in sets}
    for m, stage in enumerate(job.stage_names):
        for name, one in sets.items():
            for span in blocks(len(one.statements), job.statements_per_unit):
                region, n = {"model": (m, m + 1), "statement": span}, span[1] - span[0]
                group, arrays = f"norms/{name}", ["norm"]
                work = make_work(
                    "read", group, stage, span[0], region=region, arrays=arrays, stage=stage, cells=n, set=name
                )
                read[name].append(work.unit.id)
                yield work
    for name in sets:
        needs = read[name]
        yield make_work("gap", f"norms/{name}", region={}, arrays=["gap"], stage=None, cells=1, needs=needs, set=name)
