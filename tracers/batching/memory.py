"""How many tokens fit into memory at once, and what to do when they do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

MAX_TOKENS = 4096
"""Tokens in one forward pass on a CPU: more overflow its caches, fewer leave its cores idle."""


def tokens_that_fit(model) -> int:
    """Tokens in one forward pass: `MAX_TOKENS` on a CPU; on a GPU what half of its free memory takes, 1k to 64k.

    A token needs room for a block's working values and, in every block, for the keys and values of about four tokens:
    its row's share of the prefix and its own, and both again while the model puts them together.

    Examples
    --------
    >>> tokens_that_fit(model)                                        # doctest: +SKIP
    4096
    """
    if model.device.type != "cuda":
        return MAX_TOKENS
    config = model.config
    working = 12 * model.hidden_size + 4 * getattr(config, "intermediate_size", 4 * model.hidden_size)
    heads = getattr(config, "num_attention_heads", None) or 1  # a state counts as a token's keys
    head = getattr(config, "head_dim", None) or model.hidden_size // heads
    keys = head * (getattr(config, "num_key_value_heads", None) or heads)
    needed = model.dtype.itemsize * (working + 4 * 2 * model.n_layers * keys)
    return max(1024, min(65536, free_memory(model) // 2 // needed))


def free_memory(model) -> int:
    """Bytes that the fullest of a model's GPUs still has, what PyTorch holds without using it included.

    Examples
    --------
    >>> free_memory(model) // 2**30                                   # doctest: +SKIP
    57
    """
    devices = {parameter.device for parameter in model.nn._module.parameters() if parameter.is_cuda}
    return min(
        torch.cuda.mem_get_info(device)[0]
        + torch.cuda.memory_reserved(device)
        - torch.cuda.memory_allocated(device)
        for device in devices
    )


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that the device's memory was not enough."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in str(error) for words in ("not enough memory", "can't allocate memory")
    )


def in_halves(run, rows: list):
    """(rows, run(rows)), in halves when memory runs out."""
    try:
        return [(rows, run(rows))]
    except (MemoryError, RuntimeError) as error:
        if len(rows) == 1 or not out_of_memory(error):
            raise
    middle = len(rows) // 2
    return in_halves(run, rows[:middle]) + in_halves(run, rows[middle:])


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
