"""How long to wait for a server, and how often to try again."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass

from posttrace.tracers.remote.errors import Stopped


@dataclass(frozen=True)
class Policy:
    """Limits of one request; times in seconds.

    Examples
    --------
    >>> Policy(deadline=600).silence
    300.0
    """

    deadline: float = 3600.0
    """From submission to result, not counting the deployment of a model."""
    silence: float = 300.0
    """Without a valid answer: after that a job counts as lost and is submitted again, and a server that was sent a
    request counts as unreachable."""
    deploy: float = 1800.0
    """For a server to load a model that is not running."""
    attempts: int = 3
    """Submissions of one request: after a job was evicted, preempted or lost."""
    retries: int = 6
    """Attempts to fetch one result before it counts as lost."""
    first_wait: float = 1.0
    """Before the first retry, doubled each time, with jitter."""
    longest_wait: float = 60.0
    poll: float = 0.5
    """Between the first questions about a job; grows to `longest_poll`."""
    longest_poll: float = 10.0
    max_request: int = 64 * 2**20
    """Bytes of one request; a larger one is not sent."""
    max_result: int = 2**31
    """Bytes of one result, unpacked; a larger one is refused."""

    def wait_before(self, retry: int, asked: float | None = None) -> float:
        """Seconds before a retry (counted from 0): what the server asked for, else exponential with full jitter."""
        if asked is not None:
            return min(max(asked, 0.0), self.deadline)
        longest = min(self.longest_wait, self.first_wait * 2**retry)
        return longest * random.uniform(0.5, 1.0)


class ConcurrencyLimit:
    """Limits how many jobs a server has at a time; a server that answers "too many" halves the limit.

    Examples
    --------
    >>> concurrency = ConcurrencyLimit(4)
    >>> with concurrency:
    ...     concurrency.slow_down()
    >>> concurrency.limit
    2
    """

    def __init__(self, limit: int):
        self.limit = limit
        self._stop = threading.Event()
        self._held = 0
        self._change = threading.Condition()

    def __enter__(self) -> ConcurrencyLimit:
        with self._change:
            while self._held >= self.limit:
                self.check()
                self._change.wait(0.2)
            self._held += 1
        return self

    def __exit__(self, *_) -> None:
        with self._change:
            self._held -= 1
            self._change.notify_all()

    def slow_down(self) -> None:
        """Halve the limit, to at least one."""
        with self._change:
            self.limit = max(1, self.limit // 2)

    def stop(self) -> None:
        """End every wait, in every thread, with `Stopped`."""
        self._stop.set()

    def check(self) -> None:
        """Raise Stopped when the run is being stopped."""
        if self._stop.is_set():
            raise Stopped("stopped while waiting for the server; the same command goes on from there")

    def sleep(self, seconds: float) -> None:
        """Wait, or raise Stopped."""
        self._stop.wait(seconds)
        self.check()
