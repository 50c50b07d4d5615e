"""Killed at any moment, a run goes on where it stopped and ends with the same bits."""

from __future__ import annotations

import random
import subprocess
import sys
import time

import numpy as np
import pytest

from posttrace.stores import (
    Array,
    Coord,
    FingerprintMismatch,
    Group,
    Store,
    StoreError,
    Unit,
    open_group,
    verify,
)
from posttrace.stores.location import Location
from posttrace.stores.markers import LEASES, RECORD
from tests.support.stores import example
from tests.support.stores.worker import start


def sound(url: str) -> int:
    """Number of finished units, all of them verified; a store may also not be there yet."""
    place = Location(url, create=True)
    if place.size(RECORD) is None:
        with pytest.raises(StoreError, match=r"no store here|cut short"):
            Store.open(url)
        return 0
    assert verify(url) == []
    return len(Store.open(url).done())


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_same_bits(url, tmp_path):
    reference = example.make(tmp_path / "reference")
    example.run(reference)
    rng, before, kills = random.Random(url.startswith("s3")), 0, 0
    for attempt in range(40):
        # the first ones never end by themselves, however fast the machine: four kills at least
        worker = start("run", url, *(["2"] if attempt < 4 else []))
        if attempt % 2:
            worker.stdout.readline()  # past creation: kill while writing; else while creating
        # slow enough to make progress between kills, short enough to hit creation, writing and finalising
        time.sleep(
            rng.uniform(0.0, 0.25 if url.startswith("s3") else 0.08) * (1 if attempt < 8 else attempt - 6)
        )
        worker.kill()
        killed = worker.wait() != 0
        kills += killed
        done = sound(url)
        assert done >= before, "a finished unit was lost"
        before = done
        if not killed:
            break
    else:
        pytest.fail("the run never ended")
    assert kills >= 4
    store = Store.open(url)
    assert store.pending() == []
    assert example.contents(store) == example.contents(reference)


class Killed(BaseException):
    """The process ends here: nothing after it happens, not even cleaning up."""


def small(url) -> Store:
    arrays = (
        Array("x", ("pair",), "float32", "nats", "numbers", {"pair": 2}),
        Array("y", ("pair", "layer"), "float16", "nats", "stream", {"pair": 2}, "activation"),
    )
    group = Group("g", {"pair": 3, "layer": 2}, arrays, (Coord("name", ("pair",), ["a", "b", "c"]),))
    units = [Unit(f"g/{i}", "g", {"pair": (i, min(i + 2, 3))}, ("x", "y")) for i in (0, 2)]
    return Store.create(url, [group], units, {"n": 1}, "1", {})


def whole_life(url) -> None:
    store = small(url)
    with store.lease():
        for unit in store.pending():
            n = unit.region["pair"][1] - unit.region["pair"][0]
            store.write(unit, {"x": np.ones(n, "f4"), "y": np.ones((n, 2), "f2")})
    store.finalise()
    store.finalise()


@pytest.mark.slow
@pytest.mark.parametrize("act", ["before", "after"])
def test_every_step_of_creating_writing_and_finalising_may_be_the_last(tmp_path, monkeypatch, act):
    calls = limit = 0

    def guarded(method):
        def step(self, *arguments, **options):
            nonlocal calls
            calls += 1
            if calls > limit or (calls == limit and act == "before"):
                raise Killed
            result = method(self, *arguments, **options)
            if calls == limit:
                calls += 1
                raise Killed
            return result

        return step

    steps = {name: getattr(Location, name) for name in ("put", "delete", "flush", "sweep")}
    reached = set()
    for limit in range(1, 200):
        url, calls = tmp_path / str(limit), 0
        with monkeypatch.context() as patch:
            for name, method in steps.items():
                patch.setattr(Location, name, guarded(method))
            try:
                whole_life(url)
                break
            except Killed:
                pass
        place = Location(url, create=True)
        # this very process is the holder and lives on; the next run would be another one
        place.delete([key for key, *_ in place.list(LEASES)])
        reached.add(sound(url))
        whole_life(url)
        store = Store.open(url)
        assert store.pending() == []
        assert store.progress.complete(len(store.units))
        assert verify(url, unfinished=True) == []
        assert open_group(url, "g").x.values.tolist() == [1, 1, 1]
    else:
        pytest.fail("the run never ended")
    assert limit > 20
    assert reached == {0, 1, 2}


