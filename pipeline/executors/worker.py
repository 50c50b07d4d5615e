"""What a worker does: prepare the job once, keep one model open, write every unit to the store itself.

Dask imports this module in each worker; nothing here knows Dask.
"""

from __future__ import annotations

import signal
import time
from contextlib import nullcontext
from dataclasses import dataclass
from threading import Lock, current_thread, main_thread

from posttrace.pipeline.executors.inline import InProcess
from posttrace.pipeline.job import Job
from posttrace.pipeline.plan import fingerprint, prepare
from posttrace.pipeline.study import Work
from posttrace.stores import Store
from posttrace.tracers.errors import TracerError
from posttrace.tracers.models.loading import quiet_libraries


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What a worker must know to do any unit of a run."""

    job: Job
    url: str
    """The store, absolute."""
    lease: str
    """Key of the run's lease; units are written as long as it is there."""
    fingerprint: str


@dataclass(frozen=True)
class Timing:
    """Seconds that a unit took, and that its model took to open (0 if it was open)."""

    computing: float
    opening: float = 0.0


_COMPUTING = Lock()  # one unit computes with a model at a time; another one may be written meanwhile
_JOINING = Lock()
_current: tuple[RunSpec, _RunState] | None = None


def do_unit(run: RunSpec, work: Work) -> Timing:
    """Do a unit and write it, unless it is done; called on a worker.

    Raises
    ------
    TracerError, JobError, StoreError
        As a run in one process; StoreBusy when the run has ended.

    Examples
    --------
    >>> do_unit(run, study.work[0])                                    # doctest: +SKIP
    Timing(computing=0.31, opening=4.2)
    """
    return _state_of(run).do(work)


def _state_of(run: RunSpec) -> _RunState:
    """Return what this process keeps for a run; drop what it kept for an earlier one."""
    global _current
    with _JOINING:
        if _current is None or _current[0] != run:
            if _current is not None:
                _current[1].close()
            _current = (run, _RunState(run))
        return _current[1]


class _RunState:
    def __init__(self, run: RunSpec):
        quiet_libraries()
        study = prepare(run.job)
        if fingerprint(study) != run.fingerprint:
            raise TracerError(
                "a worker reads other models or statements than the process that started the run; give both the same "
                "files (a shared folder, one revision) and the same posttrace"
            )
        self._store = Store.open(run.url)
        self._store.borrow(run.lease)
        self._backend = InProcess(study, self._store)

    def do(self, work: Work) -> Timing:
        with nullcontext() if work.stage is None else _COMPUTING:
            # A worker that died before it could tell may have done it.
            if self._store.progress.find(work.unit.id) is not None:
                return Timing(0)
            was, begun = self._backend.stage, time.perf_counter()
            arrays, record = self._backend.do(work)
            opening = time.perf_counter() - begun - record["seconds"]
        self._store.write(work.unit, arrays, record=record)
        return Timing(record["seconds"], 0.0 if work.stage in (None, was) else opening)

    def close(self) -> None:
        self._backend.close()


def dask_setup(worker) -> None:
    """Ctrl-C in a terminal reaches workers as well: the run stops them, they do not stop by themselves."""
    if current_thread() is main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
