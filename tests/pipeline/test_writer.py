"""Units are written while others are computed, and a disk that refuses loses nothing silently."""

import threading

import numpy as np
import pytest

from posttrace.pipeline.writer import Writer
from posttrace.stores import Array, Group, Store, StoreError, Unit

GROUP = Group("demo", {"pair": 6}, (Array("x", ("pair",), "float32", "nats", "a number", {"pair": 2}),))
UNITS = [Unit(f"demo/{i}", "demo", {"pair": (i, i + 2)}, ("x",)) for i in (0, 2, 4)]


@pytest.fixture
def store(tmp_path):
    return Store.create(tmp_path / "s", [GROUP], UNITS, job={"study": "demo"}, fingerprint="1", provenance={})


def values(i):
    return {"x": np.full(2, i, "float32")}


def test_writing_happens_while_work_goes_on(store, monkeypatch):
    main, writers, gate = threading.get_ident(), set(), threading.Event()
    write = Store.write

    def watched(self, *args, **kwargs):
        writers.add(threading.get_ident())
        assert gate.wait(10)
        write(self, *args, **kwargs)

    monkeypatch.setattr(Store, "write", watched)
    with Writer(store) as writer:
        writer.write(UNITS[0], values(0), {})
        writer.write(UNITS[1], values(1), {})  # handed over although the first is not written yet
        assert store.done() == frozenset()
        gate.set()
        writer.wait()
        assert store.done() == {UNITS[0].id, UNITS[1].id}
    assert main not in writers and len(writers) == 1


def test_what_was_handed_over_is_written_when_the_work_stops(store):
    with pytest.raises(KeyboardInterrupt), Writer(store) as writer:  # noqa: PT012
        writer.write(UNITS[0], values(0), {})
        raise KeyboardInterrupt
    assert store.done() == {UNITS[0].id}


def test_an_error_of_the_store_ends_the_run(store):
    with pytest.raises(StoreError, match="writes x"), Writer(store) as writer:
        writer.write(UNITS[0], {}, {})
