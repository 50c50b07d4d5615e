"""A loopback server over the embedded family and a random model."""

import csv
import threading
import zlib

import pytest
import torch
import yaml
from nnsight import TransformersModel

from posttrace.pipeline.embedded import CHECKPOINTS, STAGES
from posttrace.pipeline.errors import JobError
from posttrace.pipeline.job import load_job
from posttrace.pipeline.run import run_job
from posttrace.stores import Store, StoreError
from posttrace.tracers.errors import TracerError
from tests.support.models import random_module, word_tokenizer
from tests.support.remote.loopback import Loopback
from tests.support.remote.studies import run
from tests.support.remote.sweep import QUICK, values


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory):
    """A tiny model with random weights, which the server knows as posttrace/random."""
    folder = tmp_path_factory.mktemp("random")
    random_module("llama").save_pretrained(folder)
    word_tokenizer(["The", " city", " of", " is", " in", ".", " This", " statement", ":"]).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="session")
def running_server(tmp_path_factory, random_checkpoint):
    models = {f"posttrace/embedded-{stage}": CHECKPOINTS / stage for stage in STAGES}
    models["posttrace/random"] = random_checkpoint
    with Loopback(tmp_path_factory.mktemp("loopback"), models) as server:
        yield server


@pytest.fixture
def server(running_server, monkeypatch):
    """The server without faults; `server.since()` has what this test made it record."""
    running_server.clear()
    running_server.mark()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the server: other threads add up in another order
    monkeypatch.setenv("NDIF_HOST", running_server.url)
    monkeypatch.setenv("NDIF_API_KEY", running_server.key)
    yield running_server
    torch.set_num_threads(threads)
    running_server.clear()


@pytest.fixture(scope="session")
def sweep_job(tmp_path_factory, random_checkpoint):
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


@pytest.fixture(scope="session")
def sweep_values(sweep_job):
    """What the job gives without a server."""
    return values(
        run_job(load_job(str(sweep_job / "job.yaml")), str(sweep_job / "local"), say=lambda line: None)
    )


@pytest.fixture
def remotely(sweep_job, tmp_path, server, monkeypatch):
    """Run the job against the server, in this process; gives the lines that people see."""
    from nnsight import CONFIG

    monkeypatch.setattr(CONFIG.API, "HOST", server.url)
    monkeypatch.setattr(CONFIG.API, "APIKEY", server.key)

    def run(in_flight=2, **limits):
        lines = []
        overrides = ["execution.backend=remote", f"execution.in_flight={in_flight}"]
        overrides += [f"execution.remote.{name}={value}" for name, value in limits.items()]
        job = load_job(str(sweep_job / "job.yaml"), overrides)
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


@pytest.fixture(scope="session")
def model():
    return TransformersModel(
        str(CHECKPOINTS / "base"), task="text-generation", dtype=torch.float32, dispatch=True
    )


@pytest.fixture(scope="session")
def local(shared):
    """Give `local(study, *more)`: the store of a small study without a server, run once for all workers."""

    def of(study, *more):
        name = f"local-{study}-{zlib.crc32(repr(more).encode())}"
        return Store.open(shared(name, lambda folder: run(study, "local", folder / "store", *more)) / "store")

    return of


def pytest_collection_modifyitems(items):
    """Starting the server takes many seconds: `make test-fast` does without it."""
    for item in items:
        if "running_server" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
