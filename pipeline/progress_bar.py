"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager, suppress

PLAIN_EVERY = 10.0
"""Seconds between plain lines."""


@contextmanager
def progress(total: int, done: int = 0, stream=None):
    """Yield a function `advance(amount, text)` to call as work gets done.

    >>> with progress(total=10) as advance:            # doctest: +SKIP
    ...     advance(3, "cities, instruct")

    total, done: amounts of work, in any unit (multiply-adds here).
    """
    stream = stream or sys.stderr
    if stream.isatty():
        with _bar(total, done, stream) as advance:
            yield advance
    else:
        yield _Lines(total, done, stream)


@contextmanager
def _bar(total, done, stream):
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = [
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(),
        TextColumn("left  {task.description}"),
    ]
    with Progress(*columns, console=Console(file=stream)) as bar:
        task = bar.add_task("", total=total, completed=done)
        yield lambda amount, text="": bar.update(task, advance=amount, description=text)


class _Lines:
    def __init__(self, total, done, stream):
        self.total, self.done, self.stream = total, done, stream
        self.first = done
        self.start = time.monotonic()
        self.last = self.start

    def __call__(self, amount, text=""):
        self.done += amount
        now = time.monotonic()
        if now - self.last < PLAIN_EVERY and self.done < self.total:
            return
        self.last = now
        spent = now - self.start
        left = spent * (self.total - self.done) / max(self.done - self.first, 1)
        self._print(
            f"{100 * self.done / self.total:3.0f} %  {spent:.0f} s elapsed, about {left:.0f} s left  {text}"
        )

    def _print(self, line):
        with suppress(BrokenPipeError):  # nobody reads on: no reason to lose work
            print(line, file=self.stream, flush=True)
