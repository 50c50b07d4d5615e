"""The units of the study `norms`."""

from collections.abc import Iterator

from posttrace.pipeline.job import Job
from posttrace.pipeline.study import Work, blocks, make_work
from tests.support.norms.pipeline.inputs import NormsSet


def planned(job: Job, sets: dict[str, NormsSet]) -> Iterator[Work]:
    """Read every set with every stage; then one unit without a model for each set."""
    for name, one in sets.items():
        group, read = f"norms/{name}", []
        for m, stage in enumerate(job.stage_names):
            for span in blocks(len(one.statements), job.statements_per_unit):
                region = {"model": (m, m + 1), "statement": span}
                how = dict(region=region, arrays=["norm"], stage=stage, cells=span[1] - span[0], set=name)
                read.append(make_work("read", group, stage, span[0], **how))
        yield from read
        needs = [work.unit.id for work in read]
        yield make_work("gap", group, region={}, arrays=["gap"], stage=None, cells=1, needs=needs, set=name)
