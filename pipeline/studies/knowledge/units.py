"""The units of the study `knowledge`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from posttrace.pipeline.studies.knowledge.arrays import grid_arrays
from posttrace.pipeline.studies.knowledge.inputs import PairSet
from posttrace.pipeline.studies.knowledge.job import KnowledgeJob
from posttrace.pipeline.study import Work, blocks, make_work


def planned(job: KnowledgeJob, sets: Mapping[str, PairSet], n_places: int) -> Iterator[Work]:
    """Clean runs of every stage, then the grids, beginning with the stage whose model is still open.

    Parameters
    ----------
    n_places
        Layers, times heads at the site `z`, that are patched at each token.

    Examples
    --------
    >>> next(planned(job, sets, 8)).unit.id                           # doctest: +SKIP
    'knowledge/cities/clean/base/0000'
    """
    stages = job.stage_names
    for i, stage in enumerate(stages):
        for name, pairs in sets.items():
            for begin, end in blocks(len(pairs.lengths), job.pairs_per_unit):
                yield make_work(
                    "clean",
                    pairs.path,
                    stage,
                    begin,
                    region={"source": (i, i + 1), "pair": (begin, end)},
                    arrays=("activation", "logit_diff_clean"),
                    stage=stage,
                    cells=end - begin,
                    set=name,
                )
    for i, stage in reversed(list(enumerate(stages))):
        for name, pairs in sets.items():
            for begin, end in blocks(len(pairs.lengths), job.pairs_per_unit):
                yield make_work(
                    "grid",
                    pairs.path,
                    stage,
                    begin,
                    region={"target": (i, i + 1), "pair": (begin, end)},
                    arrays=grid_arrays(job),
                    stage=stage,
                    cells=len(stages) * n_places * sum(pairs.lengths[begin:end]),
                    needs=[f"{pairs.path}/clean/{source}/{begin:04d}" for source in stages],
                    set=name,
                )
