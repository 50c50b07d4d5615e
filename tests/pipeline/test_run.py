"""Units are written while others are computed, and a disk that refuses loses nothing silently."""

import threading

import numpy as np
import pytest

from posttrace.pipeline.writer import Writer
from posttrace.stores import Array, Group, Store, StoreError, Unit
from tests.pipeline.conftest import posttrace

GROUP = Group("demo", {"pair": 6}, (Array("x", ("pair",), "float32", "nats", "a number", {"pair": 2}),))
UNITS = [Unit(f"demo/{i}", "demo", {"pair": (i, i + 2)}, ("x",)) for i in (0, 2, 4)]


@pytest.fixture
def store(tmp_path):
    return Store.create(tmp_path / "s", [GROUP], UNITS, job={"study": "demo"}, fingerprint="1", provenance={})


def values(i):
    return {"x": np.full(2, i, "float32")}


def test_writing_happens_beside_the_work(store, monkeypatch):
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


def test_ctrl_c_leaves_a_resumable_store(job_file, tmp_path):
    import signal
    import subprocess
    import sys

    from tests.pipeline.test_knowledge import UNITS as N
    from tests.pipeline.test_knowledge import wait_for_units

    command = [sys.executable, "-m", "posttrace", "run", str(job_file), "--store", str(tmp_path / "store")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for_units(tmp_path / "store", 2, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "goes on from there" in said and "Traceback" not in said
    done = len(Store.open(tmp_path / "store").done())
    assert 2 <= done < N
    again = posttrace("run", job_file, "--store", tmp_path / "store")
    assert again.returncode == 0 and f"{done} of {N} units were done" in again.stderr


def test_no_interrupt_is_lost(job_file, tmp_path):
    """nnsight, weak references and destructors swallow exceptions; the signal is remembered beside them."""
    import json
    import subprocess
    import sys

    import yaml

    job = yaml.safe_load(job_file.read_text())
    job_file.write_text(yaml.safe_dump({**job, "sets": job["sets"][:1], "max_pairs": 3}))
    command = [sys.executable, "-m", "tests.pipeline.interrupted", str(job_file), str(tmp_path), "20", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    came = [run for run in runs if run["fired"]]
    assert len(runs) == 20 and len(came) >= 8, done.stderr
    assert {run["status"] for run in came} == {130}, [run for run in came if run["status"] != 130]
    assert all("goes on from there" in run["said"] for run in came)
    assert max(run["late"] for run in came) < 5
