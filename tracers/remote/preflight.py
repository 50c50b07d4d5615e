"""What can be checked about a server before a job is sent to it."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from posttrace.tracers.errors import TracerError
from posttrace.tracers.models.loading import DTYPES, open_model
from posttrace.tracers.oracles.compare import tolerance
from posttrace.tracers.oracles.patching import naive_run
from posttrace.tracers.prompts import encode
from posttrace.tracers.remote.errors import JobFailed, Unavailable
from posttrace.tracers.remote.keys import deployments
from posttrace.tracers.remote.model import RemoteModel
from posttrace.tracers.remote.server import KEY_HELP, Refused, Server, Trouble

PROBE = "The city of Paris is in France."
TRUSTED = "trusted"
"""The tag of keys whose code runs where the weights are."""
TRIES = 3
"""Attempts for a request that the server does not answer."""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    verdict: Literal["ok", "note", "wrong"]
    """`wrong`: a job would fail; `note`: it may take longer, or differ within rounding."""
    text: str


def examine_server(server: Server) -> Iterator[Finding]:
    """Whether the server answers, accepts the key, and runs versions compatible with ours.

    Ends after the first finding that makes the others meaningless.

    Examples
    --------
    >>> [f.verdict for f in examine_server(configured())]              # doctest: +SKIP
    ['ok', 'ok', 'ok']
    """
    if not server.has_key:
        yield Finding("wrong", f"key: none; {KEY_HELP}")
        return
    try:
        _get(server, "/status")
    except (Trouble, Refused, Unavailable) as error:
        yield Finding("wrong", f"host {server.host}: {error}")
        return
    yield Finding("ok", f"host {server.host}: reachable")
    key = _key(server)
    yield key
    if key.verdict != "wrong":
        yield _versions(server)


def examine_model(
    model: RemoteModel, *, checkpoint: str, revision: str | None, device: str
) -> Iterator[Finding]:
    """Whether the server has the model, and gives for one prompt what the weights here give (if they are here).

    One small request. A cold model is not woken: its first request will wait until the server has loaded it.

    Examples
    --------
    >>> [f.verdict for f in examine_model(model, checkpoint="path/to/checkpoint", revision=None,
    ...                                   device="cpu")]               # doctest: +SKIP
    ['ok', 'ok']
    """
    try:
        listed = deployments(_get(model.runner.server, "/status"), model.key)
        state = _state(listed)
    except (Trouble, Refused):
        listed, state = [], "UNKNOWN"
    if state != "RUNNING":
        limit = f"{model.runner.policy.deploy:.0f} s (execution.remote.deploy)"
        yield Finding(
            "note", f"{model.view.name}: {_COLD.get(state, state)}; the first request waits up to {limit}"
        )
        return
    wanted, held = str(model.dtype).removeprefix("torch."), listed[0].get("dtype")
    if held in DTYPES and held != wanted:
        yield Finding(
            "wrong",
            f"{model.view.name}: the server holds it in {held}, the job wants {wanted}; set dtype={held}",
        )
        return
    seconds = listed[0].get("execution_timeout_seconds")
    yield Finding(
        "ok",
        f"{model.view.name}: running"
        + (f", in {held}" if held else "")
        + (f", {seconds:g} s for a request" if isinstance(seconds, int | float) else "")
        + (", with its repository's own code" if listed[0].get("trusted") else ""),
    )
    prompt = encode(model.tokenizer, "", PROBE)
    answers = (prompt.ids[-1], prompt.ids[-2])
    begun = time.monotonic()
    try:
        there = float(model.run(naive_run, prompt, answers))
    except (JobFailed, Unavailable) as error:
        yield Finding("wrong", f"{model.view.name}: probe: {error}")
        return
    told = f"probe answered in {time.monotonic() - begun:.1f} s, its sites are where they should be"
    if not any(Path(checkpoint).expanduser().glob("*.safetensors")):
        yield Finding("ok", f"{model.view.name}: {told}; no weights here to compare with")
        return
    local = open_model(
        checkpoint,
        revision=revision,
        device=device,
        dtype=str(model.dtype).removeprefix("torch."),
        check=False,
    )
    here = float(local.run(naive_run, prompt, answers))
    allowed = tolerance(model.dtype) * max(1.0, abs(here))
    same = abs(here - there) <= allowed
    yield Finding(
        "ok" if same else "wrong",
        f"{model.view.name}: {told}; it gives {there:.6g}, the weights here {here:.6g} (allowed: {allowed:.2g} apart)"
        + ("" if same else "; is remote_key the same checkpoint?"),
    )


def _state(listed: list[dict]) -> str:
    """Return a model's state from a server's entries: RUNNING, DEPLOYING, WARM, ...; COLD when it lists none."""
    states = [
        str(one.get("application_state") or one.get("deployment_level") or "UNHEALTHY") for one in listed
    ]
    return "RUNNING" if "RUNNING" in states else min(states, default="COLD")


_COLD = {
    "COLD": "not deployed",
    "WARM": "not running",
    "UNKNOWN": "the server does not say whether it is deployed",
}


def key_tags(server: Server) -> list[str] | None:
    """Return the tags of the key, as the server reports them; None where it has no record of the key.

    Raises
    ------
    Trouble, Refused, Unavailable

    Examples
    --------
    >>> "trusted" in key_tags(configured())                            # doctest: +SKIP
    True
    """
    known = _get(server, "/whoami")
    if not isinstance(known, dict) or not known.get("email"):
        return None
    return [str(tag) for tag in known.get("tags") or ()]


def _key(server: Server) -> Finding:
    try:
        tags = key_tags(server)
    except Unavailable as error:
        return Finding("wrong", f"key: {error}")
    except (Trouble, Refused):
        tags = None
    if tags is not None and TRUSTED in tags:
        return Finding("ok", f"key: known to the server, {TRUSTED}")
    if tags is not None:
        return Finding(
            "ok",
            f"key: known to the server, without the tag {TRUSTED}: code runs apart from the weights, slower",
        )
    try:
        server.knock()
    except Unavailable as error:
        return Finding("wrong", f"key: {error}")
    except Trouble as trouble:
        return Finding("note", f"key: there is one; whether it is good is not known ({trouble})")
    return Finding("ok", "key: accepted")


def _versions(server: Server) -> Finding:
    try:
        environment = _get(server, "/env")
        packages = environment.get("packages", {})
        python = str(environment.get("python_version", "?")).split()[0]
    except (Trouble, Refused, AttributeError):
        return Finding("note", "versions: the server does not tell its own")
    pairs = {
        name: (version(name), str(packages.get(name, "?"))) for name in ("nnsight", "torch", "transformers")
    }
    pairs = {"python": (platform.python_version(), python), **pairs}
    told = ", ".join(
        f"{name} {there}" + (f" (here {here})" if here != there else "")
        for name, (here, there) in pairs.items()
    )
    here, there = (v.split(".")[:2] for v in pairs["nnsight"])
    if there != ["?"] and here != there:
        return Finding(
            "wrong", f"versions: {told}; requests of nnsight {pairs['nnsight'][0]} may not be understood"
        )
    return Finding("ok" if all(a == b for a, b in pairs.values()) else "note", f"versions: {told}")


def _get(server: Server, path: str):
    for left in reversed(range(TRIES)):
        try:
            return server.get(path)
        except Trouble as trouble:
            if not left:
                raise
            time.sleep(min(trouble.wait or 0.5, 5.0))
    raise TracerError("unreachable")
