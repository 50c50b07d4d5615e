"""Every fault that a test can arm does what it says, seen by a bare HTTP client."""

import io
import json
import time

import httpx
import nnsight
import pytest
import torch
import zstandard
from nnsight.schema.request import RequestModel
from nnsight.tracing.backend import Backend

from tests.support.remote.loopback import BASE, Loopback


class Serialised(Backend):
    def __call__(self, tracer):
        self.blob = RequestModel.serialize(tracer, compress=True)


@pytest.fixture(scope="module")
def blob(model):
    nnsight.ndif.pull_env()
    captured = Serialised()
    with model.trace("The city of Paris is in France.", backend=captured):
        nnsight.save({"hidden": model.model.layers[1].output.clone(), "count": 3})
        saved = nnsight.save({"hidden": model.model.layers[2].output.clone(), "count": 3})  # noqa: F841
    return captured.blob


@pytest.fixture
def client(server, blob):
    return Client(server, blob)


class Client:
    def __init__(self, server, blob):
        self.server, self.blob = server, blob
        self.http = httpx.Client(base_url=server.url, timeout=10)

    def fault(self, kind, **options):
        self.server.fault(kind, **options)

    def post(self, name=BASE, **headers):
        envelope = {"model_key": Loopback.model_key(name), "compress": True, "env": {}}
        sent = {
            "ndif-api-key": self.server.key,
            "nnsight-version": "0.8.1",
            "python-version": "3.11",
            **headers,
        }
        files = {"blob": ("request", self.blob, "application/octet-stream")}
        return self.http.post("/request", data={"data": json.dumps(envelope)}, files=files, headers=sent)

    def poll(self, job):
        return self.http.get(f"/response/{job}")

    def until(self, job, *statuses):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            answer = self.poll(job)
            if answer.status_code == 200 and answer.json()["status"] in statuses:
                return answer.json()
            time.sleep(0.01)
        raise AssertionError(f"never one of {statuses}")

    def done(self):
        return self.until(self.post().json()["id"], "COMPLETED")

    def load(self, url):
        content = zstandard.ZstdDecompressor().decompress(self.http.get(url).content)
        return torch.load(io.BytesIO(content), weights_only=False)["saved"]


def test_a_post_can_be_refused_with_a_time_to_wait(client):
    client.fault("post_status", code=429, retry_after=2, skip=1)
    codes = [client.post().status_code, (refused := client.post()).status_code, client.post().status_code]
    assert codes == [200, 429, 200]
    assert refused.headers["Retry-After"] == "2"


def test_a_post_can_be_dropped_before_or_after_the_job_is_made(client):
    client.fault("post_drop", accepted=False)
    client.fault("post_drop", accepted=True)
    for _ in range(2):
        with pytest.raises(httpx.TransportError):
            client.post()
    first, second = client.server.since("post")
    assert first["job"] is None
    assert client.until(second["job"], "COMPLETED")


def test_a_post_can_be_slow_in_error_or_garbage(client):
    client.fault("post_slow", seconds=0.3)
    started = time.monotonic()
    assert client.post().json()["status"] == "RECEIVED"
    assert time.monotonic() - started >= 0.3
    client.fault("post_error", description="no")
    assert client.post().json()["status"] == "ERROR"
    client.fault("post_garbage")
    with pytest.raises(ValueError, match="Expecting value"):
        client.post().json()


def test_polls_can_go_wrong_in_every_way_and_then_right(client):
    job = client.done()["id"]
    for fault in (
        dict(kind="poll_status", code=502),
        dict(kind="poll_garbage"),
        dict(kind="poll_unknown"),
        dict(kind="poll_null"),
        dict(kind="poll_drop"),
        dict(kind="poll_slow", seconds=0.2),
    ):
        client.fault(**fault)
    assert client.poll(job).status_code == 502
    with pytest.raises(ValueError, match="Unterminated"):
        client.poll(job).json()
    assert client.poll(job).json()["status"] == "PAUSED"
    assert client.poll(job).json()["data"] is None
    with pytest.raises(httpx.TransportError):
        client.poll(job)
    started = time.monotonic()
    assert client.poll(job).json()["data"]
    assert time.monotonic() - started >= 0.2


def test_downloads_can_go_wrong_in_every_way_and_then_right(client):
    url = client.done()["data"]
    for fault in (
        dict(kind="download_status", code=500),
        dict(kind="download_truncated"),
        dict(kind="download_reset"),
        dict(kind="download_short"),
        dict(kind="download_slow", seconds=0.2),
    ):
        client.fault(**fault)
    assert client.http.get(url).status_code == 500
    for _ in range(2):
        with pytest.raises(httpx.TransportError):
            client.http.get(url)
    with pytest.raises(zstandard.ZstdError):
        client.load(url)
    started = time.monotonic()
    assert client.load(url)["count"] == 3
    assert time.monotonic() - started >= 0.2


def test_a_job_can_be_lost(client):
    client.fault("lost")
    job = client.post().json()["id"]
    client.done()
    assert client.poll(job).status_code == 404


@pytest.mark.parametrize("at", ["PROVISIONING", "DEPLOYING", "QUEUED", "RUNNING"])
def test_a_job_can_be_held_while_others_pass(client, at):
    client.fault("hold", at=at)
    held = client.post().json()["id"]
    client.done()
    assert client.poll(held).json()["status"] == at
    assert client.server.release() == 1
    assert client.until(held, "COMPLETED")


def test_a_job_can_be_held_for_a_time(client):
    client.fault("hold", at="DEPLOYING", seconds=0.3)
    started = time.monotonic()
    client.done()
    assert time.monotonic() - started >= 0.3


@pytest.mark.parametrize(
    ("why", "words"),
    [
        ("code", "Traceback (most recent call last)"),
        ("evicted", "try again later"),
        ("cancelled", "cancelled or preempted"),
        ("later", "try again later"),
        ("timeout", "execution timeout"),
        ("undeployable", "Could not deploy"),
    ],
)
def test_a_job_can_fail(client, why, words):
    client.fault("fail", why=why)
    said = client.until(client.post().json()["id"], "ERROR")
    assert words in said["description"]


@pytest.mark.parametrize("how", ["missing", "extra", "shape", "dtype", "nan", "flip"])
def test_a_result_can_be_spoilt(client, how):
    right = client.load(client.done()["data"])
    client.fault("result", how=how)
    wrong = client.load(client.done()["data"])
    assert how == "extra" or differ(wrong, right)


def test_bytes_of_a_result_can_be_flipped_and_may_still_load(client):
    right = client.load(client.done()["data"])
    client.fault("result", how="bytes")
    url = client.done()["data"]
    try:
        wrong = client.load(url)
    except (zstandard.ZstdError, RuntimeError, EOFError, ValueError):
        return
    assert differ(wrong, right)


def differ(wrong, right):
    a, b = wrong.get("hidden", torch.zeros(0)), right["hidden"]
    return a.shape != b.shape or a.dtype != b.dtype or not torch.equal(a, b)


def test_a_restart_keeps_or_forgets_jobs(client):
    job = client.done()["id"]
    for forget, code in ((False, 200), (True, 404)):
        client.server.restart(seconds=0.3, forget=forget)
        with pytest.raises(httpx.TransportError):
            client.poll(job)
        client.server.wait_up()
        assert client.poll(job).status_code == code


def test_a_model_that_is_not_served_is_an_error_of_the_job(client):
    said = client.until(client.post("someone/else").json()["id"], "ERROR")
    assert "Could not deploy this model" in said["description"]


def test_an_unknown_fault_is_refused(server):
    with pytest.raises(OSError, match="400"):
        server.fault("gremlins")
