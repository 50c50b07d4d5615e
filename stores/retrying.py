"""Retry requests that an object store refuses temporarily and obstore does not retry itself."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

TRIES = 8
PATIENCE = 30.0  # seconds after which nothing is retried, however few tries there were
# Newer versions of obstore retry status 429 and 500 upwards themselves; these faults may reach us.
_PASSING = re.compile(
    r"status 4(08|29)\b|Too Many Requests|SlowDown|Throttl|"
    r"(request or response|decoding response) body|body from connection|unexpected end of file|"
    r"connection (was )?(closed|reset)|ConnectionReset|IncompleteMessage|IncompleteBody|BrokenPipe|os error 104\b",
    re.IGNORECASE,
)


def _pauses() -> Iterator[float]:
    """Yield the seconds to wait before each retry: about 20 in all, jittered so that readers do not return together."""
    begun = time.monotonic()
    for n in range(TRIES - 1):
        if time.monotonic() - begun > PATIENCE:
            return
        yield min(6.0, 0.1 * 2**n) * random.uniform(0.5, 1.5)


def _passing(fault: BaseException) -> bool:
    return _PASSING.search(f"{type(fault).__name__}: {fault}") is not None


def steadily(call: Callable[[], T]) -> T:
    """Return what a call returns, retrying while requests are throttled or their bodies are cut off.

    Whatever the last try raises is raised.

    Examples
    --------
    >>> steadily(lambda: 7)
    7
    """
    from obstore.exceptions import BaseError

    for pause in _pauses():
        try:
            return call()
        except (BaseError, OSError) as fault:
            if not _passing(fault):
                raise
        time.sleep(pause)
    return call()


async def steadily_async(call: Callable[[], Awaitable[T]]) -> T:
    """Do the same for a coroutine, created anew for each try."""
    from obstore.exceptions import BaseError

    for pause in _pauses():
        try:
            return await call()
        except (BaseError, OSError) as fault:
            if not _passing(fault):
                raise
        await asyncio.sleep(pause)
    return await call()
