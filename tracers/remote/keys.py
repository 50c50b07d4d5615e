"""How a server knows a model: its key, as nnsight spells it, and as this server has it.

NDIF compares keys as they are written, letter by letter, while one model can be written in several ways: under an id
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
"""Causal language models that the hub had before ids had an owner: nnsight asks it for the new id, here none need."""


def model_key(model: str, revision: str | None = None, key: str | None = None) -> str:
    """How a server knows a model, without asking anyone.

    >>> model_key("gpt2", "main").partition(":")[2]
    '{"repo_id": "openai-community/gpt2", "revision": null, "task": "text-generation"}'

    key: a hub id, or a whole key (`import.path.Class:{...}`), instead of what `model` says; needed for a folder.
    Raises TracerError for a folder without one.
    """
    if key and ":{" in key:
        return key
    if key is None and Path(model).expanduser().is_dir():
        raise TracerError(
            f"model {model}: a folder is no name that a server knows; give the hub id of the model there, e.g. "
            "family.stages.base={model: FOLDER, remote_key: meta-llama/Llama-3.1-8B}"
        )
    named = RENAMED.get(key or model, key or model)
    revision = None if revision == "main" else revision
    return f"{CLASS}:{json.dumps({'repo_id': named, 'revision': revision, 'task': TASK})}"


def same_model(key: str) -> tuple:
    """What in a key tells models apart: equal for all ways to write one model.

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
    """What a server's `/status` has of a model, the running ones first; none if it does not list it.

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
    """A key as the server has it; as it is where the server lists no such model."""
    return next((str(one["model_key"]) for one in deployments(status, key)), key)
