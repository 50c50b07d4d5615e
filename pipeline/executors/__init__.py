"""Where units run. A backend pairs an executor (`concurrent.futures`) with what does one unit there.

inline   in this process, one model resident at a time
server   threads around a server (NDIF): several requests on their way at once
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Protocol

from posttrace.pipeline.study import Study, Work
from posttrace.stores import Store


class Backend(Protocol):
    """What the scheduler asks of the place where units run."""

    pool: Executor
    slots: int
    """Units with a model that may run at once."""
    in_order: bool
    """Whether units start in the order of the plan, so that no model is opened twice."""
    fatal: tuple[type[Exception], ...]
    """Errors that end the run; other errors of a job or a model cost only their unit."""

    def do(self, work: Work) -> tuple[dict, dict[str, Any]]:
        """Do one unit, called by `pool`: arrays by name, and the record of what it took."""

    def stored(self, work: Work) -> None:
        """Note that a unit is in the store."""

    def close(self) -> None:
        """Stop what still runs and free what is held."""


def backend_of(study: Study, store: Store, say: Callable[[str], None]) -> Backend:
    """Return the backend that the job names.

    Examples
    --------
    >>> backend_of(study, store, print).slots                          # doctest: +SKIP
    1
    """
    if study.job.execution.backend == "remote":
        from posttrace.pipeline.executors.server import OnServer

        return OnServer(study, store, say)
    from posttrace.pipeline.executors.inline import InProcess

    return InProcess(study, store)
