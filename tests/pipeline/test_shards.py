"""Processes that know each other only through the store do one job: nothing twice, nothing lost."""

import signal

import pytest

from posttrace.pipeline.errors import JobError
from posttrace.pipeline.job import load_job
from posttrace.pipeline.plan import prepare
from posttrace.pipeline.run import run_job
from posttrace.pipeline.shards import parse_shard, shares
from posttrace.stores import Store, StoreBusy
from tests.support.commands import Command, posttrace, wait_for_units
from tests.support.stores.example import digests


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_a_share_is_an_even_part_of_few_stages(job_file, n):
    study = prepare(load_job(str(job_file)))
    costs = {work.unit.id: study.cost(work).multiply_adds for work in study.work}
    owner = shares(study.work, costs, n)
    assert owner.keys() == costs.keys() and set(owner.values()) == set(range(n))
    parts = [sum(cost for unit, cost in costs.items() if owner[unit] == i) for i in range(n)]
    assert max(parts) - min(parts) <= 2 * max(costs.values())
    pairs = {(work.stage, owner[work.unit.id]) for work in study.work}
    assert len(pairs) <= len(study.job.stage_names) + n - 1


@pytest.mark.slow
def test_two_shards_write_what_one_process_writes(job_file, finished, tmp_path):
    store = tmp_path / "store"
    shards = [Command("run", job_file, "--store", store, "--shard", f"{i}/2") for i in (0, 1)]
    assert [shard.wait() for shard in shards] == [0, 0], [shard.err for shard in shards]
    made, expected = Store.open(store), digests(Store.open(finished))
    assert digests(made) == expected
    assert made.progress.complete(len(made.units))
    assert not list(made.location.list(".posttrace/leases/run"))


@pytest.mark.slow
def test_what_a_dead_shard_left_is_taken_over(job_file, finished, tmp_path):
    store = tmp_path / "store"
    dead = Command("run", job_file, "--store", store, "--shard", "0/2")
    wait_for_units(store, 2, dead)
    dead.send_signal(signal.SIGKILL)
    dead.wait()
    before, expected = Store.open(store).progress.markers(), digests(Store.open(finished))
    assert 2 <= len(before) < len(expected)
    done = posttrace("run", job_file, "--store", store, "--shard", "1/2")
    assert done.returncode == 0, done.stderr
    made = Store.open(store)
    after = made.progress.markers()
    assert digests(made) == expected and {unit: after[unit] for unit in before} == before


@pytest.mark.parametrize("other", [None, (0, 3), (0, 2)])
def test_other_ways_to_run_the_job_are_kept_out(job_file, tmp_path, other):
    store, job = tmp_path / "store", load_job(str(job_file))
    with pytest.raises(KeyboardInterrupt):
        run_job(job, store, say=_interrupt)
    with (
        Store.open(store).lease(shard=(0, 2)),
        pytest.raises(StoreBusy, match=r"in use by shard 0/2, process .* shards run together if all are i/n"),
    ):
        run_job(job, store, shard=other, quiet=True)
    with Store.open(store).lease(), pytest.raises(StoreBusy, match="in use by process"):
        run_job(job, store, shard=(0, 2), quiet=True)


def _interrupt(line):
    if "units to do" in line:
        raise KeyboardInterrupt


@pytest.mark.parametrize("text", ["2/2", "1", "/2", "-1/2", "a/b", "0/0"])
def test_what_is_no_shard(text):
    with pytest.raises(JobError, match=f"--shard {text}: write i/n, with i from 0 to n - 1"):
        parse_shard(text)


def test_shards_go_with_no_server(job_file, tmp_path):
    with pytest.raises(JobError, match="--shard: the models are on a server"):
        run_job(load_job(str(job_file), ["execution.backend=remote"]), tmp_path / "store", shard=(0, 2))
