"""The key goes to the configured server, encrypted or within this machine, and nowhere else."""

import pytest

from posttrace.pipeline.job import load_job
from posttrace.pipeline.run import run_job
from posttrace.tracers.remote.errors import Unavailable
from posttrace.tracers.remote.server import Refused, Server, Trouble, configured, trusted
from tests.support.remote.studies import overrides


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://api.ndif.us", True),
        ("http://127.0.0.1:8000", True),
        ("http://localhost:8000/x", True),
        ("http://[::1]:8000", True),
        ("http://api.ndif.us", False),
        ("http://127.0.0.1.example.org", False),
        ("http://localhost.example.org", False),
        ("http://10.0.0.1", False),
        ("ftp://127.0.0.1", False),
        ("file:///etc/passwd", False),
        ("https://", False),
        ("", False),
    ],
)
def test_plain_http_is_for_this_machine_only(url, allowed):
    assert trusted(url) is allowed
    if not allowed:
        with pytest.raises(Unavailable, match="https://"):
            Server(url, "a-key")
        with pytest.raises(Refused, match="https://"):
            Server("https://example.org", "a-key").download(url, 1000)


def test_a_host_with_a_password_in_it_is_refused():
    with pytest.raises(Unavailable, match="name and password") as caught:
        Server("https://someone:hunter2@example.org", "a-key")
    assert "hunter2" not in str(caught.value)


def test_the_key_of_the_environment_goes_before_that_of_nnsight_s_configuration(monkeypatch):
    from nnsight import CONFIG

    monkeypatch.setattr(CONFIG.API, "APIKEY", "configured")
    monkeypatch.delenv("NDIF_HOST", raising=False)
    monkeypatch.delenv("NDIF_API_KEY", raising=False)
    assert configured()._key == "configured"
    monkeypatch.setenv("NDIF_API_KEY", "of-the-environment")
    assert configured()._key == "of-the-environment"


def test_a_server_that_repeats_the_key_does_not_get_it_into_messages(server):
    server.fault("post_status", code=400, detail=f"who gave you {server.key}?")
    there = configured()
    with pytest.raises(Refused, match=r"who gave you \*\*\*\?"):
        there.submit("some:key", {}, b"")


def test_results_are_fetched_without_the_key(server, monkeypatch):
    """They lie in an object store that belongs to someone else."""
    there, seen = configured(), []
    original = there._http.stream
    monkeypatch.setattr(there._http, "stream", lambda *a, **k: seen.append((a, k)) or original(*a, **k))
    with pytest.raises(Trouble, match="status 404"):
        there.download(f"{server.url}/no/such/result", 1000)
    assert seen and server.key not in repr(seen) and server.key not in repr(dict(there._http.headers))


@pytest.mark.parametrize(
    ("host", "key", "why"),
    [
        ("http://example.org", "k" * 30, "use https://"),
        ("https://example.org", "", "there is no key; set NDIF_API_KEY"),
    ],
)
def test_without_a_safe_host_and_a_key_nothing_begins(host, key, why, tmp_path, monkeypatch):
    from nnsight import CONFIG

    monkeypatch.setattr(CONFIG.API, "APIKEY", None)
    monkeypatch.setenv("NDIF_HOST", host)
    monkeypatch.setenv("NDIF_API_KEY", key)
    with pytest.raises(Unavailable, match=why) as caught:
        run_job(load_job("knowledge", overrides("knowledge", "remote")), str(tmp_path / "store"))
    assert "k" * 30 not in str(caught.value)
    assert not (tmp_path / "store").exists()
