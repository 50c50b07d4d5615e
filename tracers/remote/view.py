"""The parts of a model that travel in a request: its modules by name, and by value what engines read of it.

For an untrusted key a server runs the request on modules without values, or, where it cannot build them (transformers
5.23 with nnsight 0.8.1), on None. So an engine on a server uses modules for nothing but tracing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch

from posttrace.tracers.errors import TracerError
from posttrace.tracers.models.architecture import recognise
from posttrace.tracers.models.loading import (
    OpenModel,
    empty_model,
    load_config,
    load_tokenizer,
    named,
    wrapper_class,
)

TOLD = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "head_dim",
    "v_head_dim",
    "intermediate_size",
    "vocab_size",
    "sliding_window",
    "layer_types",
)
"""Fields of a configuration that engines read; none of them reveals where checkpoint files are."""


@dataclass(frozen=True)
class View(OpenModel):
    """A model as engines see it on a server; its modules are whatever is there in their place."""

    told: SimpleNamespace
    """The fields of the configuration that are named in `TOLD`."""
    held: torch.dtype
    """The dtype that the job wants and the server is asked to have."""

    @property
    def config(self) -> SimpleNamespace:
        return self.told

    @property
    def dtype(self) -> torch.dtype:
        return self.held


def view_of(name: str, nn, tokenizer, architecture, dtype: torch.dtype) -> View:
    """Return a wrapped model as a view.

    Examples
    --------
    >>> view_of("someone/model", nn, tokenizer, architecture, torch.float32).config.hidden_size    # doctest: +SKIP
    160
    """
    config = nn._module.config
    told = SimpleNamespace(**{key: getattr(config, key) for key in TOLD if hasattr(config, key)})
    return View(name, nn, tokenizer, architecture, told, dtype)


def weightless(model: str, revision: str | None, key: str, dtype: torch.dtype) -> View:
    """Return a view of a model on a server, from configuration and tokenizer, without where its files lie here.

    Parameters
    ----------
    key
        As `tracers.remote.keys.model_key` gives it.

    Raises
    ------
    TracerError
        As `open_model` does.

    Examples
    --------
    >>> weightless("path/to/checkpoint", None, model_key("path", key="someone/model"), torch.float32)  # doctest: +SKIP
    """
    load_config(model, revision)
    if (wrapper := wrapper_class(model, revision)) is not None:
        raise TracerError(
            f"model {model}: a server holds a {wrapper.__name__}, whose text model is reached on this machine only; "
            "set execution.backend=local"
        )
    tokenizer = load_tokenizer(model, revision)
    architecture = recognise(empty_model(model, revision))
    nn = named(
        str(Path(model).expanduser()) if Path(model).expanduser().is_dir() else model,
        architecture,
        revision=revision,
        tokenizer=tokenizer,
    )
    called = json.loads(key.partition(":")[2])["repo_id"]
    nn.repo_id, nn.args, nn.kwargs = called, (), {}
    return view_of(called, nn, tokenizer, architecture, dtype)
