"""Run units on a server: several requests on their way at once, none lost, no unit that ends the job."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict
from threading import Lock
from typing import Any

from posttrace.pipeline.job import Job
from posttrace.pipeline.record import recorded
from posttrace.pipeline.study import Study, Work
from posttrace.stores import Store
from posttrace.tracers.models.loading import resolve_dtype
from posttrace.tracers.remote.errors import Stopped, Unavailable
from posttrace.tracers.remote.model import RemoteModel, RequestContext, open_remote
from posttrace.tracers.remote.policy import ConcurrencyLimit, Policy
from posttrace.tracers.remote.runner import Runner
from posttrace.tracers.remote.server import KEY_HELP, configured


def runner_of(job: Job) -> Runner:
    """Return what performs a job's requests, on the server that nnsight is configured with.

    Raises
    ------
    Unavailable
        A host that keys must not be sent to, and when there is no key.

    Examples
    --------
    >>> runner_of(job).server.host                                     # doctest: +SKIP
    'https://api.ndif.us'
    """
    server = configured()
    if not server.has_key:
        raise Unavailable(f"host {server.host}: there is no key; {KEY_HELP}")
    limits = job.execution.remote.model_dump()
    sizes = {
        "max_request": int(limits.pop("max_request_mb") * 2**20),
        "max_result": int(limits.pop("max_result_mb") * 2**20),
    }
    return Runner(server, Policy(**limits, **sizes), ConcurrencyLimit(job.execution.in_flight))


def open_stage(job: Job, stage: str, runner: Runner) -> RemoteModel:
    """Return a stage's model on the server; its weights stay there.

    Examples
    --------
    >>> open_stage(job, "base", runner).n_layers                       # doctest: +SKIP
    8
    """
    checkpoint = job.family.stages[stage]
    return open_remote(
        checkpoint.model,
        revision=checkpoint.revision,
        key=checkpoint.remote_key,
        dtype=resolve_dtype(job.dtype, "cpu", checkpoint.model, checkpoint.revision),
        runner=runner,
    )


class OnServer:
    """Units run in threads that wait for a server (see `Backend`).

    A unit that fails is told at once and left out. What makes the server unusable ends the run: requests that are under
    way go on there, and their ids are in the store.
    """

    in_order = for_all = False
    fatal: tuple[type[Exception], ...] = (Unavailable, Stopped)

    def __init__(self, study: Study, store: Store, say: Callable[[str], None]):
        self.slots = study.job.execution.in_flight
        self.pool: Executor = ThreadPoolExecutor(self.slots, thread_name_prefix="request")
        self._study, self._store, self._say = study, store, say
        self._runner = runner_of(study.job)
        self._models: dict[str, RemoteModel] = {}
        self._opening = Lock()

    def do(self, work: Work) -> tuple[dict, dict[str, Any]]:
        context = RequestContext(
            notes=lambda call: self._store.requests.note(work.unit.id, call),
            report=lambda text: self._say(f"{work.unit.id}: {text}"),
        )
        model = None if work.stage is None else self._model(work.stage).on(context)
        arrays, record = recorded(self._study, work, model, self._store)
        requests = [asdict(facts) for facts in context.facts]
        return arrays, {**record, "requests": requests} if requests else record

    def stored(self, work: Work) -> None:
        self._store.requests.drop(work.unit.id)

    def close(self) -> None:
        self._runner.concurrency.stop()
        self._runner.server.close()
        self.pool.shutdown(wait=True, cancel_futures=True)

    def _model(self, stage: str) -> RemoteModel:
        with self._opening:
            if stage not in self._models:
                self._models[stage] = open_stage(self._study.job, stage, self._runner)
            return self._models[stage]
