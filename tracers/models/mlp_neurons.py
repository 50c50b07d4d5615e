"""Where the neurons of a block's MLP write to, recognised by looking at the modules, not by a list of model types.

A neuron is one of the MLP's hidden units; its *output vector* is the row or column of the last projection
that it is multiplied with.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch
from transformers.pytorch_utils import Conv1D

from posttrace.tracers.errors import TracerError
from posttrace.tracers.models.architecture import MLP, Architecture, recognise
from posttrace.tracers.models.safetensors import spellings

FINAL_NORMS = ("norm", "ln_f", "norm_f", "final_layernorm", "final_layer_norm", "final_norm")
"""What architectures call the norm before the unembedding, where there are other norms next to it."""


@dataclass(frozen=True)
class NormForm:
    """What a norm does other than divide by a scale."""

    centres: bool
    """Whether it subtracts the mean over the hidden dimension first (LayerNorm does, RMSNorm does not)."""
    offset: float | None
    """What is added to its weight before it multiplies: 0, or 1 (Gemma); None for a norm without a weight."""


@dataclass(frozen=True)
class Head:
    """The way from the stream to the logits: final norm and unembedding."""

    hidden_size: int
    vocabulary: int
    norm: str
    """Path of the final norm."""
    form: NormForm
    unembed: tuple[str, ...]
    """Name of the unembedding's weight in a file; more than one where it is tied to the embedding's."""
    biased: bool
    """Whether the unembedding adds a bias."""
    prefix: str
    """What files may leave out at the beginning of names."""

    @property
    def norm_weight(self) -> str | None:
        return None if self.form.offset is None else f"{self.norm}.weight"

    def spelled(self, name: str) -> tuple[str, ...]:
        """How a file may spell the name of a tensor."""
        return spellings(name, self.prefix)


@dataclass(frozen=True)
class Neurons(Head):
    """The neurons of one block's MLP, and the way from them to the logits."""

    layer: int
    n_neurons: int
    down: str
    """Path of the MLP's last projection, relative to the block."""
    rows: bool
    """Whether its weight has a row for each neuron (Conv1D), not a column (Linear)."""
    block: str
    """Path of the block."""

    @property
    def down_weight(self) -> str:
        return f"{self.block}.{self.down}.weight"


def find_head(model) -> Head:
    """Return the final norm and the unembedding of a transformers model, weights or none.

    >>> find_head(empty_model("path/to/checkpoint")).vocabulary       # doctest: +SKIP
    2048

    Raises TracerError for an architecture whose final norm is unknown.
    """
    return _head(model, recognise(model))


def _head(model, architecture: Architecture) -> Head:
    unembed = model.get_output_embeddings()
    norm, module = _final_norm(model, architecture.layers.rpartition(".")[0])
    # GPT-NeoX's files say embed_out for what transformers 5 calls lm_head.
    names = list(dict.fromkeys(f"{name}.weight" for name in (architecture.unembed, "lm_head", "embed_out")))
    if unembed.weight is model.get_input_embeddings().weight or model.config.tie_word_embeddings:
        embedding = model.get_input_embeddings()
        names.insert(0, next(f"{path}.weight" for path, m in model.named_modules() if m is embedding))
    return Head(
        hidden_size=model.config.hidden_size,
        vocabulary=unembed.weight.shape[0],
        norm=norm,
        form=norm_form(module, model.config.hidden_size),
        unembed=tuple(names),
        biased=getattr(unembed, "bias", None) is not None,
        prefix=model.base_model_prefix,
    )


def find_neurons(model, layer: int | None = None) -> Neurons:
    """Return the neurons of block `layer` (the last one if None) of a transformers model, weights or none.

    >>> find_neurons(empty_model("path/to/checkpoint")).n_neurons     # doctest: +SKIP
    432

    Raises TracerError for a layer that the model does not have, and for an architecture whose MLP is no single
    list of neurons (a mixture of experts) or whose final norm is unknown.
    """
    architecture = recognise(model)
    blocks = model.get_submodule(architecture.layers)
    layer = len(blocks) - 1 if layer is None else layer
    if not 0 <= layer < len(blocks):
        raise TracerError(
            f"layer: {layer} is not in 0-{len(blocks) - 1} (the model has {len(blocks)} blocks); edit layer"
        )
    hidden = model.config.hidden_size
    down = _last_projection(blocks[layer], hidden)
    if down is None:
        raise _no_neurons(model, blocks, layer)
    projection = blocks[layer].get_submodule(down)
    rows = type(projection).__name__ == "Conv1D"
    return Neurons(
        **vars(_head(model, architecture)),
        layer=layer,
        n_neurons=projection.weight.shape[0 if rows else 1],
        down=down,
        rows=rows,
        block=f"{architecture.layers}.{layer}",
    )


