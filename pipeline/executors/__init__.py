"""Where units run. A backend pairs an executor (`concurrent.futures`) with what does one unit there.

inline   in this process, one model resident at a time
server   threads around a server (NDIF): several requests on their way at once
dask     workers of Dask distributed: processes of this machine or of a cluster, a model resident in each
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, Protocol

from posttrace.pipeline.study import Study, Work
from posttrace.stores import Lease, Store

if TYPE_CHECKING:
    from posttrace.pipeline.executors.dask import Workers


class Backend(Protocol):
    """What the scheduler asks of the place where units run."""

    pool: Executor
    slots: int
    """Units with a model that may run at once."""
    in_order: bool
    """Whether units start in the order of the plan, so that no model is opened twice."""
    for_all: bool
    """Whether units without a model run in `pool`, too."""
    fatal: tuple[type[Exception], ...]
    """Errors that end the run; other errors of a job or a model cost only their unit."""

    @property
    def do(self) -> Callable[[Work], tuple[dict, dict[str, Any]] | None]:
        """Does one unit, called by `pool`: arrays by name and the record of what it took; None: it is in the store."""

    def stored(self, work: Work) -> None:
        """Note that a unit is in the store."""

    def close(self) -> None:
        """Stop what still runs and free what is held."""


def backend_of(
    study: Study,
    store: Store,
    lease: Lease,
    costs: Mapping[str, int],
    say: Callable[[str], None],
    workers: Workers | None = None,
) -> Backend:
    """Return the backend that the job names, or these workers.

    Examples
    --------
    >>> backend_of(study, store, lease, costs, print).slots            # doctest: +SKIP
    1
    """
    if workers is not None:
        from posttrace.pipeline.executors.dask import OnWorkers

        return OnWorkers(workers, study, store, lease, costs=costs, say=say)
    if study.job.execution.backend == "remote":
        from posttrace.pipeline.executors.server import OnServer

        return OnServer(study, store, say)
    from posttrace.pipeline.executors.inline import InProcess

    return InProcess(study, store)
