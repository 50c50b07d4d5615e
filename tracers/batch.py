"""Prompts whose prefixes are run once, and whose statements can then be run many times and in parts."""

from __future__ import annotations

from collections.abc import Sequence

import nnsight
import torch
from transformers import DynamicCache

from tracers.alignment import Prompt
from tracers.errors import TracerError
from tracers.packing import Packed

Caches = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values per block; dims row x head x token x head size."""


class Statements:
    """Statements of several prompts, on the key-value caches of their prefixes.

    >>> statements = Statements(model, prompts)                        # doctest: +SKIP

    A prefix that several prompts share is run once. Prompts of unequal length are padded on the right; positions
    and attention masks are written out, so that a row gives what it would give alone. Raises TracerError for a
    prompt longer than the window of a model that mixes sliding and full attention.
    """

    def __init__(self, model, prompts: Sequence[Prompt]):
        self.model = model
        self.lengths = [len(p.statement) for p in prompts]
        self.ids, self._valid = padded([p.statement for p in prompts])
        prefixes = list(dict.fromkeys(p.prefix for p in prompts))
        self._prefix_of = torch.tensor([prefixes.index(p.prefix) for p in prompts])
        prefix_ids, self._prefix_valid = padded(prefixes)
        self._prefix = _run_prefixes(model.nn, prefix_ids) if prefix_ids.shape[1] else []
        self._statement: Caches = []

    def inputs(self, packed: Packed, caches: Caches, start: int = 0) -> dict:
        """Keyword arguments of a forward pass over packed rows.

        caches: what `prefix_caches` or `run_caches` gave for these rows. start: the first block that will run;
        the ones before it are skipped, and their caches need no rows.
        """
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(caches):
            few = slice(None) if layer >= start else slice(0, 1)
            cache.update(keys[few], values[few], layer)
        n_cached = caches[0][0].shape[2] if caches else 0
        lengths = self._prefix_valid.sum(1)[self._prefix_of[packed.prompt]]
        return dict(
            input_ids=self.ids[packed.prompt[:, None], packed.token.clamp(min=0)],
            position_ids=(lengths[:, None] + packed.token).clamp(min=0),
            attention_mask=self._mask(packed, n_cached),
            past_key_values=cache,
            use_cache=True,
        )

    def prefix_caches(self, packed: Packed) -> Caches:
        """Per block, keys and values of each row's prefix."""
        return _select(self._prefix, self._prefix_of[packed.prompt])

    def keep_run(self, cache: DynamicCache) -> None:
        """Keep keys and values of prefix and statement of every prompt, from a run of `packing.whole`."""
        self._statement = [(layer.keys, layer.values) for layer in cache.layers]

    def run_caches(self, packed: Packed) -> Caches:
        """Per block, keys and values of each row's prefix and whole statement, from the run that was kept."""
        return _select(self._statement, packed.prompt)

    def n_keys(self) -> int:
        """Cached keys that a row holds beside its own: those of the longest prefix and of the longest statement."""
        return self._prefix_valid.shape[1] + self.ids.shape[1]

    def _mask(self, packed: Packed, n_cached: int) -> torch.Tensor:
        """The additive mask that keeps segments apart, and keys out of reach where all blocks slide a window."""
        config = self.model.config
        allowed, distance = self._allowed(packed, n_cached)
        window = getattr(config, "sliding_window", None)
        kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
        if window is not None and int(distance.max()) >= window and "sliding_attention" in kinds:
            if len(kinds) > 1:
                raise TracerError(
                    f"model {self.model.name}: a prompt of {int(distance.max()) + 1} tokens is longer than the window "
                    f"of {window} that some of its blocks slide; use fewer or shorter few-shot examples"
                )
            allowed &= distance < window
        dtype = self.model.dtype
        return torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]

    def _allowed(self, packed: Packed, n_cached: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Which keys each slot may see, and how many positions back they are; dims row x slot x key.

        The keys are those of the prefix, of the unpatched statement (if kept), and of the row itself.
        """
        valid = self._prefix_valid[self._prefix_of[packed.prompt]]
        lengths = valid.sum(1)[:, None]
        rows, width = packed.token.shape
        prefix = valid[:, None, :].expand(rows, width, -1)
        positions = [torch.arange(valid.shape[1]).expand(rows, -1)]
        parts = [prefix]
        if n_cached > valid.shape[1]:
            before = torch.arange(self.ids.shape[1])
            parts.append(before < packed.begin[:, :, None])
            positions.append(lengths + before)
        same = packed.begin[:, :, None] == packed.begin[:, None, :]
        parts.append(same & (packed.token[:, None, :] <= packed.token[:, :, None]))
        positions.append(lengths + packed.token)
        distance = (lengths + packed.token)[:, :, None] - torch.cat(positions, dim=1)[:, None, :]
        return torch.cat(parts, dim=2), distance


def _select(caches: Caches, rows: torch.Tensor) -> Caches:
    return [(k.index_select(0, rows.to(k.device)), v.index_select(0, rows.to(v.device))) for k, v in caches]


def padded(sequences: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences padded on the right with 0, and which entries are real; dims sequence x token.

    >>> [part.tolist() for part in padded([[5, 6], [7]])]
    [[[5, 6], [7, 0]], [[True, True], [True, False]]]
    """
    width = max(map(len, sequences))
    rows = [
        [*sequence, *[0] * (width - len(sequence))] for sequence in sequences
    ]  # made at once, which is faster
    ids = torch.tensor(rows, dtype=torch.long).reshape(len(rows), width)
    return ids, torch.arange(width) < torch.tensor([len(sequence) for sequence in sequences])[:, None]


def _run_prefixes(nn, ids) -> Caches:
    """Keys and values of each prefix; causal attention makes the padding on the right harmless."""
    with torch.no_grad():
        with nn.trace(input_ids=ids, past_key_values=DynamicCache(), use_cache=True, logits_to_keep=1):
            cache = nnsight.save(nn.output.past_key_values)
    return [(layer.keys, layer.values) for layer in cache.layers]
