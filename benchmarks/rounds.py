"""Worker processes that take turns (A B C ... A B C ...), so that a busy machine affects all of them alike."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from dataclasses import asdict, dataclass, field

from benchmarks.methods import Load
from benchmarks.peers import ROOT, python_of
from benchmarks.shapes import Task


class Unavailable(Exception):
    """A method cannot run here; the message says why."""


class Worker:
    """A process that runs one method."""

    def __init__(self, method: str, log):
        python = python_of(method)
        if python is None:
            raise Unavailable("its environment is not installed; run python -m benchmarks.peers install")
        # A tool's environment must not see the packages of the current one.
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        self.method = method
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=ROOT,
            env=environment,
        )

    def send(self, do: str, **request) -> None:
        self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
        self.process.stdin.flush()

    def receive(self) -> dict:
        line = self.process.stdout.readline()
        reply = (
            json.loads(line) if line else {"error": f"its process ended with status {self.process.wait()}"}
        )
        if "error" in reply:
            raise Unavailable(reply["error"])
        return reply

    def ask(self, do: str, **request) -> dict:
        self.send(do, **request)
        return self.receive()

    def load(self, what: Load, threads: int) -> None:
        """Start loading; `receive` gives the versions."""
        self.send("load", method=self.method, load=asdict(what), threads=threads)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@dataclass
class Entry:
    """A method on a task, and its measurements."""

    name: str
    method: str
    task: Task
    cells: list[tuple[int, int, int]]
    """The cells that one run computes."""
    worker: Worker | None = None
    unavailable: str | None = None
    versions: dict = field(default_factory=dict)
    logits: list[float] = field(default_factory=list)
    """Unpatched, at the end of the first corrupt prompt; they show whether the weights are the same."""
    values: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    """Of all threads together; less sensitive to other processes on the same cores."""
    rates: list[dict[str, float]] = field(default_factory=list)
    """Multiply-adds of large matrix products per second and per CPU second, measured just before."""
    memory: dict = field(default_factory=dict)
    count: bool = True
    """Whether to count the multiply-adds really executed, in one more run."""
    multiply_adds: int | None = None


def measure(entries: list[Entry], what: Load, *, rounds: int, threads: int, log, say) -> None:
    """Fill the entries: each runs once untimed, then `rounds` times in turns; failing ones are marked unavailable."""
    try:
        for entry in entries:
            with _noting(entry):
                entry.worker = Worker(entry.method, log)
                entry.worker.load(what, threads)
        for entry in _ready(entries):
            with _noting(entry):
                entry.versions = entry.worker.receive()["versions"]
        for entry in _ready(entries):
            with _noting(entry):
                entry.logits = entry.worker.ask("logits", ids=entry.task.corrupt[0])["logits"]
                entry.worker.ask("prepare", task=asdict(entry.task))
                entry.values = entry.worker.ask("run", cells=entry.cells)["values"]
        for turn in range(rounds):
            for entry in _ready(entries):
                with _noting(entry):
                    entry.rates.append(entry.worker.ask("rate"))
                    reply = entry.worker.ask("run", cells=entry.cells)
                    entry.seconds.append(reply["seconds"])
                    entry.cpu_seconds.append(reply["cpu_seconds"])
            say(f"round {turn + 1} of {rounds}")
        for entry in _ready(entries):
            with _noting(entry):
                entry.memory = entry.worker.ask("memory")
                if entry.count:
                    entry.multiply_adds = entry.worker.ask("count", cells=entry.cells)["multiply_adds"]
    finally:
        for entry in entries:
            if entry.worker is not None:
                entry.worker.close()


def ratio(slow: Entry, fast: Entry, what: str = "seconds") -> float:
    """Return how many times longer a cell of `slow` takes: the median over rounds.

    Examples
    --------
    >>> a = Entry("a", "", None, [(0, 0, 0)], seconds=[4.0, 8.0, 4.0])
    >>> ratio(a, Entry("b", "", None, [(0, 0, 0)] * 2, seconds=[2.0, 2.0, 2.0]))
    4.0
    """
    turns = zip(getattr(slow, what), getattr(fast, what), strict=True)
    return statistics.median((a / len(slow.cells)) / (b / len(fast.cells)) for a, b in turns)


class _noting:
    """Record why an entry cannot continue."""

    def __init__(self, entry: Entry):
        self.entry = entry

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _traceback):
        if isinstance(error, Unavailable | BrokenPipeError):
            self.entry.unavailable = str(error)
            return True
        return False


def _ready(entries: list[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry.unavailable is None]
