"""Units are dealt to real Dask workers by stage; a dead worker's go to others, and a unit that kills them is named."""

import subprocess
import sys
import time
from functools import partial

import distributed
import pytest

from posttrace.pipeline.errors import JobError
from posttrace.pipeline.executors.dask import DEATHS, Dealer, Lost
from tests.support.workers import OPENING, deadly, notes, unit, work

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client():
    settings = dict(n_workers=2, threads_per_worker=3, dashboard_address=None, memory_limit=0)
    with (
        distributed.LocalCluster(**settings, silence_logs="CRITICAL") as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture
def told():
    return []


@pytest.fixture
def dealer(client, told):
    dealer = Dealer(client, lambda work: 1, told.append)
    yield dealer
    dealer.shutdown()


def test_no_model_is_opened_twice_where_that_takes_longer_than_the_units(dealer, tmp_path):
    units = [work(f"{stage}/{i}", stage) for stage in ("base", "sft") for i in range(15)]
    assert 15 * 0.01 < OPENING
    futures = [dealer.submit(partial(unit, tmp_path / "log"), one) for one in units]
    assert [future.result(60) for future in futures] == [None] * 30
    opened = [words[1] for words in notes(tmp_path / "log") if words[0] == "open"]
    assert sorted(opened) == ["base", "sft"]


def test_workers_share_a_stage_that_takes_longer_and_units_without_a_model(dealer, tmp_path):
    units = [work(f"instruct/{i}", "instruct") for i in range(150)] + [work(f"{i}", None) for i in range(20)]
    futures = [dealer.submit(partial(unit, tmp_path / "log"), one) for one in units]
    for future in futures:
        future.result(60)
    done = [words[1:] for words in notes(tmp_path / "log") if words[0] == "unit"]
    assert sorted(name for name, _ in done) == sorted(one.unit.id for one in units), "lost, or done twice"
    for kind in ("instruct/", ""):
        assert len({process for name, process in done if name.startswith(kind)}) == 2


def test_what_no_worker_has_begun_can_be_taken_back(dealer, tmp_path):
    units = [work(f"{i}", "base") for i in range(60)]
    futures = [dealer.submit(partial(unit, tmp_path / "log"), one) for one in units]
    futures[0].result(60)
    back = {one.unit.id for one, future in zip(units, futures, strict=True) if future.cancel()}
    assert back
    for future in futures:
        assert future.cancelled() or future.result(60) is None
    done = {words[1] for words in notes(tmp_path / "log") if words[0] == "unit"}
    assert done == {one.unit.id for one in units} - back


def test_a_unit_that_kills_its_workers_is_given_up_and_nothing_else(dealer, told, tmp_path):
    units = [work(f"{i}", "base") for i in range(6)] + [work("deadly", "base"), work("last", None)]
    futures = {one.unit.id: dealer.submit(partial(deadly, tmp_path / "log"), one) for one in units}
    with pytest.raises(JobError, match=f"{DEATHS} workers died while they had this unit"):
        futures.pop("deadly").result(120)
    for future in futures.values():
        future.result(60)
    assert sum("is gone; others do what it had" in line and "deadly" in line for line in told) == DEATHS


def test_without_its_scheduler_a_run_ends(told, tmp_path):
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard"]
    file = tmp_path / "scheduler.json"
    process = subprocess.Popen([*command, "--scheduler-file", file], stderr=subprocess.DEVNULL)
    try:
        while not file.exists():
            assert process.poll() is None
            time.sleep(0.05)
        client = distributed.Client(scheduler_file=str(file), set_as_default=False)
        dealer = Dealer(client, lambda work: 1, told.append)
        assert dealer.submit(partial(unit, tmp_path / "log"), work("taken back", "base")).cancel()
        waiting = dealer.submit(partial(unit, tmp_path / "log"), work("0", "base"))
        with pytest.raises(TimeoutError):  # nobody is there yet
            waiting.result(1)
    finally:
        process.kill()
        process.wait()
    with pytest.raises(Lost, match=r"the Dask scheduler is gone .* the same command goes on"):
        waiting.result(120)
    with pytest.raises(Lost):
        dealer.submit(partial(unit, tmp_path / "log"), work("1", "base")).result(30)
    dealer.shutdown()
    client.close()
