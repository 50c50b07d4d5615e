"""Decide which unit starts next, and hand results to the writer: one loop, wherever the units run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait

from posttrace.pipeline import interrupts
from posttrace.pipeline.errors import JobError
from posttrace.pipeline.executors import Backend
from posttrace.pipeline.study import Work
from posttrace.pipeline.writer import Writer
from posttrace.tracers.errors import TracerError


class Scheduler:
    """Runs units on a backend; a unit starts once everything that it needs is in the store.

    >>> Scheduler(backend, writer, study.work, advance=print, say=print).run()     # doctest: +SKIP

    work: the units that are left, in the order of the plan. advance: called with each unit that was stored. say: where
    lines for people go. may_start: whether another unit may start; if not, `run` returns when those that run are done.
    """

    def __init__(
        self,
        backend: Backend,
        writer: Writer,
        work: Sequence[Work],
        *,
        advance: Callable[[Work], None],
        say: Callable[[str], None],
        may_start: Callable[[], bool] = lambda: True,
    ):
        self._may_start = may_start
        self._backend, self._writer = backend, writer
        self._advance, self._say = advance, say
        # Units without a model run on the workers, if there are any; else in a thread, while a model computes.
        self._analysis: Executor | None = None
        if not backend.for_all:
            self._analysis = ThreadPoolExecutor(1, thread_name_prefix="analysis")
        self._waiting = list(work)
        self._running: dict[Future, Work] = {}
        self._writing: dict[Future, Work] = {}
        self._unfinished = {one.unit.id for one in work}
        """Ids of units that are neither stored nor given up."""
        self._failed: dict[str, str] = {}
        """Id of a unit that was given up -> why."""

    def run(self) -> None:
        """Run every unit, or raise what ends the run; what was finished by then is written.

        A backend that tolerates failures leaves a failed unit out, and those that need it; JobError names them at the
        end. Raises TracerError, JobError, StoreError and KeyboardInterrupt.
        """
        try:
            while self._waiting or self._running or self._writing:
                interrupts.check()
                if self._may_start():
                    self._start()
                else:
                    self._withdraw()
                    if not (self._running or self._writing):
                        break
                self._collect()
        finally:
            if self._analysis is not None:
                self._analysis.shutdown(wait=True, cancel_futures=True)
            self._backend.close()
            self._keep_finished()
        if self._failed:
            lines = "\n".join(f"  {unit}: {_in_short(why)}" for unit, why in self._failed.items())
            raise JobError(
                f"{len(self._failed)} units failed, the others are in the store; run the command again to try them "
                f"again\n{lines}"
            )

    def _start(self) -> None:
        """Start what can be started, in the order of the plan."""
        in_thread = sum(self._in_thread(one) for one in self._running.values())
        free = {True: 1 - in_thread, False: self._backend.slots - len(self._running) + in_thread}
        for work in self._candidates():
            if not any(free.values()):
                return
            aside = self._in_thread(work)
            failed = next((unit for unit in work.needs if unit in self._failed), None)
            if failed is not None:
                self._waiting.remove(work)
                self._give_up(work, f"it reads what {failed} would have written")
            elif free[aside] and self._unfinished.isdisjoint(work.needs):
                free[aside] -= self._submit(work)
            elif not aside and self._backend.in_order:
                free[False] = 0  # a later unit would open another model

    def _withdraw(self) -> None:
        """Take back what the backend has not begun."""
        for future in [future for future in self._running if future.cancel()]:
            self._waiting.append(self._running.pop(future))

    def _in_thread(self, work: Work) -> bool:
        return self._analysis is not None and work.stage is None

    def _candidates(self) -> list[Work]:
        """Return the units that wait, in the order in which they are tried."""
        return list(self._waiting)

    def _submit(self, work: Work) -> bool:
        """Start a unit; return whether it was started."""
        pool = self._analysis if self._in_thread(work) else self._backend.pool
        assert pool is not None
        self._waiting.remove(work)
        self._running[pool.submit(self._backend.do, work)] = work
        return True

    def _collect(self) -> None:
        """Wait until something has finished, and deal with it."""
        if not (self._running or self._writing):
            return
        done, _ = wait([*self._running, *self._writing], timeout=1.0, return_when=FIRST_COMPLETED)
        for future in sorted(done, key=_failed):  # what ends the run comes after what is to be kept
            if future in self._running:
                self._computed(self._running.pop(future), future)
            else:
                self._stored(self._writing.pop(future), future)

    def _keep_finished(self) -> None:
        """Write what was computed while the run was ending."""
        for future, work in self._running.items():
            if future.done() and not _failed(future) and (result := future.result()) is not None:
                self._writer.write(work.unit, *result)

    def _computed(self, work: Work, future: Future) -> None:
        try:
            result = future.result()
        except self._backend.fatal:
            raise
        except (TracerError, JobError) as error:
            self._give_up(work, str(error))
            return
        if result is None:
            self._stored(work, future)
        else:
            self._writing[self._writer.write(work.unit, *result)] = work

    def _stored(self, work: Work, future: Future) -> None:
        future.result()
        self._backend.stored(work)
        self._unfinished.discard(work.unit.id)
        self._advance(work)

    def _give_up(self, work: Work, why: str) -> None:
        self._failed[work.unit.id] = why
        self._unfinished.discard(work.unit.id)
        self._say(f"{work.unit.id}: failed: {why}")


def _failed(future: Future) -> bool:
    return future.cancelled() or future.exception() is not None


def _in_short(why: str) -> str:
    """Return the first line of an explanation, and the last one, which is what a traceback says."""
    first, *others = why.strip().splitlines()
    return " ".join([first, *others[-1:]])
