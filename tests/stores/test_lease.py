"""One writer at a time, between real processes."""

from __future__ import annotations

import os
import signal
import socket
import time

import pytest

from posttrace.stores import Store, StoreBusy, StoreError
from posttrace.stores.markers import LEASES
from tests.support.stores import example
from tests.support.stores.worker import start


def leases(store: Store) -> list[str]:
    return [key for key, *_ in store.location.list(LEASES)]


def line(worker, text: str = "\n") -> str:
    worker.stdin.write(text)
    worker.stdin.flush()
    return worker.stdout.readline().strip()


def test_a_live_holder_is_named_and_a_killed_one_taken_over_at_once(url):
    store = example.make(url)
    assert leases(store) == [], "nothing is left of the lease for creating"
    worker = start("hold", url, "60")
    assert worker.stdout.readline() == "holding\n"
    with pytest.raises(StoreBusy) as caught, store.lease():
        pass
    for part in (
        url,
        f"process {worker.pid} on {socket.gethostname()}",
        "last heartbeat",
        "or use another --store",
    ):
        assert part in str(caught.value)
    worker.kill()
    worker.wait()
    assert len(leases(store)) == 1
    killed = time.monotonic()
    with store.lease():
        assert time.monotonic() - killed < 20
        example.run(store, 1)
    assert leases(store) == []


@pytest.mark.slow
def test_a_silent_holder_is_taken_over_after_expiry_and_notices(url):
    store = example.make(url)
    worker = start("hold", url, "2")
    assert worker.stdout.readline() == "holding\n"
    os.kill(worker.pid, signal.SIGSTOP)
    with store.lease(wait=20):
        os.kill(worker.pid, signal.SIGCONT)
        assert line(worker).startswith("StoreBusy: ")
        worker.wait()
        assert len(leases(store)) == 1, "the one that was late leaves the new lease alone"
        example.run(store, 1)
    assert len(store.done()) == 1


@pytest.mark.slow
def test_a_holder_that_beats_outlives_its_expiry(tmp_path):
    store = example.make(tmp_path)
    worker = start("hold", str(tmp_path), "2")
    assert worker.stdout.readline() == "holding\n"
    time.sleep(2.5)
    with pytest.raises(StoreBusy), store.lease():
        pass
    assert line(worker) == "written"
    worker.wait()
    with store.lease():
        pass


@pytest.mark.slow
def test_contenders_never_hold_together(tmp_path):
    example.make(tmp_path / "store")
    workers = [start("contend", str(tmp_path / "store"), str(tmp_path / "flag")) for _ in range(3)]
    assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * 3
    for worker in workers:
        worker.stdin.write("\n")
        worker.stdin.flush()
    assert [worker.wait() for worker in workers] == [0, 0, 0]


@pytest.mark.slow
def test_processes_that_create_and_run_together_make_one_store(url):
    workers = [start("run_without_lease", url) for _ in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    store = Store.open(url)
    assert store.pending() == []
    assert store.progress.complete(len(store.units))
    assert len(example.contents(store)) == 3


def test_shards_hold_leases_of_their_own(tmp_path):
    store = example.make(tmp_path)
    with store.lease("shard-0-of-2"), Store.open(tmp_path).lease("shard-1-of-2"):
        assert len(leases(store)) == 2


def test_lease_refuses_an_interval_that_cannot_work(tmp_path):
    with pytest.raises(StoreError, match=r"interval 60 s must be above 0 and below expiry 30 s"):
        example.make(tmp_path).lease(interval=60, expiry=30)


def test_a_lease_that_was_given_back_is_not_one_that_was_lost(tmp_path):
    store = example.make(tmp_path)
    with store.lease(interval=0.05):
        example.run(store, 1)
    time.sleep(0.3)
    example.run(store, 1)
    assert len(store.done()) == 2
