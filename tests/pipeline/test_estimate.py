"""A job says what it will take before it begins, and stops in time."""

import math
import re
from itertools import count
from types import SimpleNamespace

import pytest

from posttrace.pipeline import estimate
from posttrace.pipeline.errors import JobError
from posttrace.pipeline.estimate import Estimate
from posttrace.pipeline.interrupts import OutOfTime
from posttrace.pipeline.job import load_job
from posttrace.pipeline.plan import prepare
from posttrace.pipeline.run import run_job
from posttrace.stores import Store, open_group
from tests.support.commands import posttrace
from tests.support.jobs import UNITS


@pytest.fixture
def study(job_file):
    return prepare(load_job(str(job_file)))


def lines(some):
    return dict(re.split(r" {2,}", line, maxsplit=1) for line in some.lines())


def test_every_line_is_one_aligned_sum(study, tmp_path):
    said = list(Estimate(study, study.work, str(tmp_path / "s")).lines())
    assert [line.split()[0] for line in said] == ["time", "memory", "models", "download", "store"]
    assert {re.match(r".{15} (?=\S)", line) is not None for line in said} == {True}
    about = lines(Estimate(study, study.work, str(tmp_path / "s")))
    assert "measured on cpu in float32" in about["time"] and about["download"] == "nothing"
    # base and instruct are read, then patched, instruct first since it is open.
    assert about["models"] == "opened 3 times (base, instruct), one at a time"


@pytest.mark.slow
def test_the_store_is_as_large_as_its_arrays(study, finished):
    held = sum(
        array.nbytes
        for path in ("knowledge/cities", "knowledge/free")
        for array in open_group(str(finished), path).load().data_vars.values()
        if {"source", "target"} & set(array.dims)
    )
    planned = sum(study.unit_sizes.values())
    assert planned == held


def test_what_is_done_counts_no_more(study, tmp_path):
    whole = Estimate(study, study.work, str(tmp_path))
    rest = whole.of(study.work[-3:])
    assert rest.loads == 1 < whole.loads
    assert sum(map(rest.seconds, rest.work)) < sum(map(whole.seconds, whole.work))


def test_another_device_takes_as_long_as_its_speed_says(study, tmp_path, monkeypatch):
    monkeypatch.setattr(estimate, "SECONDS_OF_A_PASS", 0)
    slow, fast = (Estimate(study, study.work, "x", device_flops=flops) for flops in (1e9, 1e12))
    for one in study.work:
        assert slow.seconds(one) == pytest.approx(1000 * fast.seconds(one))
    assert "5.0e+11 a second, by --device-flops" in lines(fast)["time"]
    assert {"device memory", "host memory"} < set(lines(fast)), "the CPU here says nothing about the device"
    for flops in (0, -1, math.nan, 1e30):
        with pytest.raises(JobError, match=r"device_flops: .* give operations a second"):
            Estimate(study, study.work, "x", device_flops=flops)


def test_too_little_memory_or_disk_is_said(study, tmp_path, monkeypatch):
    monkeypatch.setattr(estimate, "free_host_memory", lambda: 10**6)
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda path: type("Free", (), {"free": 1000}))
    about = lines(Estimate(study, study.work, str(tmp_path / "s")))
    assert about["memory"].endswith("1.0 MB free - TOO LITTLE")
    assert about["store"].endswith("1 kB free - TOO LITTLE")


def test_analysis_takes_time_of_the_cpu(tmp_path):
    study = prepare(load_job("truthfulness", ["max_statements=20", "stages=[base]"]))
    some = Estimate(study, study.work, "x", device_flops=1e15)
    fits = [one for one in study.work if one.kind == "fit"]
    assert all(some.costs[one.unit.id].multiply_adds > 0 for one in fits)
    assert sum(map(some.seconds, fits)) > 0
    assert some.seconds(fits[0]) == some.costs[fits[0].unit.id].multiply_adds / some.cpu_rate


@pytest.mark.slow
def test_a_run_that_is_out_of_time_goes_on_later(job_file, tmp_path, monkeypatch):
    from posttrace.pipeline import run

    asked = count()
    clock = SimpleNamespace(monotonic=lambda: 0.0 if next(asked) < 7 else 3600.0)
    monkeypatch.setattr(run, "time", clock)
    with pytest.raises(OutOfTime, match=f"of {UNITS} units are left"):
        run_job(load_job(str(job_file)), str(tmp_path / "s"), quiet=True, max_hours=1)
    monkeypatch.undo()
    n = len(Store.open(tmp_path / "s").done())
    assert 0 < n < UNITS
    said = []
    run_job(load_job(str(job_file)), str(tmp_path / "s"), say=said.append, max_hours=100)
    assert f"{n} of {UNITS} units were done" in said[0]
    assert not Store.open(tmp_path / "s").pending()


def test_the_command_line_says_that_time_is_over(job_file, tmp_path):
    out = posttrace("run", job_file, "--store", tmp_path / "s", "--max-hours", "0.0000001")
    assert out.returncode == 75, out.stderr
    assert f"{UNITS} of {UNITS} units are left; the same command goes on from there" in out.stderr
    wrong = posttrace("run", job_file, "--store", tmp_path / "s", "--max-hours", "-1")
    assert wrong.returncode == 2 and "give hours above 0" in wrong.stderr


def test_check_says_what_a_job_takes(job_file):
    done = posttrace("check", job_file)
    assert done.returncode == 0
    assert re.search(r"^ok +store +up to \d+ kB", done.stdout, re.MULTILINE), done.stdout
