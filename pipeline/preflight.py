"""`posttrace check JOB`: what would go wrong, before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator

from posttrace.pipeline.errors import JobError
from posttrace.pipeline.estimate import TOO_LITTLE, Estimate
from posttrace.pipeline.job import Job
from posttrace.pipeline.plan import prepare
from posttrace.tracers.errors import TracerError
from posttrace.tracers.models.loading import quiet_libraries, resolve_device
from posttrace.tracers.remote.preflight import TRUSTED, Finding, examine_model, examine_server, key_tags


def examine(job: Job, url: str = "runs") -> Iterator[Finding]:
    """Look at a job's models, sets and operations, and at the server that it would be sent to.

    >>> [f.verdict for f in examine(load_job("knowledge"))]            # doctest: +SKIP
    ['ok', 'ok']

    A local job: what a dry run looks at. url: where its store would be.
    """
    quiet_libraries()
    try:
        study = prepare(job)
    except (JobError, TracerError) as error:
        yield Finding("wrong", str(error))
        return
    n, stages = len(study.work), ", ".join(job.stage_names)
    yield Finding("ok", f"job: {job.study}, {n} units over {job.family.name} ({stages}) in {study.job.dtype}")
    yield from (Finding("note", note) for note in study.notes())
    if job.execution.backend != "remote":
        yield Finding("ok", f"device: {resolve_device(job.execution.device)}")
        for line in Estimate(study, study.work, url).lines():
            yield Finding("note" if line.endswith(TOO_LITTLE) else "ok", line)
        return
    yield from _examine_server(study.job)


def _examine_server(job: Job) -> Iterator[Finding]:
    from posttrace.pipeline.executors.server import open_stage, runner_of
    from posttrace.tracers.remote.server import configured

    findings = list(examine_server(configured()))
    yield from findings
    if any(f.verdict == "wrong" for f in findings):
        return
    if getattr(job, "method", None) == "attribution" and not _gradients():
        why = "attribution needs gradients, which this server gives to trusted keys only; set method=exact"
        yield Finding("wrong", f"method: {why}")
        return
    runner = runner_of(job)
    for stage in job.stage_names:
        checkpoint = job.family.stages[stage]
        yield from examine_model(
            open_stage(job, stage, runner),
            checkpoint=checkpoint.model,
            revision=checkpoint.revision,
            device=job.execution.device,
        )


def _gradients() -> bool:
    """Whether the server runs this key's code next to the weights, as far as it says."""
    from posttrace.tracers.remote.server import Refused, Trouble, configured

    try:
        tags = key_tags(configured())
    except (Trouble, Refused):
        return True
    return tags is None or TRUSTED in tags
