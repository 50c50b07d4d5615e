"""How each architecture spells a transformer block, where its sites are, and what its blocks allow.

nnsight reaches modules by name. `rename` gives the modules that we need one name in every architecture:

    layers, unembed                 the block list, the unembedding
    attn, mlp                       the two halves of a block (a mixer of another kind stands for attention)
    attn_add, mlp_add               the module whose output is *added* to the stream: a norm after the half (Gemma 2,
                                    OLMo 2), its last projection where the half adds the stream itself (BLOOM), else
                                    the half
    heads                           the attention's output projection, whose *input* is all heads side by side
    mid                             the module whose *input* is the stream between the halves; absent where
                                    the halves run in parallel (GPT-NeoX)

The structure is recognised by looking at every block, not by a list of model types, and `tracers.models.validation`
then proves that the recognised sites behave as promised.

There are two levels. *Full*: prompts share cached prefixes, and a run may begin at any block. *Whole passes*: where
blocks keep states instead of keys, or hand each other more than the stream, every run is one whole forward pass.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer

from posttrace.tracers.errors import TracerError
from posttrace.tracers.sites import PLAIN, TABLE, Form, is_per_head

ATTENTION = (
    "self_attn", "attn", "attention", "self_attention", "linear_attn", "mamba", "conv", "temporal_block",
)  # fmt: skip
"""What architectures call the half that mixes tokens."""
MLP = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "shared_mlp", "mlp_block", "fc2")
"""What they call the half that works on each token alone; `fc2` where its layers lie in the block."""
PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense", "attention.out_proj")
"""What they call the linear map from the heads to the stream, within the attention."""
AFTER_ATTENTION = ("post_self_attn_layernorm", "post_norm1", "post_operator_norm")
"""Norms of what attention adds."""
BEFORE_MLP = (
    "pre_feedforward_layernorm", "pre_mlp_layernorm", "pre_ff_layernorm", "feedforward_layernorm", "ffn_norm",
    "mlp_norm", "channel_pre_norm", "norm_2", "ln_2", "final_layer_norm",
)  # fmt: skip
"""Norms of the stream between the halves."""
AFTER_MLP = ("post_feedforward_layernorm", "post_mlp_layernorm", "post_norm2", "post_ffn_norm")
"""Norms of what the MLP adds."""
EITHER = "post_attention_layernorm"
"""The stream between the halves in Llama, what attention adds in Gemma 2 and OLMo 2."""
FACTORS = ("residual_multiplier", "residual_scale")
"""What a block calls the number that it multiplies with what it adds."""
ARGUMENTS = {
    "self", "hidden_states", "attention_mask", "position_ids", "past_key_values", "layer_past", "use_cache",
    "cache_position", "position_embeddings", "output_attentions", "output_router_logits", "encoder_hidden_states",
    "encoder_attention_mask", "kwargs", "super_kwargs",
}  # fmt: skip
"""What blocks take that depends on positions and cached keys alone."""
KINDS = {"full_attention", "sliding_attention"}
"""Kinds of attention whose masks we can write out."""

Paths = tuple[str, ...]
"""Names of one part, a different one for each kind of block that a model has."""


@dataclass(frozen=True)
class Architecture:
    """Names of one architecture's modules, relative to the model (`layers`) or to a block (the rest)."""

    layers: str
    unembed: str = "lm_head"
    attn: Paths = ()
    attn_add: Paths = ()
    mid: Paths = ()
    mlp: Paths = ()
    mlp_add: Paths = ()
    heads: Paths = ()
    form: Form = PLAIN
    """What a block does with the values at its sites."""
    cache: str = "past_key_values"
    """What the model calls the cache that it takes and gives."""
    whole: str | None = None
    """Why every run is a whole forward pass; None at the full level."""

    @property
    def rename(self) -> dict[str, list[str]]:
        """The `rename=` argument of nnsight: path -> our names."""
        names: dict[str, list[str]] = {}
        for role in ("layers", "unembed", "attn", "attn_add", "mlp", "mlp_add", "mid", "heads"):
            paths = getattr(self, role)
            for path in (paths,) if isinstance(paths, str) else paths:
                if path != role:
                    names.setdefault(path, []).append(role)
        return names

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites as wide as the stream that this architecture has, in the order in which a forward pass reaches them."""
        return tuple(site for site in self.patchable if not is_per_head(site))

    @property
    def patchable(self) -> tuple[str, ...]:
        """Every site that can be patched, those of single heads included, in the same order."""
        return tuple(row.name for row in TABLE if row.requires is None or getattr(self, row.requires))

    @property
    def attn_norm(self) -> bool:
        """Whether a norm lies between attention and the stream."""
        return any("norm" in path for path in self.attn_add)

    @property
    def mlp_norm(self) -> bool:
        """Whether a norm lies between the MLP and the stream."""
        return any("norm" in path for path in self.mlp_add)


def site_shape(config, site: str) -> tuple[int, int]:
    """How many values a site has per block and token, and how wide: the heads at `z`, else one of hidden size.

    Heads are query heads, however many share keys and values; latent attention says how wide its values are.

    Examples
    --------
    >>> site_shape(model.config, "z")                           # doctest: +SKIP
    (4, 40)
    """
    if not is_per_head(site):
        return 1, config.hidden_size
    heads = config.num_attention_heads
    width = getattr(config, "v_head_dim", None) or getattr(config, "head_dim", None)
    return heads, width or config.hidden_size // heads


def recognise(model) -> Architecture:
    """Find out how `model` (a transformers causal language model) spells its blocks.

    Raises
    ------
    TracerError
        If it has no list of blocks that hand a stream on.
    """
    path, unembed = _block_list(model), _output(model)
    blocks = list(model.get_submodule(path))
    parts = [_parts(block) for block in blocks]
    found: dict[str, Paths] = {}
    for role in parts[0]:
        names = [name for part in parts if (name := part[role])]
        found[role] = tuple(dict.fromkeys(names)) if len(names) == len(blocks) else ()
    for role, paths in found.items():
        # A name must not mean one part in some blocks and another in others (OLMo Hybrid).
        if any(sum(_has(block, path) for path in paths) > 1 for block in blocks):
            found[role] = ()
    if getattr(model.config, "use_parallel_residual", False) or not found["attn_add"]:
        found["mid"] = ()
    if not _heads_fit(model.config, blocks, found["heads"]):
        found["heads"] = ()
    arguments = inspect.signature(type(model).forward).parameters
    return Architecture(
        layers=path,
        unembed=unembed,
        **found,
        form=_form(blocks[0]),
        cache="cache_params" if "cache_params" in arguments else "past_key_values",
        whole=_why_whole(model.config, blocks),
    )


def _block_list(model) -> str:
    """Path of the list of blocks: the outermost list that is as long as the configuration says."""
    n = model.config.num_hidden_layers
    lists = [
        path for path, part in model.named_modules()
        if isinstance(part, torch.nn.ModuleList) and len(part) == n
    ]  # fmt: skip
    if not lists:
        raise _refused(model, f"has no list of {n} blocks, which its configuration says that it has")
    path = min(lists, key=lambda path: path.count("."))
    if "encoder" in path.split("."):
        raise _refused(
            model, "is an encoder: its tokens see those after them; give a model that generates text"
        )
    return path


def _output(model) -> str:
    output = model.get_output_embeddings()
    path = next((path for path, part in model.named_modules() if part is output), None)
    if path is None:
        raise _refused(model, "has no unembedding that can be found")
    return path


def _parts(block) -> dict[str, str | None]:
    """Names of one block's parts; all None where the block holds more than two halves and their norms."""
    names = dict.fromkeys(("attn", "attn_add", "mid", "mlp", "mlp_add", "heads"), None)
    children = {name for name, child in block.named_children() if any(True for _ in child.parameters())}
    norms = {name for name in children if "norm" in type(block.get_submodule(name)).__name__.lower()}
    norms |= {name for name, child in block.named_children() if name not in children}  # may be identities
    attn = [name for name in ATTENTION if name in children]
    mlp = [name for name in MLP if name in children]
    own = [*block.named_parameters(recurse=False), *block.named_buffers(recurse=False)]
    if own or children - norms - {*attn, *mlp, "fc1"} or len(attn) != 1 or not mlp or _norms_last(block):
        return names
    before, after = _first(BEFORE_MLP, norms), _first(AFTER_MLP, norms)
    between = _first(AFTER_ATTENTION, norms)
    if between is None and EITHER in norms and (before or "input_layernorm" not in norms):
        between = EITHER
    mid = before or (EITHER if EITHER in norms and between != EITHER else None)
    if between and mid is None:  # no norm but after each half (OLMo 2)
        mid = mlp[0]
    names["attn"], names["mid"] = attn[0], mid
    projection = next((p for p in PROJECTIONS if _has(block, f"{attn[0]}.{p}")), None)
    heads = projection and f"{attn[0]}.{projection}"
    names["heads"] = heads
    names["attn_add"] = between or (heads if _takes(block, attn[0], "residual") else attn[0])
    if len(mlp) > 1 or _adds_in_place(block):
        return names
    if mlp[0] == "fc2" and ".reshape(-1" in ast.unparse(
        _source(block)
    ):  # tokens of all rows in one line (OPT)
        names["mid"] = None
        return names
    last = [name for name, child in block.get_submodule(mlp[0]).named_children() if hasattr(child, "weight")]
    names["mlp"] = None if mlp[0] == "fc2" else mlp[0]
    names["mlp_add"] = after or (f"{mlp[0]}.{last[-1]}" if _takes(block, mlp[0], "residual") else mlp[0])
    return names


