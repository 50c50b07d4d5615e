"""A run in a process of its own, for tests that kill it: python -m tests.support.stores.worker WHAT URL [ARGUMENT]"""

from __future__ import annotations

import importlib
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

from posttrace.stores import Store, StoreError
from tests.support.stores import example


def say(text: str) -> None:
    print(text, flush=True)


def run(url: str, limit: str = "") -> None:
    """Create or resume, write everything, finalise. With a limit: write that many units at most, then hang."""
    store = example.make(url)
    with store.lease(interval=0.2, expiry=5):
        say("writing")
        example.run(store, int(limit) if limit else None)
        if limit:
            time.sleep(600)
        store.finalise()


def run_without_lease(url: str) -> None:
    """The same, heedless of others that do it too."""
    store = example.make(url)
    example.run(store)
    store.finalise()


def hold(url: str, expiry: str) -> None:
    """Hold the lease until a line comes in; then try to write a unit."""
    store = Store.open(url)
    with store.lease(interval=0.2, expiry=float(expiry)):
        say("holding")
        sys.stdin.readline()
        time.sleep(0.5)  # a heartbeat at least
        try:
            example.run(store, 1)
            say("written")
        except StoreError as fault:
            say(f"{type(fault).__name__}: {fault}")


def contend(url: str, flag: str) -> None:
    """Take the lease a few times and see that nobody else has it."""
    store = Store.open(url)
    say("ready")
    sys.stdin.readline()
    for _ in range(3):
        with store.lease(wait=60):
            Path(flag).touch(exist_ok=False)
            time.sleep(0.02)
            Path(flag).unlink()


def full(url: str) -> None:
    """Run on a disk that takes no file above 40 kB."""
    store = Store.open(url)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
    try:
        example.run(store)
    except StoreError as fault:
        say(f"{type(fault).__name__}: {fault}")


def start(*arguments: str) -> subprocess.Popen:
    worker = subprocess.Popen(
        [sys.executable, "-m", "tests.support.stores.worker", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert worker.stdout.readline() == "started\n"
    return worker


if __name__ == "__main__":
    importlib.import_module("zarr")  # the slow part of starting; what follows is the run itself
    say("started")
    globals()[sys.argv[1]](*sys.argv[2:])
