"""How a server knows a model: its key, as nnsight spells it, and as this server has it.

NDIF compares keys character by character, while one model can be spelled in several ways: under an id
that the hub has renamed, with or without the revision `main`. So the key that a request carries is the server's own
spelling wherever it lists the model, and nnsight's otherwise.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from posttrace.tracers.errors import TracerError

CLASS = "nnsight.modeling.transformers.TransformersModel"
"""What a server wraps a causal language model in; the first part of its key."""
TASK = "text-generation"
RENAMED = {
    **{f"gpt2{size}": f"openai-community/gpt2{size}" for size in ("", "-medium", "-large", "-xl")},
    "distilgpt2": "distilbert/distilgpt2",
    "openai-gpt": "openai-community/openai-gpt",
}
"""Causal language models with hub ids older than owners: nnsight asks the hub for the new id, this table need not."""


def model_key(model: str, revision: str | None = None, key: str | None = None) -> str:
    """Return a model's key, without asking a server.

    Parameters
    ----------
    key
        A hub id, or a whole key (`import.path.Class:{...}`), instead of what `model` says; needed for a folder.

    Raises
    ------
    TracerError
        A folder without one.

    Examples
    --------
    >>> model_key("gpt2", "main").partition(":")[2]
    '{"repo_id": "openai-community/gpt2", "revision": null, "task": "text-generation"}'
    """
    if key and ":{" in key:
        return key
    if key is None and Path(model).expanduser().is_dir():
        raise TracerError(
            f"model {model}: a server does not know local folders; give the hub id of the model there, e.g. "
            "family.stages.base={model: FOLDER, remote_key: meta-llama/Llama-3.1-8B}"
        )
    named = RENAMED.get(key or model, key or model)
    revision = None if revision == "main" else revision
    return f"{CLASS}:{json.dumps({'repo_id': named, 'revision': revision, 'task': TASK})}"


def same_model(key: str) -> tuple:
    """Return the parts of a key that identify a model: equal for every spelling of one model.

    Examples
    --------
    >>> same_model(model_key("gpt2")) == same_model(model_key("openai-community/GPT2", "main"))
    True
    """
    kind, _, rest = key.partition(":")
    try:
        named = json.loads(rest)
        repo = RENAMED.get(named["repo_id"], named["repo_id"]).lower()
        return kind, repo, named.get("revision") or "main", named.get("task") or TASK
    except (ValueError, KeyError, TypeError, AttributeError):
        return (key,)


def deployments(status: Any, key: str) -> list[dict[str, Any]]:
    """Entries of a server's `/status` for a model, running ones first; empty if it is not listed.

    Examples
    --------
    >>> status = {"deployments": {"a": {"model_key": model_key("gpt2", "main"), "application_state": "RUNNING"}}}
    >>> len(deployments(status, model_key("openai-community/gpt2")))
    1
    """
    known = status.get("deployments") if isinstance(status, dict) else None
    wanted = same_model(key)
    found = [
        {"model_key": name, **one}
        for name, one in (known.items() if isinstance(known, dict) else ())
        if isinstance(one, dict) and same_model(str(one.get("model_key") or name)) == wanted
    ]
    return sorted(found, key=lambda one: one.get("application_state") != "RUNNING")


def spelled_there(status: Any, key: str) -> str:
    """Return a key as the server spells it; unchanged if the server does not list the model."""
    return next((str(one["model_key"]) for one in deployments(status, key)), key)
