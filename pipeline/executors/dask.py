"""Run units on workers of Dask distributed; each keeps a model resident and is dealt units of that stage."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal

from posttrace.pipeline.errors import JobError
from posttrace.pipeline.job import Job
from posttrace.pipeline.study import Study, Work
from posttrace.tracers.errors import TracerError

if TYPE_CHECKING:
    import distributed

    from posttrace.stores import Lease, Store

DEATHS = 3
"""Workers that may die over one unit before it is given up."""
AHEAD = 2
"""Units with a model that a worker holds at once: one computes, the other is written or waits."""
THREADS = AHEAD + 1
"""Of a worker: those, and a unit without a model."""
QUIET = {"dashboard": False, "dashboard_address": ":0"}
"""Of a scheduler that we start: no dashboard, and its web server at any free port."""
EVERY = 0.5
"""Seconds between two looks at who is there."""
TIMEOUT = 10
"""Seconds in which a worker must answer."""
PATIENCE = 30.0
"""Seconds without a worker after which a line says so."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Where the workers come from.

    >>> Workers(number=2).where
    '2 workers'

    Raises JobError for options that exclude each other, and where Dask is not installed.
    """

    number: int | None = None
    """Processes of this machine, one for each GPU if it has any; with `cluster` the jobs that are submitted."""
    scheduler: str | None = None
    """Address of a Dask scheduler that runs."""
    cluster: Literal["slurm"] | None = None
    """Submit workers to it, as dask-jobqueue is configured."""

    def __post_init__(self):
        if self.scheduler is not None and (self.number, self.cluster) != (None, None):
            raise JobError("--scheduler: its workers are there already; leave --workers and --cluster out")
        if self.cluster is not None and self.number is None:
            raise JobError("--cluster: how many workers? add --workers N")
        if self.number is not None and self.number < 1:
            raise JobError(f"--workers {self.number}: at least 1")
        extra, package = ("slurm", "dask_jobqueue") if self.cluster else ("dask", "distributed")
        if find_spec(package) is None:
            raise JobError(f"workers need {package}: pip install 'posttrace[{extra}]'")

    @property
    def where(self) -> str:
        """The workers as a line of a run names them."""
        return f"the Dask cluster {self.scheduler}" if self.scheduler else f"{self.number} workers"

    def check(self, job: Job) -> None:
        """Raise JobError for a job that workers cannot do, or would do differently from machine to machine."""
        execution = job.execution
        if execution.backend == "remote":
            raise JobError(
                "execution.backend: the models are on a server, which workers would only ask more often; leave workers "
                "out, execution.in_flight says how many requests it has at a time"
            )
        if execution.device not in ("auto", "cpu", "cuda"):
            raise JobError(
                f"execution.device: every worker would use {execution.device}; leave it `auto`, each gets its own"
            )
        if job.dtype == "auto" and (self.scheduler or self.cluster):
            raise JobError(
                "dtype: `auto` is decided by the machine that starts the run, but the workers are elsewhere; say it: "
                "--set dtype=bfloat16 (or float32)"
            )

    def client(self, job: Job) -> distributed.Client:
        """Connect to the workers; those that were started for it are its `cluster`."""
        from distributed import Client

        if self.scheduler is None:
            cluster = _slurm(self.number) if self.cluster else _local(self.number or 1, job)
            return Client(cluster, set_as_default=False)
        # Dask logs a traceback when the scheduler goes away; the run ends with one line that says so.
        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
        try:
            return Client(self.scheduler, timeout="20s", set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise JobError(
                f"--scheduler {self.scheduler}: no Dask scheduler answers there ({str(error)[:200]}); check the "
                "address that `dask scheduler` printed"
            ) from None


def _local(number: int, job: Job):
    """Start a scheduler in this process, and worker processes, each with its share of the GPUs or of the cores."""
    import dask
    from distributed import Nanny, Scheduler, SpecCluster

    cards = [] if job.execution.device == "cpu" else _cards()
    if cards and number > len(cards):
        raise JobError(
            f"--workers {number}: this machine has {len(cards)} GPUs and a worker needs one of its own; at most "
            f"{len(cards)}, or --set execution.device=cpu"
        )

    class Quick(Nanny):
        """Ends its worker without waiting for the interpreter to be taken apart; what is stored is stored."""

        async def close(self, timeout=30, reason="nanny-close"):
            self.auto_restart = False
            if self.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
            return await super().close(timeout, reason)

    share = len(cards) // number
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, _cores() // number)))
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    settings = {
        # Set before a worker starts: numerical libraries look at them once.
        "distributed.nanny.pre-spawn-environ": {name: os.environ.get(name, threads) for name in names},
        "distributed.worker.daemon": True,
    }
    workers = {
        i: {
            "cls": Quick,
            "options": {
                "nthreads": THREADS,
                "memory_limit": 0,
                "preload": ["posttrace.pipeline.executors.worker"],
                "silence_logs": logging.CRITICAL,
                "env": {"CUDA_VISIBLE_DEVICES": ",".join(cards[i * share : (i + 1) * share])}
                if cards
                else {},
            },
        }
        for i in range(number)
    }
    options = {**QUIET, "host": "127.0.0.1", "port": 0, "dashboard_address": "127.0.0.1:0"}
    with dask.config.set(settings):
        return SpecCluster(
            workers=workers,
            scheduler={"cls": Scheduler, "options": options},
            silence_logs=logging.CRITICAL,
        )


def _cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cards() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    number = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return named.split(",")[:number] if named else [str(i) for i in range(number)]


def _slurm(number: int | None):
    from dask_jobqueue import SLURMCluster

    try:
        cluster = SLURMCluster(scheduler_options=QUIET, silence_logs=logging.CRITICAL)
    except ValueError as error:
        raise JobError(
            f"--cluster slurm: dask-jobqueue lacks settings ({error}); write them to ~/.config/dask/jobqueue.yaml, "
            "see docs/clusters.md"
        ) from None
    cluster.scale(jobs=number)
    return cluster


class Lost(JobError):
    """The workers cannot be reached any more, or cannot do this job at all."""


@dataclass(eq=False)
class _Task:
    fn: Callable
    work: Work
    future: Future = field(default_factory=Future)
    deaths: int = 0
    """Workers that died while they had it."""
    on_dask: Any = None

    def begin(self) -> bool:
        """Return whether the unit is still wanted; from now on its future cannot be cancelled."""
        return self.future.running() or self.future.set_running_or_notify_cancel()

    def cancel(self) -> None:
        """Take the unit back from the worker that has it."""
        dask, self.on_dask = self.on_dask, None
        if dask is not None:
            with suppress(Exception):  # of a scheduler that is gone
                dask.cancel()


@dataclass
class _Worker:
    """What the dealer knows of a worker."""

    threads: int
    stage: str | None = None
    """The stage whose model is open there, or will be when what it has is done."""
    tasks: list[_Task] = field(default_factory=list)


class Dealer(Executor):
    """Deals submitted units out to the workers that are there: one with an open model gets units of that stage.

    A worker opens the model of another stage only where nobody has it open, or where those that do need longer for what
    is left than opening takes. Units of a dead worker go to others; one that was there when `DEATHS` workers died is
    given up. `submit(fn, work)`: fn(work) runs on a worker and returns `Timing`; the future's result is None.

    Parameters
    ----------
    client
        Its workers are dealt to, also those that join later.
    cost
        Relative cost of a unit.
    say
        Where lines for people go.

    Examples
    --------
    >>> Dealer(client, cost, print).submit(do, work).result()          # doctest: +SKIP
    """

    def __init__(self, client: distributed.Client, cost: Callable[[Work], float], say: Callable[[str], None]):
        self._client, self._cost, self._say = client, cost, say
        self._workers: dict[str, _Worker] = {}
        self._queue: list[_Task] = []
        self._inbox: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        self._computed_cost = self._computed_seconds = 0.0
        """Of the units with a model that were done."""
        self._opening = 0.0
        """Seconds that opening a model took last."""
        self._lost: Exception | None = None
        self._empty_since: float | None = time.monotonic()
        """When a worker last joined; None once it was told that none is there."""
        self._thread = Thread(target=self._run, name="dealer", daemon=True)
        self._thread.start()

    def submit(self, fn, /, *args, **kwargs) -> Future:
        """Return a future that is done when the unit is in the store; see the class."""
        (work,) = args
        task = _Task(fn, work)
        self._inbox.put(("new", task))
        return task.future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Stop dealing; what workers have is taken back."""
        self._inbox.put(("stop", None))
        self._thread.join()

    def _run(self) -> None:
        looked = 0.0
        while True:
            try:
                what, about = self._inbox.get(timeout=EVERY)
            except Empty:
                what, about = "", None
            if what == "stop":
                self._take_back()
                return
            try:
                if what == "new":
                    self._queue.append(about)
                elif what == "done":
                    self._done(*about)
                if self._inbox.empty():
                    if time.monotonic() - looked >= EVERY and self._lost is None:
                        self._look()
                        looked = time.monotonic()
                    self._deal()
            except Exception as error:  # of the network, the event loop, or a client that is closing
                self._give_up(f"{type(error).__name__}: {str(error)[:200]}")

    def _look(self) -> None:
        """See who is there; units of those that are gone are dealt again."""
        if self._client.status != "running":
            raise OSError(f"the client is {self._client.status}")
        there = self._client.nthreads()
        for address in self._workers.keys() - there.keys():
            self._requeue(address)
        for address in there.keys() - self._workers.keys():
            self._workers[address] = _Worker(there[address])
            self._empty_since = time.monotonic()
        if not self._workers and time.monotonic() - (self._empty_since or time.monotonic()) > PATIENCE:
            self._say("no worker is there; waiting for one")
            self._empty_since = None

    def _requeue(self, address: str) -> None:
        tasks = self._workers.pop(address).tasks
        if tasks:
            names = ", ".join(task.work.unit.id for task in tasks)
            self._say(f"worker {address} is gone; others do what it had ({names})")
        for task in tasks:
            task.cancel()
            task.deaths += 1
            if task.deaths < DEATHS:
                self._queue.append(task)
                continue
            task.future.set_exception(
                JobError(
                    f"{DEATHS} workers died while they had this unit: out of memory, or killed by a time limit"
                )
            )

    def _deal(self) -> None:
        if self._lost is not None:
            for task in self._queue:
                if task.begin():
                    task.future.set_exception(self._lost)
            self._queue.clear()
        self._queue.sort(key=lambda task: -task.deaths)  # stable: the others stay in the order of the plan
        while (move := self._move()) is not None:
            address, task = move
            worker = self._workers[address]
            self._queue.remove(task)
            if not task.begin():
                continue
            worker.tasks.append(task)
            worker.stage = task.work.stage or worker.stage
            task.on_dask = self._client.submit(
                task.fn,
                task.work,
                key=f"{task.work.unit.id}-{os.getpid()}-{id(self):x}-{task.deaths}",
                workers=[address],
                pure=False,
            )
            self._listen(task)

    def _move(self) -> tuple[str, _Task] | None:
        """Choose the next task and a worker for it, one with the least to do."""
        for address, worker in sorted(self._workers.items(), key=lambda one: len(one[1].tasks)):
            if (task := self._pick(worker)) is not None:
                return address, task
        return None

    def _pick(self, worker: _Worker) -> _Task | None:
        """Choose what a worker gets next; a unit that was there when a worker died is alone with its worker."""
        if len(worker.tasks) >= worker.threads or any(task.deaths for task in worker.tasks):
            return None
        suspects = [task for task in self._queue if task.deaths]
        others = [task for task in self._queue if not task.deaths]
        if suspects and not worker.tasks:
            return suspects[0]
        if not any(task.work.stage is None for task in worker.tasks):
            if aside := next((task for task in others if task.work.stage is None), None):
                return aside
        ready = [task for task in others if task.work.stage is not None]
        own = [task for task in ready if task.work.stage == worker.stage]
        held = sum(task.work.stage is not None for task in worker.tasks)
        if held:  # one more in advance, unless it is better left to somebody who has nothing to do
            many = len(ready) > len(self._workers) and not suspects
            return own[0] if own and many and held < AHEAD else None
        return own[0] if own else self._of_another_stage(ready)

    def _of_another_stage(self, ready: Sequence[_Task]) -> _Task | None:
        """Choose a unit of the stage with the most to do for each worker that has it open, if opening it pays."""
        holders = Counter(worker.stage for worker in self._workers.values())
        left: dict[str | None, float] = {}
        for task in ready:
            left[task.work.stage] = left.get(task.work.stage, 0) + max(self._cost(task.work), 1)
        for stage in sorted(left, key=lambda stage: -left[stage] / (holders[stage] + 1)):
            if self._pays(left[stage], holders[stage]):
                return next(task for task in ready if task.work.stage == stage)
        return None

    def _pays(self, left: float, holders: int) -> bool:
        if not holders or not self._computed_cost:
            return True
        return left * self._computed_seconds / self._computed_cost / holders > self._opening

    def _listen(self, task: _Task) -> None:
        task.on_dask.add_done_callback(lambda dask: self._inbox.put(("done", (task, dask))))

    def _done(self, task: _Task, dask: distributed.Future) -> None:
        if task.on_dask is not dask:  # taken back meanwhile
            return
        if dask.status in ("pending", "lost"):  # its worker has died since, as the next look will show
            self._listen(task)
            return
        if dask.status == "cancelled":
            raise OSError(f"unit {task.work.unit.id} was cancelled")
        # Asked before the task is let go of: the question itself may fail.
        error = dask.exception(timeout=TIMEOUT) if dask.status == "error" else None
        task.on_dask = None
        for worker in self._workers.values():
            if task in worker.tasks:
                worker.tasks.remove(task)
        if error is not None:
            task.future.set_exception(_in_words(error))
            return
        # The unit is stored, even if its worker dies before it is asked how long it took.
        with suppress(Exception):
            self._count(task.work, dask.result(timeout=TIMEOUT))
        task.future.set_result(None)

    def _count(self, work: Work, took) -> None:
        if work.stage is not None:
            self._computed_cost += max(self._cost(work), 1)
            self._computed_seconds += took.computing
            self._opening = took.opening or self._opening

    def _give_up(self, why: str) -> None:
        """Fail what was submitted, and what will be: nothing can be dealt any more."""
        self._lost = self._lost or Lost(
            f"the Dask scheduler is gone ({why}); what was finished is kept, the same command goes on from there"
        )
        for worker in self._workers.values():
            for task in worker.tasks:
                task.on_dask = None
            self._queue += worker.tasks
        self._workers = {}

    def _take_back(self) -> None:
        for worker in self._workers.values():
            for task in worker.tasks:
                task.cancel()


