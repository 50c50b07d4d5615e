"""Runs through a server that misbehaves in every way: the right store or a clear error, nothing lost, nothing twice."""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path

import pytest

from posttrace.pipeline.job import load_job
from posttrace.pipeline.run import run_job
from posttrace.stores import Store
from posttrace.tracers.remote.errors import Unavailable
from tests.support.remote.scenarios import SCENARIOS, table
from tests.support.remote.server.faults import OF_JOBS, OF_REQUESTS
from tests.support.remote.sweep import accepted, check_complete

DOCUMENT = Path(__file__).parents[2] / "docs" / "remote.md"
BEGIN, END = "<!-- faults: begin, written by tests/remote/test_faults.py -->\n", "<!-- faults: end -->"


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_scenario(scenario, server, remotely, sweep_values, tmp_path):
    for fault in scenario.arm:
        server.fault(**fault)
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(remotely, scenario.in_flight, **scenario.limits)
        if scenario.restart is not None:
            server.wait_for("poll", status="RUNNING")
            server.restart(**scenario.restart)
            server.release()
        error, lines = run.result()
    shown = "\n".join(lines)
    assert re.search(scenario.shows, shown), shown
    if scenario.fails is None:
        assert error is None, error
    else:
        assert error and re.search(scenario.fails, error), error
        assert server.key not in error
        assert len(Store.open(tmp_path / "store").done()) == scenario.stored
        server.clear()
        server.settle()
        again, lines = remotely(**{k: v for k, v in scenario.limits.items() if k == "silence"})
        assert again is None, again
        shown += "\n".join(lines)
    check_complete(tmp_path / "store", sweep_values, server)
    assert len(accepted(server)) == scenario.jobs, shown


@pytest.mark.slow
def test_a_dtype_that_the_server_does_not_hold_ends_the_run_at_once(server, sweep_job, tmp_path):
    overrides = ["execution.backend=remote", "execution.in_flight=1", "dtype=bfloat16"]
    with pytest.raises(Unavailable, match=r"holds it in torch.float32.* set dtype=float32"):
        run_job(
            load_job(str(sweep_job / "job.yaml"), overrides), str(tmp_path / "store"), say=lambda line: None
        )
    assert len(server.since("post")) == 1


def test_the_sweep_has_every_fault_that_the_server_knows():
    armed = [fault for scenario in SCENARIOS for fault in scenario.arm]
    assert {fault["kind"] for fault in armed} == {*OF_REQUESTS, *OF_JOBS}
    for kind, option in (("result", "how"), ("fail", "why")):
        words = {fault[option] for fault in armed if fault["kind"] == kind}
        assert all(word in OF_JOBS[kind] for word in words) and len(words) == OF_JOBS[kind].count(",") + 1
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS) >= 20


@pytest.mark.slow
def test_a_job_is_asked_for_again_after_its_deadline_and_given_up_after_two(
    server, remotely, sweep_values, tmp_path
):
    server.fault("hold", times=1, at="QUEUED")
    for _ in range(2):
        error, lines = remotely(in_flight=1, deadline=4.0)
        assert re.search(r"is queued .* after 4 s", error)
    assert any("submitted earlier" in line for line in lines)
    before = len(accepted(server))
    server.clear()  # the held job stays held
    error, _ = remotely()
    assert error is None, error
    assert len(accepted(server)) <= before + 1 + 2, "the stuck job and what it kept back"
    server.release()
    server.settle()
    store = Store.open(tmp_path / "store")
    assert not store.pending()


def test_no_more_jobs_are_under_way_than_the_job_allows(server, remotely):
    server.fault("hold", times=None, at="QUEUED", seconds=0.3)
    error, _ = remotely(in_flight=2)
    assert error is None, error
    changes = [(post["time"], 1) for post in server.since("post")]
    changes += [(said["time"], -1) for said in server.since("status") if said["status"] == "COMPLETED"]
    under_way = list(accumulate(change for _, change in sorted(changes)))
    assert max(under_way) == 2


def test_the_table_in_the_documentation_is_that_of_the_sweep():
    text = DOCUMENT.read_text()
    before, found, rest = text.partition(BEGIN)
    written, end, after = rest.partition(END)
    assert found and end, f"{DOCUMENT} lacks the marks {BEGIN!r} and {END!r}"
    if os.environ.get("WRITE_FAULT_TABLE"):
        DOCUMENT.write_text(before + BEGIN + table() + END + after)
        written = table()
    assert written == table(), (
        "docs/remote.md is stale: WRITE_FAULT_TABLE=1 pytest tests/remote/test_faults.py -k table"
    )
