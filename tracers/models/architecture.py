"""How each architecture spells a transformer block, and where its sites are.

nnsight reaches modules by name. `rename` gives the modules that we need one name in every architecture:

    layers, attn, mlp, unembed      the block list, its two halves, the unembedding
    attn_add, mlp_add               the module whose output is *added* to the stream (a post-norm in Gemma 2
                                    and OLMo 2, the half itself elsewhere)
    heads                           the attention's output projection, whose *input* is all heads side by side
    mid                             the module whose *input* is the stream between the halves; absent where
                                    the halves run in parallel (GPT-NeoX)

The structure is recognised by looking, not by a list of model types, and `tracers.models.validation` then proves
that the recognised sites behave as promised.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from posttrace.tracers.errors import TracerError
from posttrace.tracers.sites import TABLE, is_per_head

PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense")
"""What architectures call the linear map from the heads to the stream, within the attention."""


@dataclass(frozen=True)
class Architecture:
    """Names of one architecture's modules, relative to the model (`layers`) or to a block (the rest)."""

    layers: str
    attn: str
    mid: str | None
    attn_add: str | None = None
    mlp_add: str | None = None
    unembed: str = "lm_head"
    heads: str | None = None

    @property
    def rename(self) -> dict[str, list[str]]:
        """The `rename=` argument of nnsight: path -> our names."""
        names: dict[str, list[str]] = {}
        for path, name in [
            (self.layers, "layers"),
            (self.unembed, "unembed"),
            (self.attn, "attn"),
            (self.attn_add or self.attn, "attn_add"),
            (self.mlp_add or "mlp", "mlp_add"),
            (self.mid, "mid"),
            (self.heads, "heads"),
        ]:
            if path is not None and path != name:
                names.setdefault(path, []).append(name)
        return names

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites as wide as the stream that this architecture has, in the order in which a forward pass reaches them."""
        return tuple(site for site in self.patchable if not is_per_head(site))

    @property
    def patchable(self) -> tuple[str, ...]:
        """Every site that can be patched, those of single heads included, in the same order."""
        return tuple(row.name for row in TABLE if row.requires is None or getattr(self, row.requires))


def site_shape(config, site: str) -> tuple[int, int]:
    """How many values a site has per block and token, and how wide: the heads at `z`, else one of hidden size.

    >>> site_shape(model.config, "z")                           # doctest: +SKIP
    (4, 40)

    Heads are query heads, however many share keys and values.
    """
    if not is_per_head(site):
        return 1, config.hidden_size
    heads = config.num_attention_heads
    return heads, getattr(config, "head_dim", None) or config.hidden_size // heads


def recognise(model) -> Architecture:
    """Find out how `model` (a transformers causal language model) spells its blocks.

    Raises TracerError when the structure is none that the sites can be read from.
    """
    layers = next((p for p in ("model.layers", "transformer.h", "gpt_neox.layers") if _has(model, p)), None)
    if layers is None:
        raise _unknown(model, "no list of blocks at model.layers, transformer.h or gpt_neox.layers")
    block = set(model.get_submodule(layers)[0]._modules)
    unembed = next((p for p in ("lm_head", "embed_out") if _has(model, p)), None)
    attn = next((p for p in ("self_attn", "attn", "attention") if p in block), None)
    if unembed is None or attn is None or "mlp" not in block:
        raise _unknown(model, f"its block holds {sorted(block)}")
    projection = next((p for p in PROJECTIONS if _has(model, f"{layers}.0.{attn}.{p}")), None)
    heads = projection and f"{attn}.{projection}"
    plain = Architecture(layers=layers, attn=attn, unembed=unembed, heads=heads, mid=None)
    if "pre_feedforward_layernorm" in block:  # Gemma 2 and 3: norms before and after each half
        return replace(
            plain,
            mid="pre_feedforward_layernorm",
            attn_add="post_attention_layernorm",
            mlp_add="post_feedforward_layernorm",
        )
    if "post_feedforward_layernorm" in block:  # OLMo 2 and 3: norms after each half only
        return replace(
            plain, mid="mlp", attn_add="post_attention_layernorm", mlp_add="post_feedforward_layernorm"
        )
    if getattr(model.config, "use_parallel_residual", False):  # GPT-NeoX
        return plain
    mid = next((p for p in ("post_attention_layernorm", "ln_2") if p in block), None)
    if mid is None:
        raise _unknown(model, f"its block holds {sorted(block)}")
    return replace(plain, mid=mid)


def _has(model, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


def _unknown(model, why: str) -> TracerError:
    return TracerError(
        f"architecture {type(model).__name__}: {why}; known are the structures of Llama, Mistral, Qwen, Gemma, "
        "OLMo, GPT-NeoX and GPT-2; describe this one in tracers/models/architecture.py"
    )
