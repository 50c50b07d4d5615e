"""`posttrace check`: what it finds before a job is sent."""

import subprocess
import sys

import pytest
import torch

from posttrace.pipeline.embedded import CHECKPOINTS
from posttrace.pipeline.job import load_job
from posttrace.pipeline.preflight import examine
from posttrace.tracers.remote.keys import model_key, same_model
from posttrace.tracers.remote.model import open_remote
from posttrace.tracers.remote.policy import ConcurrencyLimit, Policy
from posttrace.tracers.remote.runner import Runner
from posttrace.tracers.remote.server import Server
from tests.support.remote.loopback import UNTRUSTED, Loopback
from tests.support.remote.studies import overrides


def findings(study="knowledge", backend="remote", *more):
    return [(f.verdict, f.text) for f in examine(load_job(study, overrides(study, backend, *more)))]


@pytest.mark.slow
def test_all_is_well(server):
    found = findings("knowledge", "remote", "sets=[cities]")
    assert {verdict for verdict, _ in found} == {"ok"}
    told = "\n".join(text for _, text in found)
    assert "reachable" in told and "key: known to the server, trusted" in told and "nnsight" in told
    for stage in ("base", "instruct"):
        assert f"posttrace/embedded-{stage}: running, in float32, 300 s for a request" in told
        assert f"posttrace/embedded-{stage}: probe answered" in told
    assert told.count("the weights here") == 2
    assert len(server.since("post")) == 2


def test_a_local_job_needs_no_server(server):
    found = findings("knowledge", "local")
    assert len(found) > 2 and {verdict for verdict, _ in found} <= {"ok", "note"}
    assert server.since("post") == []


@pytest.mark.slow
def test_another_model_under_the_key_is_found_by_the_probe(server):
    found = findings(
        "knowledge", "remote", "stages=[base]", "family.stages.base.remote_key=posttrace/embedded-sft"
    )
    assert found[-1][0] == "wrong" and "is remote_key the same checkpoint?" in found[-1][1]


@pytest.mark.slow
def test_another_dtype_on_the_server(server):
    found = findings("knowledge", "remote", "stages=[base]", "dtype=bfloat16")
    assert found[-1][0] == "wrong" and "set dtype=float32" in found[-1][1]
    assert server.since("post") == [], "what the server says of itself is enough"


THERE = model_key("gpt2").replace("null", '"main"')


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A server that has base under a key of its own spelling, in another dtype than it says."""
    models = {THERE: CHECKPOINTS / "base"}
    with Loopback(tmp_path_factory.mktemp("other"), models, dtype="bfloat16", held="float32") as server:
        yield server


@pytest.mark.slow
def test_the_dtype_that_counts_is_the_one_in_which_the_model_runs(other, monkeypatch):
    """Neither what its configuration says (bfloat16) nor, here, what the server says of it."""
    monkeypatch.setenv("NDIF_HOST", other.url)
    monkeypatch.setenv("NDIF_API_KEY", other.key)
    found = findings(
        "knowledge", "remote", "stages=[base]", "family.stages.base.remote_key=gpt2", "dtype=bfloat16"
    )
    assert found[-1][0] == "wrong" and "set dtype=float32" in found[-1][1]
    assert [post["model_key"] for post in other.log("post")] == [THERE]


@pytest.mark.slow
@pytest.mark.parametrize("spelled", ["gpt2", "openai-community/gpt2", "openai-community/GPT2"])
def test_a_model_is_asked_for_as_the_server_spells_it(spelled, other):
    runner = Runner(Server(other.url, other.key), Policy(), ConcurrencyLimit(1))
    base = str(CHECKPOINTS / "base")
    assert open_remote(base, revision=None, key=spelled, dtype=torch.float32, runner=runner).key == THERE


@pytest.mark.slow
def test_a_key_that_is_not_trusted_is_told_what_it_cannot_do(server, monkeypatch):
    monkeypatch.setenv("NDIF_API_KEY", UNTRUSTED)
    found = findings("knowledge", "remote", "stages=[base]", "sets=[cities]")
    assert any("without the tag trusted" in text for _, text in found) and {v for v, _ in found} == {"ok"}
    found = findings("knowledge", "remote", "stages=[base]", "method=attribution")
    assert found[-1][0] == "wrong" and "set method=exact" in found[-1][1]


def test_keys_are_those_of_nnsight():
    assert model_key("gpt2") == model_key("openai-community/gpt2", "main")
    assert model_key("gpt2").endswith(
        ':{"repo_id": "openai-community/gpt2", "revision": null, "task": "text-generation"}'
    )
    assert same_model(model_key("a/b", "v1")) != same_model(model_key("a/b"))


@pytest.mark.slow
def test_a_model_that_is_not_deployed_is_not_woken(server):
    found = findings(
        "knowledge", "remote", "stages=[base]", "family.stages.base.remote_key=someone/elsewhere"
    )
    assert found[-1][0] == "note" and "someone/elsewhere: not deployed" in found[-1][1]
    assert server.since("post") == []


@pytest.mark.parametrize("model", ["posttrace/embedded-base", "someone/elsewhere"], ids=["running", "cold"])
@pytest.mark.parametrize("key", ["", "00000000-0000-4000-8000-0000000bad00", "no-uuid-at-all"])
def test_a_key_that_is_missing_or_wrong(key, model, server, monkeypatch):
    from nnsight import CONFIG

    monkeypatch.setattr(CONFIG.API, "APIKEY", None)
    monkeypatch.setenv("NDIF_API_KEY", key)
    found = findings("knowledge", "remote", "stages=[base]", f"family.stages.base.remote_key={model}")
    assert found[-1][0] == "wrong" and "NDIF_API_KEY" in found[-1][1]
    assert not key or key not in found[-1][1]


@pytest.mark.slow
def test_the_command_s_exit_status_for_a_wrong_key_and_a_cold_model(server, monkeypatch):
    monkeypatch.setenv("NDIF_API_KEY", "00000000-0000-4000-8000-0000000bad00")
    cold = overrides(
        "knowledge", "remote", "stages=[base]", "family.stages.base.remote_key=someone/elsewhere"
    )
    line = [sys.executable, "-m", "posttrace", "check", "knowledge"]
    ran = subprocess.run(
        [*line, *(part for one in cold for part in ("--set", one))], capture_output=True, timeout=120
    )
    assert ran.returncode == 1


def test_a_host_that_does_not_answer(server, monkeypatch):
    monkeypatch.setenv("NDIF_HOST", "http://127.0.0.1:9")
    found = findings("knowledge", "remote", "stages=[base]")
    assert found[-1][0] == "wrong" and "no answer from http://127.0.0.1:9" in found[-1][1]


def test_a_folder_needs_the_name_that_the_server_knows(server):
    from posttrace.tracers.errors import TracerError

    with pytest.raises(TracerError, match="a server does not know local folders"):
        findings("knowledge", "remote", "stages=[base]", "family.stages.base.remote_key=null")
