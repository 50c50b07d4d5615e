"""The units of the study `difference`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from posttrace.pipeline.studies.difference.arrays import ANALYSED, COMPARED, PATCHED, READ, STEERED
from posttrace.pipeline.studies.difference.inputs import TextSet
from posttrace.pipeline.studies.difference.job import DifferenceJob
from posttrace.pipeline.study import Work, make_work


def planned(job: DifferenceJob, sets: Mapping[str, TextSet]) -> Iterator[Work]:
    """Read all sets stage by stage, compare block by block without a model, analyse; then steer, stage by stage.

    >>> next(planned(job, sets)).unit.id                              # doctest: +SKIP
    'difference/plain/read/base/0000'
    """
    read: dict[str, dict[int, list[str]]] = {name: {} for name in sets}
    for m, stage in enumerate(job.stage_names):
        for name, one in sets.items():
            for u, span in enumerate(one.units):
                region = {
                    "model": (m, m + 1),
                    "document": span,
                    "unit": (u, u + 1),
                    "sample": one.sample_span(u),
                }
                about = dict(set=name, block=str(u))
                how = dict(region=region, arrays=READ, stage=stage, cells=span[1] - span[0], **about)
                work = make_work("read", one.path, stage, u, **how)  # type: ignore[arg-type]
                read[name].setdefault(u, []).append(work.unit.id)
                yield work
    done: dict[str, list[str]] = {}
    for name, one in sets.items():
        done[name] = [unit for some in read[name].values() for unit in some]
        for u, span in enumerate(one.units):
            region = {"document": span, "unit": (u, u + 1), "sample": one.sample_span(u)}
            work = make_work(
                "compare",
                one.path,
                u,
                region=region,
                arrays=COMPARED,
                stage=None,
                cells=len(job.pairs) * (span[1] - span[0]),
                needs=read[name][u],
                set=name,
                block=str(u),
            )
            done[name].append(work.unit.id)
            yield work
        yield make_work(
            "analyse",
            one.path,
            region={},
            arrays=ANALYSED,
            stage=None,
            cells=len(job.pairs),
            needs=done[name],
            set=name,
        )
    # The stage that was read last is open already.
    for stage in reversed(job.stage_names):
        for name, one in sets.items():
            if job.patchscope is not None:
                m = job.stage_names.index(stage)
                yield make_work(
                    "patchscope",
                    one.path,
                    stage,
                    region={"model": (m, m + 1)},
                    arrays=PATCHED,
                    stage=stage,
                    cells=job.patchscope.known,
                    needs=done[name],
                    set=name,
                )
            for i, (source, target) in enumerate(job.pairs):
                if job.steering is not None and source == stage:
                    yield make_work(
                        "steer",
                        one.path,
                        source,
                        target,
                        region={"pair": (i, i + 1)},
                        arrays=STEERED,
                        stage=source,
                        cells=job.steering.documents,
                        needs=done[name],
                        set=name,
                    )