def _first(names: Sequence[str], among: set[str]) -> str | None:
    return next((name for name in names if name in among), None)


def _has(module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


def _takes(block, path: str, argument: str) -> bool:
    return argument in inspect.signature(type(block.get_submodule(path)).forward).parameters


def _norms_last(block) -> bool:
    """Whether the block normalises the stream itself (OPT 350M): nothing is added to it then."""
    return not getattr(block, "do_layer_norm_before", True)


def _source(block) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(type(block).forward))))


def _adds_in_place(block) -> bool:
    """Whether what the MLP gives is changed after it was given (Falcon)."""
    changed = [node.target for node in ast.walk(_source(block)) if isinstance(node, ast.AugAssign)]
    return any(isinstance(target, ast.Name) and "mlp" in target.id for target in changed)


def _form(block) -> Form:
    tree = _source(block)
    returned = [node.value for node in ast.walk(tree) if isinstance(node, ast.Return)]
    return Form(
        factor=next((float(getattr(block, name)) for name in FACTORS if hasattr(block, name)), 1.0),
        returns_tuple=isinstance(returned[-1], ast.Tuple),
        stream=getattr(getattr(block, "config", None), "altup_active_idx", None),
    )


def _heads_fit(config, blocks, heads: Paths) -> bool:
    """Whether every block has heads that attend, as many and as wide as the configuration says."""
    if not heads or any(issubclass(kind, LinearAttentionLayer) for kind in _cached(config)):
        return False
    n, width = site_shape(config, "z")
    projections = [block.get_submodule(path) for block in blocks for path in heads if _has(block, path)]
    weights = [getattr(projection, "weight", None) for projection in projections]
    return all(w is None or w.numel() == n * width * config.hidden_size for w in weights)


