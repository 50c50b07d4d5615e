"""Lay the tokens that a patch can change side by side, so that no token is computed that stays as it was.

A patch at token p of a statement leaves the tokens before p untouched, so the cell (layer, p) needs the tokens
from p on only: its *segment*. Segments of one prompt are packed into *rows* of token slots; the attention mask
(tracers.batching.prefix_cache) keeps them apart. Nothing here knows a model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from posttrace.tracers.batching.memory import batches, in_halves

CAPACITY = 128
"""Slots of a row, unless a statement is longer: wide enough to keep a device busy, narrow enough that few
attention scores are computed between segments only to be masked."""


@dataclass(frozen=True)
class Packed:
    """Some rows of packed segments, and where each cell's segment lies."""

    prompt: torch.Tensor
    """Which prompt a row belongs to; dims row."""
    token: torch.Tensor
    """Statement token in a slot, -1 in an unused one; dims row x slot."""
    begin: torch.Tensor
    """Token at which the slot's segment begins, -1 in an unused slot; dims row x slot."""
    cells: torch.Tensor
    """The cells, as given (source, prompt, token); dims cell x 3."""
    row: torch.Tensor
    """Row of each cell's segment; dims cell."""
    first: torch.Tensor
    """Slot of the segment's first token, the patched one; dims cell."""
    last: torch.Tensor
    """Slot of the segment's last token, which is the prompt's last; dims cell."""

    def __len__(self) -> int:
        return len(self.prompt)

    def to(self, device: torch.device) -> Packed:
        """Move to a device, where it is used as indices."""
        return Packed(*(getattr(self, field.name).to(device) for field in fields(self)))


def pack(cells: Sequence[tuple[int, int, int]], lengths: Sequence[int], max_tokens: int) -> list[Packed]:
    """Pack the segments of cells (source, prompt, token) into batches of at most `max_tokens` slots.

    Parameters
    ----------
    lengths
        Statement tokens of each prompt. A row holds segments of one prompt and source, longest first, filled up with
        the longest that still fit. Every batch has at least one row, however small `max_tokens`.

    Examples
    --------
    >>> [b.token.tolist() for b in pack([(0, 0, 0), (0, 0, 1), (0, 0, 2)], lengths=[3], max_tokens=1000)]
    [[[0, 1, 2, 1, 2, 2]]]
    """
    capacity = max(CAPACITY, *lengths)
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for source, prompt, token in cells:
        groups[source, prompt].append(token)
    rows: list[tuple[int, int, list[int]]] = []
    for (source, prompt), tokens in groups.items():
        for bin_ in _bins(sorted(tokens), lengths[prompt], capacity):
            rows.append((source, prompt, bin_))
    widths = [sum(lengths[prompt] - token for token in tokens) for _, prompt, tokens in rows]
    return [_batch([rows[i] for i in some], lengths) for some in batches(widths, max_tokens)]


def packed_in_halves(run: Callable, packed: Packed, lengths: Sequence[int]) -> list[tuple[Packed, Any]]:
    """(packed, run(packed)), its cells packed again into halves when memory runs out."""

    def split(packed: Packed) -> list[Packed]:
        return pack([tuple(cell) for cell in packed.cells.tolist()], lengths, packed.token.numel() // 2)

    return in_halves(run, packed, split)


def whole(lengths: Sequence[int]) -> Packed:
    """One row per prompt holding its whole statement, for a run without patches.

    Examples
    --------
    >>> whole([2, 3]).token.tolist()
    [[0, 1, -1], [0, 1, 2]]
    """
    return _batch([(0, prompt, [0]) for prompt in range(len(lengths))], lengths)


def _bins(tokens: list[int], length: int, capacity: int) -> list[list[int]]:
    """Distribute segments (named by their first token, the longest ones first) over rows."""
    bins: list[list[int]] = []
    room: list[int] = []
    for token in tokens:
        size = length - token
        fitting = next((i for i, free in enumerate(room) if free >= size), None)
        if fitting is None:
            bins.append([token])
            room.append(capacity - size)
        else:
            bins[fitting].append(token)
            room[fitting] -= size
    return bins


def _batch(rows: list[tuple[int, int, list[int]]], lengths: Sequence[int]) -> Packed:
    width = max(sum(lengths[prompt] - t for t in tokens) for _, prompt, tokens in rows)
    token = torch.full((len(rows), width), -1)
    begin = torch.full((len(rows), width), -1)
    cells, places = [], []
    for r, (source, prompt, tokens) in enumerate(rows):
        slot = 0
        for t in tokens:
            end = slot + lengths[prompt] - t
            token[r, slot:end] = torch.arange(t, lengths[prompt])
            begin[r, slot:end] = t
            cells.append((source, prompt, t))
            places.append((r, slot, end - 1))
            slot = end
    row, first, last = torch.tensor(places).T
    of_prompt = torch.tensor([prompt for _, prompt, _ in rows])
    return Packed(of_prompt, token, begin, torch.tensor(cells), row, first, last)
