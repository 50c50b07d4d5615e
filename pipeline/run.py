"""Run a job: do every unit that the store does not have yet."""

from __future__ import annotations

import sys
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from posttrace.pipeline import interrupts
from posttrace.pipeline.job import Job
from posttrace.pipeline.plan import Study, declaration, fingerprint, prepare
from posttrace.pipeline.progress import progress
from posttrace.pipeline.provenance import provenance
from posttrace.pipeline.record import recorded
from posttrace.stores import Store
from posttrace.tracers.cost import Cost
from posttrace.tracers.opening import open_model, quiet_libraries, resolve_device


def run_job(job: Job, url: str, *, overrides=(), say=None) -> Store:
    """Do what is left of a job and finalise its store.

    >>> run_job(load_job("knowledge"), "runs/knowledge")           # doctest: +SKIP

    A store that holds some of the units (of the same job) is continued; units that are done are not repeated.
    say: where lines for people go, standard error by default. Raises JobError, TracerError or
    StoreError; what was finished by then stays.
    """
    # One write a line, so that lines of several threads stay apart.
    say = say or (lambda line: print(f"{line}\n", end="", file=sys.stderr, flush=True))
    quiet_libraries()
    study = prepare(job)
    store = Store.create(
        url,
        study.groups,
        [w.unit for w in study.work],
        job=declaration(study),
        fingerprint=fingerprint(study),
        provenance=provenance(_where(job), overrides),
    )
    with store.lease():
        done = store.done()
        left = [w for w in study.work if w.unit.id not in done]
        if done:
            say(
                f"{url}: {len(study.work) - len(left)} of {len(study.work)} units were done; {len(left)} to go"
            )
        else:
            say(f"{url}: {len(left)} units to do")
        costs = {w.unit.id: study.cost(w) for w in study.work}
        cost = sum((costs[w.unit.id] for w in left), Cost())
        cells = sum(w.cells for w in left)
        say(f"{cells:,} cells in {cost.forwards:,} forward passes, {cost.multiply_adds:.2e} multiply-adds")
        _do(study, left, store, {unit: one.multiply_adds for unit, one in costs.items()}, say)
        store.finalise()
    return store


def _do(study: Study, left, store: Store, costs: dict[str, int], say) -> None:
    total = sum(costs.values())
    with progress(total, total - sum(costs[w.unit.id] for w in left)) as advance, Writer(store) as writer:
        if study.job.execution.backend == "remote":
            from posttrace.pipeline.remote import do_remotely

            def write(work, arrays, record, then):
                writer.write(work.unit, arrays, record, then)
                writer.wait()
                advance(costs[work.unit.id], work.unit.id)

            do_remotely(study, left, store, write, say)
            return
        stage, model = None, None
        for work in left:
            interrupts.check()
            if work.stage not in (None, stage):
                model = None  # let go of the old model before the next one takes its memory
                with interrupts.noticed():
                    stage, model = work.stage, _open(study.job, work.stage)
            if work.reads:
                writer.wait()
            arrays, record = recorded(study, work, model if work.stage else None, store)
            writer.write(work.unit, arrays, record)
            advance(costs[work.unit.id], work.unit.id)


class Writer:
    """Writes units to the store while the next ones are computed; what was handed over is written or an error raised.

    >>> with Writer(store) as writer:                              # doctest: +SKIP
    ...     writer.write(unit, arrays, record)

    One unit is written at a time and at most `AHEAD` wait, so that memory stays bounded.
    """

    AHEAD = 2

    def __init__(self, store: Store):
        self._store = store
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer")
        self._waiting: deque[Future] = deque()

    def write(self, unit, arrays, record, then=lambda: None) -> None:
        """Hand a unit over; waits while too many are not yet written, raises what an earlier one ran into.

        then: called once the unit is in the store.
        """
        while len(self._waiting) >= self.AHEAD:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._write, unit, arrays, record, then))

    def _write(self, unit, arrays, record, then) -> None:
        self._store.write(unit, arrays, record=record)
        then()

    def wait(self) -> None:
        """Until everything handed over is in the store; raises StoreError as `Store.write` does."""
        while self._waiting:
            self._waiting.popleft().result()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind, error, trace) -> None:
        """Finish what was handed over, also when the work ends in an error or in Ctrl-C."""
        self._pool.shutdown(wait=True)
        if kind is None:
            self.wait()


def _open(job: Job, stage: str):
    checkpoint = job.family.stages[stage]
    model = open_model(
        checkpoint.model, revision=checkpoint.revision, device=job.execution.device, dtype=job.dtype
    )
    if job.execution.backend == "simulated":
        from posttrace.tracers.remote.simulated import simulated

        return simulated(model)
    return model


def _where(job: Job) -> str:
    if job.execution.backend != "remote":
        return resolve_device(job.execution.device)
    from posttrace.pipeline.remote import runner_of

    return runner_of(job).server.host