def _cached(config) -> list[type]:
    """Return what each block keeps of the tokens before, as transformers says it; none where it does not."""
    try:
        return [type(layer) for layer in DynamicCache(config=config).layers]
    except (KeyError, ValueError, AttributeError):
        return []


def _why_whole(config, blocks) -> str | None:
    """Return what keeps this architecture from sharing prefixes and beginning at any block, if anything does."""
    taken = set(inspect.signature(type(blocks[0]).forward).parameters) - ARGUMENTS
    if not getattr(config, "alibi", True):
        taken.discard("alibi")
    if taken:
        return f"its blocks also take {', '.join(sorted(taken))}"
    kinds = set(getattr(config, "layer_types", None) or ()) - KINDS
    held = _cached(config)
    if len(held) < len(blocks) and kinds:
        return f"its blocks are of the kinds {', '.join(sorted(kinds))}"
    other = [i for i, kind in enumerate(held) if kind not in (DynamicLayer, DynamicSlidingWindowLayer)]
    if other:
        some = ", ".join(map(str, other[:4])) + (" ..." if len(other) > 4 else "")
        return f"its blocks {some} keep a {held[other[0]].__name__}, not keys and values"
    if kinds:
        return f"its attention is of the kinds {', '.join(sorted(kinds))}"
    if any(buffer.dim() == 4 for block in blocks for buffer in block.buffers()):
        return "its attention brings its own mask"
    return None


def _refused(model, why: str) -> TracerError:
    return TracerError(f"architecture {type(model).__name__} {why}")
