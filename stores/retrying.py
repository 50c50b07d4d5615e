"""Try again what an object store refuses for the moment, and obstore itself does not try again."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

TRIES = 8
PATIENCE = 30.0  # seconds after which nothing is tried again, however few tries that were
# obstore repeats what is refused with a status of 429 or from 500 on, in newer versions; these it may hand on
_PASSING = re.compile(
    r"status 4(08|29)\b|Too Many Requests|SlowDown|Throttl|"
    r"(request or response|decoding response) body|body from connection|unexpected end of file|"
    r"connection (was )?(closed|reset)|ConnectionReset|IncompleteMessage|IncompleteBody|BrokenPipe|os error 104\b",
    re.IGNORECASE,
)


def _pauses() -> Iterator[float]:
    """Seconds to wait before every further try: some 20 in all, spread so that readers come back one by one."""
    begun = time.monotonic()
    for n in range(TRIES - 1):
        if time.monotonic() - begun > PATIENCE:
            return
        yield min(6.0, 0.1 * 2**n) * random.uniform(0.5, 1.5)


def _passing(fault: BaseException) -> bool:
    return _PASSING.search(f"{type(fault).__name__}: {fault}") is not None


def steadily(call: Callable[[], T]) -> T:
    """What a call returns, tried again while a request is refused for being one too many or its body is cut off.

    >>> steadily(lambda: 7)
    7

    Raises whatever the last try raised.
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
    """The same for a coroutine, made anew for every try."""
    from obstore.exceptions import BaseError

    for pause in _pauses():
        try:
            return await call()
        except (BaseError, OSError) as fault:
            if not _passing(fault):
                raise
        await asyncio.sleep(pause)
    return await call()
