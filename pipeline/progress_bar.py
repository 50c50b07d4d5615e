"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere and in a log file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from posttrace.pipeline.errors import JobError

PLAIN_EVERY = 10.0
"""Seconds between plain lines."""


Say = Callable[[str], None]


@contextmanager
def progress(total: int, done: int = 0, stream=None, *, quiet: bool = False, log: Say | None = None):
    """Yield a function `advance(amount, text)` to call as work gets done.

    >>> with progress(total=10) as advance:            # doctest: +SKIP
    ...     advance(3, "cities, instruct")

    total, done: amounts of work, in any unit (estimated milliseconds here). quiet: show nothing. log: takes plain
    lines too.
    """
    stream = stream or sys.stderr
    logged = [_Lines(total, done, log)] if log else []
    if quiet:
        yield _all(logged)
    elif stream.isatty():
        with _bar(total, done, stream) as advance:
            yield _all([advance, *logged])
    else:
        yield _all([_Lines(total, done, _printer(stream)), *logged])


@contextmanager
def log_file(path: str | os.PathLike[str] | None):
    """Yield a function that appends a line with the time to a file; None for no file.

    >>> with log_file("runs/run.log") as log:          # doctest: +SKIP
    ...     log("84 units to do")

    Raises JobError for a file that cannot be written.
    """
    if path is None:
        yield None
        return
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        stream = open(path, "a", encoding="utf-8", buffering=1)
    except OSError as error:
        raise JobError(f"--log {path}: cannot be written ({error.strerror}); choose another file") from None
    with stream:
        yield lambda line: print(
            f"{datetime.now().astimezone().isoformat(timespec='seconds')} {line}\n", end="", file=stream
        )


def _all(advances):
    def advance(amount, text=""):
        for one in advances:
            one(amount, text)

    return advance


@contextmanager
def _bar(total, done, stream):
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.table import Column

    # The bar and the description share what a narrow terminal leaves; the others keep their width.
    columns = [
        TextColumn("{task.percentage:>3.0f} %"),
        BarColumn(bar_width=None, table_column=Column(ratio=1, max_width=40)),
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(),
        TextColumn("left"),
        TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
    ]
    with Progress(*columns, console=Console(file=stream), expand=True) as bar:
        task = bar.add_task("", total=total, completed=done)
        yield lambda amount, text="": bar.update(task, advance=amount, description=text)


class _Lines:
    def __init__(self, total, done, say):
        self.total, self.done, self.say = total, done, say
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
        self.say(
            f"{100 * self.done / self.total:3.0f} %  {spent:.0f} s elapsed, about {left:.0f} s left  {text}"
        )


def _printer(stream) -> Say:
    def say(line):
        with suppress(BrokenPipeError):  # nobody reads on: no reason to lose work
            print(line, file=stream, flush=True)

    return say
