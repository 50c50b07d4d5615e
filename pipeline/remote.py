"""Do a job's units on a server: several requests on their way at once, none lost, no unit that ends the job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from typing import Any

from posttrace.pipeline import interrupts
from posttrace.pipeline.errors import JobError
from posttrace.pipeline.job import Job
from posttrace.pipeline.plan import Study, Work
from posttrace.pipeline.record import recorded
from posttrace.stores import Store
from posttrace.tracers.errors import TracerError
from posttrace.tracers.opening import resolve_dtype
from posttrace.tracers.remote.errors import Stopped, Unavailable
from posttrace.tracers.remote.model import Errand, RemoteModel, open_remote
from posttrace.tracers.remote.policy import Flight, Policy
from posttrace.tracers.remote.runner import Runner
from posttrace.tracers.remote.server import KEY_HELP, configured


def runner_of(job: Job) -> Runner:
    """What performs a job's requests, on the server that nnsight is configured with.

    >>> runner_of(job).server.host                                     # doctest: +SKIP
    'https://api.ndif.us'

    Raises Unavailable for a host that keys must not be sent to, and when there is no key.
    """
    server = configured()
    if not server.has_key:
        raise Unavailable(f"host {server.host}: there is no key; {KEY_HELP}")
    limits = job.execution.remote.model_dump()
    sizes = {
        "max_request": int(limits.pop("max_request_mb") * 2**20),
        "max_result": int(limits.pop("max_result_mb") * 2**20),
    }
    return Runner(server, Policy(**limits, **sizes), Flight(job.execution.in_flight))


def open_stage(job: Job, stage: str, runner: Runner) -> RemoteModel:
    """A stage's model on the server; its weights stay there.

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


def do_remotely(study: Study, left: Sequence[Work], store: Store, write: Callable, say: Callable) -> None:
    """Do units on the server and hand each over with `write(work, arrays, record, then)`.

    >>> do_remotely(study, study.work, store, write, print)            # doctest: +SKIP

    A unit that fails is told at once and left out, and so are those that read what it would have written; the others
    are done. Raises JobError naming the failed ones at the end, or what made the server unusable.
    """
    _Fleet(study, left, store, write, say).run()


class _Fleet:
    def __init__(self, study: Study, left: Sequence[Work], store: Store, write: Callable, say: Callable):
        self.study, self.store, self.write, self.say = study, store, write, say
        self.runner = runner_of(study.job)
        self.models: dict[str, RemoteModel] = {}
        self.waiting = list(left)
        self.under_way: dict[Future, Work] = {}
        self.open_ids = {work.unit.id for work in left}
        """Units that are neither written nor given up."""
        self.failed: dict[str, str] = {}

    def run(self) -> None:
        pool = ThreadPoolExecutor(self.study.job.execution.in_flight, thread_name_prefix="request")
        try:
            while self.waiting or self.under_way:
                self._begin(pool)
                interrupts.check()
                done, _ = wait(self.under_way, timeout=1.0, return_when=FIRST_COMPLETED)
                for future in done:
                    self._end(self.under_way.pop(future), future)
        finally:
            # Requests that are under way go on at the server; their ids are in the store.
            self.runner.flight.stop()
            self.runner.server.close()
            pool.shutdown(wait=True, cancel_futures=True)
        if self.failed:
            lines = "\n".join(f"  {unit}: {_in_short(why)}" for unit, why in self.failed.items())
            raise JobError(
                f"{len(self.failed)} units failed, the others are in the store; run the command again to try them "
                f"again\n{lines}"
            )

    def _begin(self, pool: ThreadPoolExecutor) -> None:
        """Start what can be started, in the order of the plan."""
        for work in list(self.waiting):
            if len(self.under_way) >= self.study.job.execution.in_flight:
                break
            needed = self._needed(work)
            broken = next((unit for unit in needed if unit in self.failed), None)
            if broken is not None:
                self._give_up(work, f"it reads what {broken} would have written")
                self.waiting.remove(work)
            elif not any(unit in self.open_ids for unit in needed):
                self.waiting.remove(work)
                model = None if work.stage is None else self._model(work.stage)
                self.under_way[pool.submit(self._do, work, model)] = work

    def _needed(self, work: Work) -> Sequence[str]:
        """Ids of the units whose results a unit reads: all that come before it, unless it names them."""
        if not work.reads or work.needs is not None:
            return work.needs or ()
        ids = [one.unit.id for one in self.study.work]
        return ids[: ids.index(work.unit.id)]

    def _model(self, stage: str) -> RemoteModel:
        if stage not in self.models:
            self.models[stage] = open_stage(self.study.job, stage, self.runner)
        return self.models[stage]

    def _do(self, work: Work, model: RemoteModel | None) -> tuple[dict, dict[str, Any]]:
        errand = Errand(
            notes=lambda call: self.store.requests.note(work.unit.id, call),
            report=lambda text: self.say(f"{work.unit.id}: {text}"),
        )
        arrays, record = recorded(self.study, work, model and model.on(errand), self.store)
        requests = [asdict(facts) for facts in errand.facts]
        return arrays, {**record, "requests": requests} if requests else record

    def _end(self, work: Work, future: Future) -> None:
        try:
            arrays, record = future.result()
        except (Unavailable, Stopped):
            raise
        except (TracerError, JobError) as error:
            self._give_up(work, str(error))
            return
        self.write(work, arrays, record, lambda: self.store.requests.drop(work.unit.id))
        self.open_ids.discard(work.unit.id)

    def _give_up(self, work: Work, why: str) -> None:
        self.failed[work.unit.id] = why
        self.open_ids.discard(work.unit.id)
        self.say(f"{work.unit.id}: failed: {why}")


def _in_short(why: str) -> str:
    """The first line of an explanation, and the last one, which is what a traceback says."""
    first, *others = why.strip().splitlines()
    return " ".join([first, *others[-1:]])
