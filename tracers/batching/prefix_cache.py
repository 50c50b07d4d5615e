"""Run the prefixes of prompts once, then their statements many times and in parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nnsight
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from posttrace.tracers.batching.packing import Packed, whole
from posttrace.tracers.batching.padding import right_padded
from posttrace.tracers.errors import TracerError
from posttrace.tracers.prompts import Prompt

MASKED = "takes_a_mask_for_each_kind"
"""Set on a model that `give_each_kind_its_mask` has prepared."""

Caches = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values per block; dims row x head x token x head size."""


@dataclass(frozen=True)
class PackedRows:
    """Packed rows on the model's device, with the caches to run them from any block."""

    packed: Packed
    caches: Caches
    """What the rows see before their own tokens."""
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor

    def inputs(self, start: int = 0) -> dict:
        """Keyword arguments of a forward pass; start: the first block that will run, the ones before are skipped."""
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self.caches):
            if layer < start:  # only its length is asked for
                keys, values = keys[:1].clone(), values[:1].clone()
            held = DynamicLayer()
            held.lazy_initialization(keys, values)
            # A run adds its own keys to a copy: the same tensors serve every run.
            held.keys, held.values = keys, values
            cache.layers.append(held)
        return dict(
            input_ids=self.input_ids,
            position_ids=self.position_ids,
            attention_mask=self.attention_mask,
            past_key_values=cache,
            use_cache=True,
        )


@dataclass(frozen=True)
class StatementRows:
    """Prompts as rows of one forward pass: their statements, on the caches of prefixes if the model allows it."""

    inputs: dict
    """Keyword arguments of the pass."""
    row: torch.Tensor
    """Row of each prompt; dims prompt."""
    last: torch.Tensor
    """Slot of its last token; dims prompt."""
    first: torch.Tensor
    """Slot of its statement's first token; dims prompt."""


def statement_rows(model, prompts: Sequence[Prompt]) -> StatementRows:
    """Prompts as rows of one forward pass, on cached prefixes or whole, as the architecture allows.

    Examples
    --------
    >>> statement_rows(model, prompts).last.shape                      # doctest: +SKIP
    torch.Size([16])
    """
    if model.architecture.whole is None:
        batch = StatementBatch(model, prompts)
        rows = batch.on_prefixes(whole(batch.lengths))
        packed = rows.packed
        return StatementRows(rows.inputs(), packed.row, packed.last, torch.zeros_like(packed.last))
    return whole_rows(model, prompts)


def whole_rows(model, prompts: Sequence[Prompt]) -> StatementRows:
    """Prompts as rows of one whole forward pass, without a cache.

    A token sees none after it, which makes the padding on the right harmless.

    Examples
    --------
    >>> whole_rows(model, prompts).inputs["use_cache"]                 # doctest: +SKIP
    False
    """
    lengths = torch.tensor([len(p.ids) for p in prompts], device=model.device)
    first = torch.tensor([p.start for p in prompts], device=model.device)
    inputs = dict(input_ids=right_padded([p.ids for p in prompts])[0], use_cache=False)
    return StatementRows(inputs, torch.arange(len(prompts), device=model.device), lengths - 1, first)


