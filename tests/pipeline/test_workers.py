"""One job by Dask workers, processes that compute with models and write to the store: what one process would write."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
import torch

from posttrace.pipeline.errors import JobError
from posttrace.pipeline.executors.dask import AHEAD, Workers
from posttrace.pipeline.job import load_job
from posttrace.pipeline.run import run_job
from posttrace.stores import Store
from tests.support.commands import Command, posttrace, wait_for_units
from tests.support.jobs import write_job
from tests.support.stores.example import digests
from tests.support.workers import Noting, notes


@pytest.fixture(scope="module")
def expected(tmp_path_factory, small_job):
    """What one process with one thread stores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        store = run_job(load_job(str(small_job)), tmp_path_factory.mktemp("one") / "store", quiet=True)
    finally:
        torch.set_num_threads(threads)
    return digests(store)


@pytest.fixture(scope="module")
def small_job(tmp_path_factory, family, statements):
    return write_job(tmp_path_factory.mktemp("job"), family, statements)


@pytest.fixture(scope="module")
def crew(tmp_path_factory, small_job, s3_variables):
    """Address of a scheduler with two workers, a file in which they note units, and a client of them."""
    log = tmp_path_factory.mktemp("crew") / "log"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**s3_variables, "OMP_NUM_THREADS": "1"}.items():
            patch.setenv(name, value)
        client = Workers(number=2).client(load_job(str(small_job)))
        client.register_plugin(Noting(log))
        yield client.cluster.scheduler_address, log, client
        client.close()
        client.cluster.close()


@pytest.fixture
def run_on(crew, small_job):
    """Run the job on these workers; gives the store and what was noted."""
    address, log, _ = crew
    log.write_text("")

    def run(url, say=lambda line: None):
        job = load_job(str(small_job), ["dtype=float32"])
        store = run_job(job, url, say=say, workers=Workers(scheduler=address))
        assert store.progress.complete(len(store.units))
        return store, notes(log)

    return run


@pytest.mark.slow
def test_two_workers_write_what_one_process_writes(run_on, tmp_path, expected):
    store, noted = run_on(tmp_path / "store")
    assert digests(store) == expected
    units = [words[1:] for words in noted if words[0] == "unit"]
    assert sorted(name for name, _ in units) == sorted(expected)
    assert len({process for _, process in units}) == 2
    opened = [words[1] for words in noted if words[0] == "open"]
    assert set(opened) == {"base", "instruct"}  # how often depends on what takes longer, see test_dealer


@pytest.mark.slow
def test_they_write_to_s3(run_on, s3, expected):
    store, _ = run_on(s3)
    assert digests(store) == expected


@pytest.mark.slow
def test_a_killed_worker_costs_what_it_was_doing(run_on, crew, tmp_path, expected):
    _, log, _ = crew
    stored, told = [], []

    def kill():
        while len(units := [words for words in notes(log) if words[0] == "unit"]) < 6:
            time.sleep(0.02)
        stored.extend(Store.open(tmp_path / "store").done())
        os.kill(int(units[-1][2]), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    store, noted = run_on(tmp_path / "store", told.append)
    killer.join()
    assert digests(store) == expected
    times = Counter(words[1] for words in noted if words[0] == "unit")
    assert stored and all(times[unit] == 1 for unit in stored), "a stored unit was done again"
    assert sum(times.values()) <= len(expected) + AHEAD
    assert sum("is gone; others do what it had" in line for line in told) <= 1


@pytest.mark.slow
def test_a_killed_run_goes_on_by_the_same_command(small_job, tmp_path, expected):
    """Scheduler and client are one process; its worker ends with it."""
    arguments = ["run", small_job, "--store", tmp_path / "store", "--workers", "1"]
    environment = {"OMP_NUM_THREADS": "1"}
    process = Command(*arguments, env=environment)
    wait_for_units(tmp_path / "store", 2, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    store = Store.open(tmp_path / "store")
    before = store.progress.markers()
    assert 2 <= len(before) < len(expected)
    again = posttrace(*arguments, env=environment)
    assert again.returncode == 0, again.stderr
    assert f"{len(before)} of {len(expected)} units were done" in again.stderr
    after = store.progress.markers()
    assert digests(store) == expected and {unit: after[unit] for unit in before} == before


@pytest.mark.slow
def test_a_run_whose_scheduler_is_killed_goes_on_with_another(small_job, run_on, tmp_path, expected):
    python, common = [sys.executable, "-m"], ["--no-dashboard", "--scheduler-file", tmp_path / "address"]
    scheduler = subprocess.Popen(
        [*python, "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", *common],
        stderr=subprocess.DEVNULL,
    )
    worker = subprocess.Popen(
        [*python, "distributed.cli.dask_worker", "--nthreads", "1", "--no-nanny", *common],
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        while not (tmp_path / "address").exists():
            time.sleep(0.02)
        address = json.loads((tmp_path / "address").read_text())["address"]
        arguments = ["run", small_job, "--store", tmp_path / "store", "--set", "dtype=float32"]
        process = Command(*arguments, "--scheduler", address)
        wait_for_units(tmp_path / "store", 2, process)
        scheduler.kill()
        process.wait(timeout=60)
    finally:
        scheduler.kill()
        worker.kill()
    said = process.err
    assert process.returncode == 2 and "the Dask scheduler is gone" in said and "Traceback" not in said
    before = Store.open(tmp_path / "store").progress.markers()
    assert 2 <= len(before) < len(expected)
    store, _ = run_on(tmp_path / "store")
    after = store.progress.markers()
    assert digests(store) == expected and {unit: after[unit] for unit in before} == before


@pytest.mark.parametrize(
    ("options", "overrides", "why"),
    [
        ({"number": 0}, [], "--workers 0: at least 1"),
        ({"cluster": "slurm"}, [], "--cluster: how many workers"),
        ({"scheduler": "tcp://x:1", "number": 2}, [], "--scheduler: its workers are there already"),
        ({"scheduler": "tcp://x:1"}, [], "dtype: `auto` is decided by the machine that starts the run"),
        ({"number": 2}, ["execution.device=cuda:1"], "every worker would use cuda:1"),
        ({"number": 2}, ["execution.backend=remote"], "the models are on a server"),
    ],
)
def test_options_that_do_not_go_together(small_job, options, overrides, why):
    with pytest.raises(JobError, match=why):
        Workers(**options).check(load_job(str(small_job), overrides))


def test_without_dask_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr("posttrace.pipeline.executors.dask.find_spec", lambda name: None)
    with pytest.raises(JobError, match=r"pip install 'posttrace\[dask\]'"):
        Workers(number=2)
    with pytest.raises(JobError, match=r"pip install 'posttrace\[slurm\]'"):
        Workers(number=2, cluster="slurm")


def test_a_gpu_for_each_worker(small_job, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    job = load_job(str(small_job), ["execution.device=auto"])
    with pytest.raises(JobError, match="--workers 3: this machine has 2 GPUs"):
        Workers(number=3).client(job)
