"""The modules of a model that have weights of their own, and the part of the model that each belongs to.

A part is what is credited or swapped as one: the embeddings, the attention or the MLP of a block, the unembedding. The
scale of a norm goes with the module that it feeds; where a norm follows a half of a block (Gemma 2, OLMo 2), with that
half.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from posttrace.tracers.errors import TracerError
from posttrace.tracers.models.architecture import (
    AFTER_MLP,
    ATTENTION,
    BEFORE_MLP,
    EITHER,
    Architecture,
    recognise,
)

MODULES = ("attn", "mlp")
"""The halves of a block, in order."""
ENDS = ("embed", "unembed")


class Part(NamedTuple):
    """A part of a model."""

    module: str
    """embed, attn, mlp or unembed."""
    layer: int
    """Its block; -1 for the two ends."""


@dataclass(frozen=True)
class Weighted:
    """A module with weights of its own."""

    module: nn.Module
    names: dict[str, str]
    """Name within the module -> name in the checkpoint; a weight that is tied has that of its first place."""
    part: Part


def parts_of(n_layers: int) -> tuple[Part, ...]:
    """Return the parts of a model, in the order in which a forward pass reaches them.

    >>> [f"{part.module} {part.layer}" for part in parts_of(1)]
    ['embed -1', 'attn 0', 'mlp 0', 'unembed -1']
    """
    halves = [Part(module, layer) for layer in range(n_layers) for module in MODULES]
    return (Part("embed", -1), *halves, Part("unembed", -1))


def weighted_modules(model) -> list[Weighted]:
    """Every module of a transformers model that has weights of its own, weights or none.

    Raises TracerError for a module that is neither a linear map, an embedding nor a norm, as only what is linear in its
    weights can be credited exactly.
    """
    architecture = recognise(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = []
    for path, module in model.named_modules():
        own = {key: names[id(p)] for key, p in module._parameters.items() if p is not None}
        if not own:
            continue
        if not (isinstance(module, nn.Linear | Conv1D | nn.Embedding) or "Norm" in type(module).__name__):
            raise TracerError(
                f"architecture {type(model).__name__}: {path} ({type(module).__name__}) has weights and is neither a "
                "linear map, an embedding nor a norm; updates of such a model cannot be credited (a mixture of "
                "experts is one)"
            )
        found.append(Weighted(module, own, _part(path, module, architecture)))
    return found


@contextmanager
def replaced(
    modules: Sequence[Weighted], weights: Mapping[str, torch.Tensor], *, below: bool = False
) -> Iterator[None]:
    """Give modules other weights, by the names of the checkpoint; names that are not given keep theirs.

    Each module has them only while it runs, so that streamed weights (see `models.updates`) are in memory one module at
    a time. The model's own tensors are set aside and not copied, so that what comes back is bit for bit what was there.
    A tied weight is replaced in the modules that are given, and in no other place.

    below: whether weights that are replaced within come on top of these, else it is the other way round.
    """
    with ExitStack() as hooks:
        for one in modules:
            own = {key: name for key, name in one.names.items() if name in weights}
            if not own:
                continue
            before = {key: one.module._parameters[key] for key in own}

            def take(module, _inputs, own=own):
                module._parameters.update({key: weights[name] for key, name in own.items()})

            def give_back(module, *_, before=before):
                module._parameters.update(before)

            hooks.callback(one.module.register_forward_pre_hook(take, prepend=below).remove)
            hooks.callback(one.module.register_forward_hook(give_back, always_call=True).remove)
        yield


def _part(path: str, module: nn.Module, architecture: Architecture) -> Part:
    inside = path.removeprefix(f"{architecture.layers}.")
    if inside == path:
        before = isinstance(module, nn.Embedding) or "embed" in path.rsplit(".", 1)[-1]
        return Part("embed" if before and path != architecture.unembed else "unembed", -1)
    number, name = inside.split(".", 1)
    half = "attn" if _of_attention(name, module, architecture) else "mlp"
    return Part(half, int(number))


def _of_attention(name: str, module: nn.Module, architecture: Architecture) -> bool:
    """Whether a module of a block is part of its attention, or a norm before it or after it."""
    attention = (*ATTENTION, *architecture.attn, *architecture.attn_add)
    if any(name == path or name.startswith(f"{path}.") for path in attention):
        return True
    first = name.split(".")[0]
    of_mlp = (*architecture.mlp, *architecture.mlp_add, *architecture.mid, *BEFORE_MLP, *AFTER_MLP, EITHER)
    return "Norm" in type(module).__name__ and first not in of_mlp and "mlp" not in first
