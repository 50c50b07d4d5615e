"""How many tokens fit into memory at once, and what to do when they do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

MAX_TOKENS = 4096
"""Tokens in one forward pass on a CPU: more overflow its caches, fewer leave its cores idle."""
FEWEST_TOKENS, MOST_TOKENS = 1024, 65536
"""Tokens in one forward pass on a GPU, whatever its memory."""


def tokens_that_fit(model) -> int:
    """Tokens in one forward pass: `MAX_TOKENS` on a CPU; on GPUs what half of their free memory takes, 1k to 64k.

    Every card that blocks lie on is looked at: the one with the least room for what its own blocks keep decides.

    Examples
    --------
    >>> tokens_that_fit(model)                                        # doctest: +SKIP
    4096
    """
    if model.device.type != "cuda":
        return MAX_TOKENS
    blocks = model.nn._module.get_submodule(model.architecture.layers)
    cards = Counter(next(block.parameters()).device for block in blocks)
    fits = min(
        (
            free_memory(card) // 2 // bytes_of_token(model.config, model.dtype.itemsize, n)
            for card, n in cards.items()
            if card.type == "cuda"  # others are offloaded, and come to a card when they run
        ),
        default=FEWEST_TOKENS,
    )
    return max(FEWEST_TOKENS, min(MOST_TOKENS, fits))


def bytes_of_token(config, itemsize: int, n_layers: int) -> int:
    """Bytes that a token of a batch takes on a device which holds so many of the blocks.

    It needs room for a block's working values and, in every block, for the keys and values of about four tokens: its
    row's share of the prefix and its own, and both again while the model puts them together. Query heads that share
    keys keep them once.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> sizes = dict(hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_key_value_heads=8)
    >>> bytes_of_token(SimpleNamespace(**sizes), 2, n_layers=32)
    737280
    """
    hidden = config.hidden_size
    heads = _size(config, "num_attention_heads", 1)  # a state counts as a token's keys
    keys = _size(config, "head_dim", hidden // heads) * _size(config, "num_key_value_heads", heads)
    working = 12 * hidden + 4 * _size(config, "intermediate_size", 4 * hidden)
    return itemsize * (working + 4 * 2 * n_layers * keys)


def _size(config, name: str, absent: int) -> int:
    """Return a size of a configuration, the largest where blocks differ in it."""
    value = getattr(config, name, None) or absent
    return value if isinstance(value, int) else max(value)


def free_memory(card: torch.device) -> int:
    """Bytes that a GPU still has, what PyTorch holds without using it included.

    Examples
    --------
    >>> free_memory(torch.device("cuda:0")) // 2**30                  # doctest: +SKIP
    57
    """
    held, used = torch.cuda.memory_reserved(card), torch.cuda.memory_allocated(card)
    return torch.cuda.mem_get_info(card)[0] + held - used


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that the device's memory was not enough."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in str(error) for words in ("not enough memory", "can't allocate memory")
    )


def halves(rows: list) -> list[list]:
    """Split rows in two."""
    middle = len(rows) // 2
    return [rows[:middle], rows[middle:]]


def in_halves(run: Callable, rows, split: Callable = halves) -> list[tuple[Any, Any]]:
    """(rows, run(rows)), in halves when memory runs out; `split` gives the halves."""
    try:
        return [(rows, run(rows))]
    except (MemoryError, RuntimeError) as error:
        if len(rows) == 1 or not out_of_memory(error):
            raise
    # Only here, where the error is gone, is the memory free that its traceback held.
    return [done for half in split(rows) for done in in_halves(run, half, split)]


def batches(lengths: Sequence[int], max_tokens: int, one_length: bool = False) -> list[list[int]]:
    """Rows to run together: of similar length, at most `max_tokens` including padding, at least one row.

    Parameters
    ----------
    one_length
        Rows of the same length only, so that nothing is padded.

    Examples
    --------
    >>> batches([5, 9, 4, 8], 10)
    [[1], [3], [0, 2]]
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    found: list[list[int]] = []
    for row in order:
        first = found[-1][0] if found else row
        fits = found and (len(found[-1]) + 1) * lengths[first] <= max_tokens
        if fits and not (one_length and lengths[first] != lengths[row]):
            found[-1].append(row)
        else:
            found.append([row])
    return found


def in_batches(
    model,
    run: Callable,
    lengths: Sequence[int],
    max_tokens: int | None = None,
    one_length: bool = False,
) -> Iterator[tuple[list[int], Any]]:
    """(rows, run(rows)) of rows of some lengths, batch by batch, in halves when memory runs out.

    Parameters
    ----------
    run
        Runs rows, given by their numbers.
    max_tokens
        Tokens in one forward pass, `tokens_that_fit` by default.
    one_length
        See `batches`.
    """
    for rows in batches(lengths, max_tokens or tokens_that_fit(model), one_length):
        yield from in_halves(run, rows)
