"""Run a job: do every unit that the store does not have yet."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from posttrace.pipeline.errors import JobError
from posttrace.pipeline.estimate import Estimate, check_flops
from posttrace.pipeline.executors import backend_of
from posttrace.pipeline.executors.dask import Workers
from posttrace.pipeline.finished import asked
from posttrace.pipeline.interrupts import OutOfTime
from posttrace.pipeline.job import Job
from posttrace.pipeline.plan import declaration, fingerprint, prepare
from posttrace.pipeline.progress_bar import log_file, progress
from posttrace.pipeline.provenance import provenance
from posttrace.pipeline.scheduler import Scheduler
from posttrace.pipeline.shards import ShardScheduler, Share, check_shard
from posttrace.pipeline.study import Study, Work
from posttrace.pipeline.writer import Writer
from posttrace.stores import Lease, Store
from posttrace.tracers.models.loading import quiet_libraries, resolve_device


def run_job(
    job: Job,
    url: str,
    *,
    overrides: Sequence[str] = (),
    say: Callable[[str], None] | None = None,
    quiet: bool = False,
    log: str | os.PathLike[str] | None = None,
    workers: Workers | None = None,
    shard: tuple[int, int] | None = None,
    max_hours: float | None = None,
    device_flops: float | None = None,
) -> Store:
    """Do what is left of a job, finalise its store and return it.

    A store that holds some of the units (of the same job) is continued; units that are done are not repeated.

    Parameters
    ----------
    job
        From `load_job` or `job`.
    url
        The store: a folder or `s3://bucket/prefix`.
    overrides
        What was changed in the job, for its record.
    say
        Where lines for people go; standard error by default.
    quiet
        Say nothing and show no progress.
    log
        A file to which lines and progress are appended, with the time.
    workers
        Run the units on workers of Dask, not in this process (docs/clusters.md).
    shard
        (i, n): do it together with n - 1 other processes, each with an i of its own.
    max_hours
        After so many hours no unit is started; those that run are finished.
    device_flops
        For the estimate of time, see `estimate.Estimate`.

    Raises
    ------
    JobError, TracerError or StoreError
        What was finished by then stays.
    OutOfTime
        Units are left after `max_hours`; the same call goes on with them.

    Examples
    --------
    >>> run_job(load_job("knowledge"), "runs/knowledge")           # doctest: +SKIP
    """
    begin = time.monotonic()
    if max_hours is not None and not 0 < max_hours < math.inf:
        raise JobError(f"max_hours: {max_hours} is no time; give hours above 0, e.g. 3.5")
    check_flops(device_flops)
    if workers is not None:
        workers.check(job)
    if shard is not None:
        check_shard(shard, job, workers)
    with log_file(log) as logged:
        shown = {"quiet": quiet, "log": logged}
        deadline = math.inf if max_hours is None else begin + 3600 * max_hours
        say = _sayer(say, quiet, logged)
        return _run(job, os.fspath(url), overrides, say, shown, workers, shard, deadline, device_flops)


def _sayer(say, quiet: bool, logged):
    # One write a line, so that lines of several threads stay apart.
    say = say or (lambda line: print(f"{line}\n", end="", file=sys.stderr, flush=True))
    ways = [*([] if quiet else [say]), *([logged] if logged else [])]

    def say_all(line):
        for one in ways:
            one(line)

    return say_all


def _run(
    job: Job,
    url: str,
    overrides: Sequence[str],
    say,
    shown: Mapping[str, Any],
    workers: Workers | None,
    shard: tuple[int, int] | None,
    deadline: float,
    device_flops: float | None,
) -> Store:
    quiet_libraries()
    study = prepare(job)
    for note in study.notes():
        say(f"note: {note}")
    store = Store.create(
        url,
        study.groups,
        [w.unit for w in study.work],
        job=declaration(study),
        fingerprint=fingerprint(study),
        provenance={**provenance(_where(job), overrides), "asked": asked(job)},
    )
    with store.lease(shard=shard) as lease:
        done = store.done()
        left = [w for w in study.work if w.unit.id not in done]
        if done:
            say(
                f"{url}: {len(study.work) - len(left)} of {len(study.work)} units were done; {len(left)} to go"
            )
        else:
            say(f"{url}: {len(left)} units to do")
        if left:
            estimate = Estimate(study, study.work, url, device_flops)
            for line in estimate.of(left).lines():
                say(line)
            _do(study, left, store, lease, estimate, say, shown, workers, shard, deadline)
        if time.monotonic() >= deadline and (n := len(store.pending())):
            raise OutOfTime(f"the hours that it was given are over; {n} of {len(study.work)} units are left")
        with nullcontext() if shard is None else store.lease("finalise", wait=600):
            if shard is None or not store.progress.complete(len(store.units)):
                store.finalise()
    return store


def _do(
    study: Study,
    left: Sequence[Work],
    store: Store,
    lease: Lease,
    estimate: Estimate,
    say,
    shown,
    workers: Workers | None,
    shard: tuple[int, int] | None,
    deadline: float,
) -> None:
    costs = {unit: one.multiply_adds for unit, one in estimate.costs.items()}
    milliseconds = {work.unit.id: 1 + round(1000 * estimate.seconds(work)) for work in study.work}
    total = sum(milliseconds.values())
    done = total - sum(milliseconds[work.unit.id] for work in left)
    backend = backend_of(study, store, lease, costs, say, workers)
    with progress(total, done, **shown) as advance, Writer(store) as writer:
        told: dict[str, Any] = {
            "advance": lambda work: advance(milliseconds[work.unit.id], work.unit.id),
            "say": say,
            "may_start": lambda: time.monotonic() < deadline,
        }
        if shard is None:
            Scheduler(backend, writer, left, **told).run()
        else:
            share = Share(store, lease, study.work, costs, shard)
            ShardScheduler(backend, writer, left, share=share, **told).run()


def _where(job: Job) -> str:
    if job.execution.backend != "remote":
        return resolve_device(job.execution.device)
    from posttrace.pipeline.executors.server import runner_of

    return runner_of(job).server.host
