"""One loop runs units here and around a server: what they need is stored first, and a failure costs what it must."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from posttrace.pipeline.errors import JobError
from posttrace.pipeline.executors.inline import InlineExecutor
from posttrace.pipeline.scheduler import Scheduler
from posttrace.pipeline.study import Work
from posttrace.pipeline.writer import Writer
from posttrace.stores import Array, Group, Store, Unit

GROUP = Group("demo", {"pair": 8}, (Array("x", ("pair",), "float32", "nats", "a number", {"pair": 2}),))
UNITS = [Unit(f"demo/{i}", "demo", {"pair": (2 * i, 2 * i + 2)}, ("x",)) for i in range(4)]


def work(i, *needs, stage="base"):
    names = tuple(f"demo/{n}" for n in needs)
    return Work(unit=UNITS[i], kind="demo", stage=stage, cells=1, needs=names)


class Backend:
    """Writes its number; some units fail. `seen`: what was in the store when a unit began."""

    for_all = False

    def __init__(self, store, pool, *, slots, in_order, fatal=(), failing=(), gate=None):
        self.store, self.pool, self.slots, self.in_order, self.fatal = store, pool, slots, in_order, fatal
        self.failing, self.gate, self.seen, self.kept, self.closed = failing, gate, {}, [], False

    def do(self, one):
        self.seen[one.unit.id] = self.store.done()
        if self.gate is not None:
            self.gate.wait(10)
        if one.unit.id in self.failing:
            raise JobError(f"{one.unit.id} is no good")
        return {"x": np.full(2, int(one.unit.id[-1]), "float32")}, {}

    def stored(self, one):
        self.kept.append(one.unit.id)

    def close(self):
        self.closed = True
        self.pool.shutdown(wait=True, cancel_futures=True)


@pytest.fixture
def store(tmp_path):
    return Store.create(tmp_path / "s", [GROUP], UNITS, job={"study": "demo"}, fingerprint="1", provenance={})


def run(store, backend, plan):
    told = []
    with Writer(store) as writer:
        Scheduler(backend, writer, plan, advance=lambda one: told.append(one.unit.id), say=told.append).run()
    return told


@pytest.mark.parametrize("in_order", [True, False])
def test_a_unit_begins_when_what_it_needs_is_stored(store, in_order):
    pool = InlineExecutor() if in_order else ThreadPoolExecutor(3)
    backend = Backend(store, pool, slots=1 if in_order else 3, in_order=in_order)
    told = run(store, backend, [work(0), work(1, 0), work(2), work(3, 1, 2)])
    assert {"demo/0"} <= backend.seen["demo/1"] and {"demo/1", "demo/2"} <= backend.seen["demo/3"]
    assert sorted(told) == sorted(backend.kept) == [unit.id for unit in UNITS] == sorted(store.done())
    assert list(backend.seen) == [unit.id for unit in UNITS] or not in_order
    assert backend.closed


def test_units_run_at_once_and_overtake_one_that_waits(store):
    gate = threading.Barrier(2)  # passed only when two units are under way at once
    backend = Backend(store, ThreadPoolExecutor(2), slots=2, in_order=False, gate=gate)
    run(store, backend, [work(0), work(1, 0), work(2, 0), work(3)])
    assert set(list(backend.seen)[:2]) == {"demo/0", "demo/3"}


@pytest.mark.parametrize("in_order", [True, False])
def test_a_unit_without_a_model_runs_while_one_computes(store, in_order):
    gate = threading.Barrier(2)
    pool = InlineExecutor() if in_order else ThreadPoolExecutor(1)
    backend = Backend(store, pool, slots=1, in_order=in_order, gate=gate)
    run(store, backend, [work(0, stage=None), work(1)])
    assert not gate.broken and store.done() == {"demo/0", "demo/1"}


def test_out_of_time_what_has_not_begun_is_taken_back(store):
    """Backends such as workers are given all that could start; the time may be over long before that is done."""
    gate = threading.Event()
    backend = Backend(store, ThreadPoolExecutor(1), slots=4, in_order=False, gate=gate)
    calls = []

    def may_start():
        calls.append(1)
        if len(calls) == 3:
            gate.set()  # until now the first unit was under way
        return len(calls) < 2

    with Writer(store) as writer:
        plan = [work(i) for i in range(4)]
        Scheduler(backend, writer, plan, advance=print, say=print, may_start=may_start).run()
    assert store.done() == set(backend.seen) == {"demo/0"}


def test_a_failure_costs_what_needs_it_and_nothing_else(store):
    backend = Backend(store, ThreadPoolExecutor(2), slots=2, in_order=False, failing={"demo/0"})
    with pytest.raises(
        JobError, match=r"(?s)2 units failed.*demo/0: .* no good.*demo/1: it reads what demo/0"
    ):
        run(store, backend, [work(0), work(1, 0), work(2), work(3, 2)])
    assert store.done() == {"demo/2", "demo/3"} and "demo/1" not in backend.seen and backend.closed


def test_a_fatal_error_ends_the_run_and_what_was_handed_over_is_written(store):
    backend = Backend(store, InlineExecutor(), slots=1, in_order=True, fatal=(Exception,), failing={"demo/2"})
    with pytest.raises(JobError, match="demo/2 is no good"):
        run(store, backend, [work(0), work(1, 0), work(2), work(3)])
    assert store.done() == {"demo/0", "demo/1"} and "demo/3" not in backend.seen and backend.closed
