"""Declare and run *read*, *patch* and *steer* operations on a language model, inside nnsight tracing contexts.

>>> from posttrace.tracers import open_model
>>> model = open_model("path/to/checkpoint")              # doctest: +SKIP
>>> model.n_layers, model.hidden_size                     # doctest: +SKIP
(8, 160)

Importing this package is light: torch, transformers and nnsight load when a model is opened.
"""

from posttrace.tracers.errors import TracerError
from posttrace.tracers.operations import SITES, Patch, Read, Steer, canonical_hash

_LAZY = {
    "OpenModel": "posttrace.tracers.models.loading",
    "open_model": "posttrace.tracers.models.loading",
    "model_identity": "posttrace.tracers.models.identity",
    "Prompt": "posttrace.tracers.prompts",
    "encode": "posttrace.tracers.prompts",
    "answer_ids": "posttrace.tracers.prompts",
    "read_statements": "posttrace.tracers.engines.activations",
    "patch_grid": "posttrace.tracers.engines.patching",
    "patch_grid_naive": "posttrace.tracers.oracles.patching",
    "attribution_grid": "posttrace.tracers.engines.attribution",
}

__all__ = ["SITES", "Patch", "Read", "Steer", "TracerError", "canonical_hash", *_LAZY]


def __getattr__(name):
    if name not in _LAZY:
        raise AttributeError(f"module 'posttrace.tracers' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