def test_leftovers_of_a_kill_are_reported_only_on_request_and_replaced(url):
    store = small(url)
    store.writing.begin("g/0")
    store.writing.begin("g/2")
    store.location.put("g/y/c/1/0", b"half a sha")
    store.location.put("g/x/c/0", b"")
    assert verify(url) == []
    found = verify(url, unfinished=True)
    assert [(p.kind, p.array, p.unit) for p in found] == [
        ("unfinished", "x", "g/0"),
        ("unfinished", "y", "g/2"),
    ]
    whole_life(url)
    assert verify(url, unfinished=True) == []


def test_staging_files_of_killed_writers_are_swept_when_finalised(tmp_path):
    store = small(tmp_path)
    chunk = tmp_path / "g/y/c/0/0#1"
    chunk.parent.mkdir(parents=True)
    chunk.write_bytes(b"half")
    whole_life(tmp_path)
    assert not chunk.exists()
    assert verify(tmp_path, unfinished=True) == []
    assert store.read("g", "x").tolist() == [1, 1, 1]


def test_a_disk_that_refuses_is_named_and_loses_nothing(tmp_path):
    arrays = (Array("x", ("pair", "hidden"), "float32", "nats", "numbers", {"pair": 1}),)
    group = Group("g", {"pair": 2, "hidden": 20_000}, arrays)
    units = [Unit(f"g/{i}", "g", {"pair": (i, i + 1)}, ("x",)) for i in range(2)]
    store = Store.create(tmp_path, [group], units, {}, "1", {})
    worker = start("full", str(tmp_path))
    text = worker.communicate(timeout=60)[0]
    assert f"StoreError: {tmp_path}/g/x: cannot write unit 'g/0': the file is larger than" in text
    assert "run again (finished units are kept)" in text
    assert store.done() == frozenset()
    example.run(store)
    assert verify(tmp_path) == []


def test_a_folder_without_permission_is_named(tmp_path):
    store = example.make(tmp_path / "s")
    code = (
        "import os, sys, stores; from tests.support.stores import example\n"
        "example.run(example.make(sys.argv[2]), 1)  # all modules are loaded while they can be read\n"
        "store = stores.Store.open(sys.argv[1])\n"
        "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "try: example.run(store, 1)\n"
        "except stores.StoreError as fault: print(fault)\n"
    )
    folders = [tmp_path / "s", *(tmp_path / "s").rglob("*/")]
    for folder in (*tmp_path.parents[:2], tmp_path):  # pytest makes these for the owner alone
        folder.chmod(0o755)
    for folder in folders:
        folder.chmod(0o555)
    command = [sys.executable, "-c", code, store.url, str(tmp_path / "other")]
    out = subprocess.run(command, capture_output=True, text=True)
    for folder in folders:
        folder.chmod(0o755)
    assert "access was denied; check the permissions of the folder" in out.stdout, out
    assert f"{tmp_path}/s/" in out.stdout
    assert store.done() == frozenset()


def test_a_creation_cut_short_makes_way_for_another_job_unless_units_are_done(url):
    store = example.make(url)
    store.location.delete([RECORD])
    whole_life(url)
    assert not [key for key, *_ in store.location.list("") if key.startswith("knowledge")]
    assert verify(url, unfinished=True) == []
    store.location.delete([RECORD])
    with pytest.raises(FingerprintMismatch, match=r"n: 1 in the store, '\(absent\)' now"):
        example.make(url)
    whole_life(url)
    assert open_group(url, "g").x.values.tolist() == [1, 1, 1]