class StatementBatch:
    """Statements of several prompts, on the key-value caches of their prefixes.

    A prefix that several prompts share is run once. Prompts of unequal length are padded on the right; positions and
    attention masks are written out, so that a row gives what it would give alone.

    Examples
    --------
    >>> batch = StatementBatch(model, prompts)                        # doctest: +SKIP
    """

    def __init__(self, model, prompts: Sequence[Prompt]):
        self.model = model
        self.lengths = [len(p.statement) for p in prompts]
        self.ids = right_padded([p.statement for p in prompts])[0].to(model.device)
        prefixes = list(dict.fromkeys(p.prefix for p in prompts))
        self._prefix_of = torch.tensor([prefixes.index(p.prefix) for p in prompts], device=model.device)
        prefix_ids, self._prefix_valid = (part.to(model.device) for part in right_padded(prefixes))
        self._prefix = _run_prefixes(model.nn, prefix_ids) if prefix_ids.shape[1] else []
        self._statement: Caches = []

    def on_prefixes(self, packed: Packed) -> PackedRows:
        """Packed rows that see their prefix."""
        packed = packed.to(self.model.device)
        return self._rows(packed, _select(self._prefix, self._prefix_of[packed.prompt]))

    def on_run(self, packed: Packed) -> PackedRows:
        """Packed rows that see their prefix and the tokens before them of the run that was kept."""
        packed = packed.to(self.model.device)
        return self._rows(packed, _select(self._statement, packed.prompt))

    def _rows(self, packed: Packed, caches: Caches) -> PackedRows:
        lengths = self._prefix_valid.sum(1)[self._prefix_of[packed.prompt]]
        return PackedRows(
            packed,
            caches,
            input_ids=self.ids[packed.prompt[:, None], packed.token.clamp(min=0)],
            position_ids=(lengths[:, None] + packed.token).clamp(min=0),
            attention_mask=self._mask(packed, caches[0][0].shape[2] if caches else 0),
        )

    def keep_run(self, cache: DynamicCache) -> None:
        """Keep keys and values of prefix and statement of every prompt, from a run of `packing.whole`."""
        # The layers of a model with attention in every block have both, and hold them after a run.
        self._statement = [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[union-attr, misc]

    def n_keys(self) -> int:
        """Count a row's cached keys (its own tokens' aside): those of the longest prefix and the longest statement."""
        return self._prefix_valid.shape[1] + self.ids.shape[1]

    def _mask(self, packed: Packed, n_cached: int) -> torch.Tensor:
        """Return the additive mask that keeps segments apart, and keys out of reach where blocks slide a window.

        Where some blocks slide a window that a prompt exceeds and others see everything, it holds one mask for each
        kind, in the order of their names, side by side along the dimension of heads (see `give_each_kind_its_mask`).
        """
        config = self.model.config
        allowed, distance = self._allowed(packed, n_cached)
        window = getattr(config, "sliding_window", None)
        kinds = sorted(set(getattr(config, "layer_types", None) or ["sliding_attention"]))
        if window is None or int(distance.max()) < window or "sliding_attention" not in kinds:
            return self._additive(allowed)
        masks = [
            self._additive(allowed & (distance < window) if kind == "sliding_attention" else allowed)
            for kind in kinds
        ]
        if len(masks) > 1 and not getattr(self.model.nn._module, MASKED, False):
            raise TracerError(
                f"model {self.model.name}: a prompt of {int(distance.max()) + 1} tokens is longer than the window "
                f"of {window} that some of its blocks slide, and a server takes one mask for all; use fewer or "
                "shorter few-shot examples"
            )
        return torch.cat(masks, dim=1)

    def _additive(self, allowed: torch.Tensor) -> torch.Tensor:
        dtype = self.model.dtype
        mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
        return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]

    def _allowed(self, packed: Packed, n_cached: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Which keys each slot may see, and how many positions back they are; dims row x slot x key.

        The keys are those of the prefix, of the unpatched statement (if kept), and of the row itself.
        """
        valid = self._prefix_valid[self._prefix_of[packed.prompt]]
        lengths = valid.sum(1)[:, None]
        rows, width = packed.token.shape
        prefix = valid[:, None, :].expand(rows, width, -1)
        device = valid.device
        positions = [torch.arange(valid.shape[1], device=device).expand(rows, -1)]
        parts = [prefix]
        if n_cached > valid.shape[1]:
            before = torch.arange(self.ids.shape[1], device=device)
            parts.append(before < packed.begin[:, :, None])
            positions.append(lengths + before)
        same = packed.begin[:, :, None] == packed.begin[:, None, :]
        parts.append(same & (packed.token[:, None, :] <= packed.token[:, :, None]))
        positions.append(lengths + packed.token)
        distance = (lengths + packed.token)[:, :, None] - torch.cat(positions, dim=1)[:, None, :]
        return torch.cat(parts, dim=2), distance


def give_each_kind_its_mask(module) -> None:
    """Let a model whose blocks attend in several ways take a mask for each, side by side in one tensor.

    transformers takes them by name in a dict, which nnsight does not let through. Other masks stay as they are.

    Examples
    --------
    >>> give_each_kind_its_mask(module)                                # doctest: +SKIP
    """
    kinds = sorted(set(getattr(module.config, "layer_types", None) or ()))
    if len(kinds) < 2:
        return

    def by_name(_, args, kwargs):
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.dim() == 4 and mask.shape[1] == len(kinds):
            masks = mask.split(1, dim=1)
            return args, {**kwargs, "attention_mask": dict(zip(kinds, masks, strict=True))}
        return None

    module.register_forward_pre_hook(by_name, with_kwargs=True)
    setattr(module, MASKED, True)


def _select(caches: Caches, rows: torch.Tensor) -> Caches:
    return [(k.index_select(0, rows.to(k.device)), v.index_select(0, rows.to(v.device))) for k, v in caches]


def _run_prefixes(nn, ids) -> Caches:
    """Keys and values of each prefix; causal attention makes the padding on the right harmless."""
    with torch.no_grad():
        with nn.trace(input_ids=ids, past_key_values=DynamicCache(), use_cache=True, logits_to_keep=1):
            cache = nnsight.save(nn.output.past_key_values)
    return [(layer.keys, layer.values) for layer in cache.layers]
