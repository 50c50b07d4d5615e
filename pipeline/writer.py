"""Write units to the store in the background, a bounded number ahead."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from posttrace.stores import Store


class Writer:
    """Writes units to the store while the next ones are computed; what was handed over is written or an error raised.

    One unit is written at a time and at most `AHEAD` wait, so that memory stays bounded.

    Examples
    --------
    >>> with Writer(store) as writer:                              # doctest: +SKIP
    ...     writer.write(unit, arrays, record)
    """

    AHEAD = 2

    def __init__(self, store: Store):
        self._store = store
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer")
        self._waiting: deque[Future] = deque()

    def write(self, unit, arrays, record) -> Future:
        """Hand a unit over; waits while too many are not yet written, raises what an earlier one ran into.

        The future is done once the unit is in the store; its exception is the StoreError of `Store.write`.
        """
        while len(self._waiting) >= self.AHEAD:
            self._waiting.popleft().result()
        future = self._pool.submit(self._store.write, unit, arrays, record=record)
        self._waiting.append(future)
        return future

    def wait(self) -> None:
        """Wait until everything handed over is in the store; raises StoreError as `Store.write` does."""
        while self._waiting:
            self._waiting.popleft().result()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind, error, trace) -> None:
        """Finish what was handed over, also when the work ends in an error or in Ctrl-C."""
        self._pool.shutdown(wait=True)
        if kind is None:
            self.wait()
