"""Run units in this process, one after the other."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from typing import Any

from posttrace.pipeline import interrupts
from posttrace.pipeline.record import recorded
from posttrace.pipeline.study import Study, Work
from posttrace.stores import Store
from posttrace.tracers.errors import TracerError
from posttrace.tracers.models.identity import model_identity
from posttrace.tracers.models.loading import open_model


class InlineExecutor(Executor):
    """An executor that runs what is submitted at once, in the calling thread.

    >>> InlineExecutor().submit(max, 1, 2).result()
    2
    """

    def submit(self, fn, /, *args, **kwargs) -> Future:
        """Return a future that is done; KeyboardInterrupt is no result and ends the caller, too."""
        future: Future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class InProcess:
    """Units run one by one, with one model in memory; the first error ends the run (see `Backend`)."""

    slots, in_order, for_all = 1, True, False
    fatal: tuple[type[Exception], ...] = (Exception,)

    def __init__(self, study: Study, store: Store):
        self.pool: Executor = InlineExecutor()
        self._study, self._store = study, store
        self.stage: str | None = None
        """The stage whose model is open."""
        self._model = None

    def do(self, work: Work) -> tuple[dict, dict[str, Any]]:
        if work.stage is not None and work.stage != self.stage:
            self.stage = self._model = None  # let go of the old model before the next one takes its memory
            with interrupts.noticed():
                self.stage, self._model = work.stage, _open(self._study, work.stage)
        return recorded(self._study, work, self._model if work.stage else None, self._store)

    def stored(self, work: Work) -> None:
        pass

    def close(self) -> None:
        self.stage = self._model = None


def _open(study: Study, stage: str):
    job, checkpoint = study.job, study.job.family.stages[stage]
    if model_identity(checkpoint.model, checkpoint.revision) != study.stages.identities[stage]:
        raise TracerError(
            f"stage {stage}: the files of {checkpoint.model} changed while the job ran; what is in the store comes "
            "from those before: give every version a folder of its own, and run the job on it into another store"
        )
    model = open_model(
        checkpoint.model, revision=checkpoint.revision, device=job.execution.device, dtype=job.dtype
    )
    if job.execution.backend == "simulated":
        from posttrace.tracers.remote.simulated import simulated

        return simulated(model)
    return model
