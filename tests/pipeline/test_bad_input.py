"""Whatever is wrong with an input: one message, exit status 2, within 10 s and 1 GB, and nothing is written."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys

import pytest
import yaml

from tests.support.bad_inputs import CASES
from tests.support.jobs import good_job

SECONDS, BYTES = 10, 10**9


class Worker:
    """A process that runs commands one by one; a new one when one had to be ended."""

    process = None

    def run(self, arguments, folder):
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.bad_input_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, "PYTHONIOENCODING": "utf-8:surrogateescape"},
            )
            self.ask(["ls", "jobs"], 60)
        return self.ask(arguments, 3 * SECONDS)

    def ask(self, arguments, wait):
        self.process.stdin.write(json.dumps([str(a) for a in arguments]) + "\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], wait)[0]:
            self.end()
            pytest.fail(f"no answer within {wait} s")
        return json.loads(self.process.stdout.readline())

    def end(self):
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def worker():
    worker = Worker()
    yield worker
    worker.end()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_ends_in_one_message(name, worker, inputs, tmp_path):
    study, change, words = CASES[name]
    raw = good_job(study, inputs)
    found = change(tmp_path, raw)
    job = tmp_path / "job.yaml"
    content = found if isinstance(found, str | bytes) else yaml.safe_dump(raw)
    job.write_bytes(content if isinstance(content, bytes) else content.encode())
    arguments = [job if a == "JOB" else a for a in found] if isinstance(found, list) else []
    if not arguments or arguments[0] == "--set":
        arguments = ["run", job, *arguments]
    if arguments[0] == "run" and "--store" not in arguments:
        arguments += ["--store", tmp_path / "none"]
    done = worker.run(arguments, tmp_path)
    said = done["said"].strip()
    assert done["status"] == 2 and "Traceback" not in said, said[-3000:]
    assert words in said and said.startswith("posttrace: ") and len(said) < 6000, said[:3000]
    assert all(f"{job}: " in line for line in said.splitlines()[1:]), "one mistake, one line"
    assert done["seconds"] < SECONDS and done["peak"] < BYTES, done
    assert not (tmp_path / "none").exists()
    shutil.rmtree(tmp_path, ignore_errors=True)
