"""The small job of the fault sweep, run against the loopback server and compared with a local run."""

import csv
import threading
from pathlib import Path

import numpy as np
import pytest
import yaml

from posttrace.pipeline.errors import JobError
from posttrace.pipeline.job import load_job
from posttrace.pipeline.run import run_job
from posttrace.stores import Store, StoreError
from posttrace.tracers.errors import TracerError
from tests.remote.scenarios import UNITS

QUICK = {"first_wait": 0.05, "poll": 0.02, "retries": 4, "attempts": 3, "deadline": 60}
"""Limits short enough for a sweep; each scenario may shorten one more."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, random_checkpoint):
    """A job of one stage and two pairs, a unit each: two requests for activations, two for patch grids."""
    folder = tmp_path_factory.mktemp("faults")
    with (folder / "cities.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("statement", "label"))
        for i in range(12):
            writer.writerow((f"The city of w{i} w{99 - i} is in w{i % 3 + 50}.", 1))
            writer.writerow((f"The city of w{i} w{99 - i} is in w{(i + 1) % 3 + 50}.", 0))
    stage = {"model": str(random_checkpoint), "remote_key": "posttrace/random"}
    job = {
        "study": "knowledge",
        "family": {"name": "random", "stages": {"base": stage}},
        "sets": [{"name": "cities", "csv": "cities.csv"}],
        "max_pairs": 2,
        "pairs_per_unit": 1,
        "dtype": "float32",
        "execution": {"device": "cpu", "in_flight": 2, "remote": QUICK},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    return folder


@pytest.fixture(scope="module")
def local(folder):
    """What the job gives without a server."""
    return values(run_job(load_job(str(folder / "job.yaml")), str(folder / "local"), say=lambda line: None))


@pytest.fixture
def remotely(folder, tmp_path, server, monkeypatch):
    """Run the job against the server, in this process; gives the lines that people see."""
    from nnsight import CONFIG

    monkeypatch.setattr(CONFIG.API, "HOST", server.url)
    monkeypatch.setattr(CONFIG.API, "APIKEY", server.key)

    def run(in_flight=2, **limits):
        lines = []
        overrides = ["execution.backend=remote", f"execution.in_flight={in_flight}"]
        overrides += [f"execution.remote.{name}={value}" for name, value in limits.items()]
        job = load_job(str(folder / "job.yaml"), overrides)
        ended = []

        def body():
            try:
                run_job(job, str(tmp_path / "store"), say=lines.append)
                ended.append(None)
            except (JobError, TracerError, StoreError) as error:
                ended.append(str(error))

        thread = threading.Thread(target=body, daemon=True)
        thread.start()
        thread.join(120)
        assert ended, "the run did not end within its deadlines:\n" + "\n".join(lines)
        return ended[0], lines

    return run


def values(store):
    groups = store.groups.items()
    return {f"{name}/{array.name}": store.read(name, array.name) for name, g in groups for array in g.arrays}


def check_complete(url, local, server):
    """The store equals the local one, each unit is in it once, from a job of its own; the key is nowhere."""
    store = Store.open(url)
    assert len(store.done()) == UNITS and not store.pending()
    assert list(store.location.list("_progress/requests/")) == []
    found = values(store)
    assert set(found) == set(local)
    for name, value in found.items():
        np.testing.assert_allclose(value, local[name], rtol=0, atol=1e-5, err_msg=name)
    used = [request["job"] for record in store.records().values() for request in record["requests"]]
    assert len(used) == len(set(used)) == UNITS
    assert set(used) <= accepted(server)
    assert [run["foreign"] for run in server.since("run") if run["foreign"]] == []
    files = [path.read_bytes() for path in Path(url).rglob("*") if path.is_file()]
    assert files and not any(server.key.encode() in content for content in files)


def accepted(server):
    return {post["job"] for post in server.since("post") if post["job"]}
