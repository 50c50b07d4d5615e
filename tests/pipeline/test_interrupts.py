"""A signal ends a run in one line, and what was done is kept."""

import json
import signal
import subprocess
import sys

import pytest
import yaml

from posttrace.stores import Store
from tests.support.commands import posttrace, wait_for_units
from tests.support.jobs import UNITS


@pytest.mark.slow
def test_ctrl_c_leaves_a_resumable_store(job_file, tmp_path):
    command = [sys.executable, "-m", "posttrace", "run", str(job_file), "--store", str(tmp_path / "store")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for_units(tmp_path / "store", 2, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "goes on from there" in said and "Traceback" not in said
    done = len(Store.open(tmp_path / "store").done())
    assert 2 <= done < UNITS
    again = posttrace("run", job_file, "--store", tmp_path / "store")
    assert again.returncode == 0 and f"{done} of {UNITS} units were done" in again.stderr


@pytest.mark.slow
def test_no_interrupt_is_lost(job_file, tmp_path):
    """nnsight, weak references and destructors swallow exceptions; the signal is remembered all the same."""
    job = yaml.safe_load(job_file.read_text())
    job_file.write_text(yaml.safe_dump({**job, "sets": job["sets"][:1], "max_pairs": 3}))
    command = [sys.executable, "-m", "tests.support.interrupted", str(job_file), str(tmp_path), "20", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    came = [run for run in runs if run["fired"]]
    assert len(runs) == 20 and len(came) >= 8, done.stderr
    assert {run["status"] for run in came} == {130}, [run for run in came if run["status"] != 130]
    assert all("goes on from there" in run["said"] for run in came)
    assert max(run["late"] for run in came) < 5
