"""A finished job answers at once, and only where nothing that it reads can have changed."""

import subprocess
import sys

import pytest

from posttrace.pipeline.finished import finished
from posttrace.pipeline.job import load_job
from posttrace.pipeline.run import run_job

CHANGES = [
    "stages=[base]",
    "prompts=[The city of Lyon is in]",
    "operations=[{op: read, layers: [0], tokens: last}]",
]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    url = str(tmp_path_factory.mktemp("finished") / "store")
    run_job(load_job("trace", CHANGES), url, say=lambda line: None)
    return url


def test_a_finished_job_is_recognised_and_a_changed_one_is_not(url, tmp_path):
    assert finished(load_job("trace", CHANGES), url) == 2
    assert finished(load_job("trace", [*CHANGES, "top=3"]), url) is None
    assert finished(load_job("trace", CHANGES), str(tmp_path / "none")) is None


def test_a_direction_of_another_store_may_have_changed(url, tmp_path):
    place = "{model: base, intervention: none, prompt: 0, layer: 0, token: -1}"
    steers = "operations=[{op: steer, layers: [0], tokens: last, direction: mine}]"
    direction = f"directions={{mine: {{store: {url}, array: trace/read-0/activation, at: {place}}}}}"
    job = load_job("trace", [*CHANGES, steers, direction])
    run_job(job, str(tmp_path / "store"), say=lambda line: None)
    assert finished(job, str(tmp_path / "store")) is None


def test_the_command_answers_without_torch(url):
    arguments = ["run", "trace", "--store", url, *(part for one in CHANGES for part in ("--set", one))]
    code = f"import sys; from posttrace.pipeline.cli import main\ntry: main({arguments!r})\n"
    code += "except SystemExit as end: assert not end.code\nassert not {'torch', 'transformers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "2 of 2 units were done; 0 to go" in done.stderr, done.stderr
