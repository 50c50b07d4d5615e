"""Ctrl-C and SIGTERM, remembered: a library that swallows the exception does not swallow the wish."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

_asked = False


class OutOfTime(KeyboardInterrupt):
    """The hours that a run was given are over; what it finished is in the store."""


def listen() -> None:
    """From now on both signals raise KeyboardInterrupt in the main thread, and are remembered.

    Examples
    --------
    >>> listen()                                                       # doctest: +SKIP
    """
    global _asked
    _asked = False
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)


def _stop(*_) -> None:
    global _asked
    _asked = True
    raise KeyboardInterrupt


def check() -> None:
    """Raise KeyboardInterrupt if one of the signals has come, also when its own exception was lost.

    Examples
    --------
    >>> check()
    """
    if _asked:
        raise KeyboardInterrupt


@contextmanager
def noticed() -> Iterator[None]:
    """End in KeyboardInterrupt if the code within is interrupted, whatever it makes of the exception.

    nnsight only warns of one that is raised while it unwinds a trace; other code turns it into another.

    Examples
    --------
    >>> with noticed():
    ...     pass
    """
    try:
        yield
    finally:
        check()