def _last_projection(block, hidden: int) -> str | None:
    """Path of the MLP's last projection; None where the MLP is no single list of neurons."""
    if hasattr(block, "fc2"):
        return "fc2"
    found = [name for name in MLP if isinstance(getattr(block, name, None), torch.nn.Module)]
    if len(found) != 1:
        return None
    parts = dict(getattr(block, found[0]).named_children())
    written = [
        name for name, part in parts.items()
        if isinstance(part, torch.nn.Linear | Conv1D) and hidden in part.weight.shape
    ]  # fmt: skip
    if not written or any("expert" in name or name == "router" for name in parts):
        return None
    return f"{found[0]}.{written[-1]}"


def _no_neurons(model, blocks, layer: int) -> TracerError:
    have = [str(i) for i, block in enumerate(blocks) if _last_projection(block, model.config.hidden_size)]
    parts = {name: type(part).__name__ for name, part in blocks[layer].named_children()}
    halves = [kind for name, kind in parts.items() if name in MLP]
    what = f"has no MLP ({', '.join(parts.values())})"
    if halves:
        what = (
            f"has experts, not a single list of neurons with one output projection ({' and '.join(halves)})"
        )
    fix = f"set layer to one of {', '.join(have)}" if have else "no other block has such a list either"
    return TracerError(f"architecture {type(model).__name__}: block {layer} {what}; {fix}")


def norm_form(norm, hidden_size: int) -> NormForm:
    """Find out by trying whether a norm centres, and what its weight multiplies by.

    >>> norm_form(torch.nn.LayerNorm(8), 8)
    NormForm(centres=True, offset=0.0)

    The module itself is left alone, and may be without values. Raises TracerError for a norm that scales in
    neither of the known ways.
    """
    norm = deepcopy(norm).to_empty(device="cpu").float()
    x = torch.linspace(-1.0, 2.0, hidden_size)[None, None].square()
    with torch.no_grad():
        if getattr(norm, "bias", None) is not None:
            norm.bias.zero_()
        has_weight = getattr(norm, "weight", None) is not None
        if not has_weight:
            return NormForm(centres=torch.allclose(norm(x), norm(x + 3), atol=1e-3), offset=None)
        norm.weight.fill_(1.0)
        one = norm(x)
        centres = torch.allclose(one, norm(x + 3), atol=1e-3)
        norm.weight.fill_(0.0)
        zero = norm(x)
    for offset, factor in ((0.0, 0.0), (1.0, 0.5)):
        if torch.allclose(zero, factor * one, atol=1e-5):
            return NormForm(centres=centres, offset=offset)
    raise TracerError(
        f"final norm {type(norm).__name__}: its output is proportional to neither its weight nor 1 + its weight; "
        "describe it in tracers/models/mlp_neurons.py"
    )


def _final_norm(model, stem: str):
    """Path and module of the norm next to the list of blocks."""
    found = [
        (name, m) for name, m in model.get_submodule(stem).named_children() if "Norm" in type(m).__name__
    ]
    if len(found) > 1:
        found = [(name, m) for name, m in found if name in FINAL_NORMS]
    others = [name for name, m in model.named_children() if any(True for _ in m.parameters())]
    if len(found) != 1 or len(others) > 2:
        raise TracerError(
            f"architecture {type(model).__name__}: {len(found)} norms next to the blocks at {stem}, not one, or "
            "more than a norm between the blocks and the unembedding; "
            "describe it in tracers/models/mlp_neurons.py"
        )
    return f"{stem}.{found[0][0]}", found[0][1]