def _in_words(error: BaseException) -> BaseException:
    if isinstance(error, ImportError):
        return Lost(f"a worker lacks a package ({error}); install there what is installed here")
    return error


class OnWorkers:
    """Units run on workers, which write them to the store (see `Backend`); an error of a model ends the run."""

    slots, in_order, for_all = sys.maxsize, False, True
    fatal: tuple[type[Exception], ...] = (TracerError, Lost)

    def __init__(
        self,
        workers: Workers,
        study: Study,
        store: Store,
        lease: Lease,
        *,
        costs: Mapping[str, int],
        say: Callable[[str], None],
    ):
        from posttrace.pipeline.executors.worker import RunSpec, do_unit

        run = RunSpec(
            job=study.job,
            url=str(store.location.folder or store.url),
            lease=lease.key,
            fingerprint=store.fingerprint,
        )
        self.do: Callable[[Work], Any] = partial(do_unit, run)
        say(f"units run on {workers.where}")
        self._client = workers.client(study.job)
        self.pool: Executor = Dealer(self._client, lambda work: costs[work.unit.id], say)

    def stored(self, work: Work) -> None:
        pass

    def close(self) -> None:
        self.pool.shutdown()
        with suppress(Exception):  # whatever the network or a busy machine says, the units are stored
            self._client.close()
            if self._client.cluster is not None:
                self._client.cluster.close()
