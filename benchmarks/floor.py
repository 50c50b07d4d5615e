"""The floor: the minimal arithmetic of an exact patch grid at `resid_post`, and how fast the device does arithmetic.

We count multiply-adds of matrix products (half the number of floating-point operations; norms, softmax and rotations
are left out, so the true floor is slightly higher). With hidden size d, key and value size k (smaller than d if heads
share them) and MLP size f, one token costs

    keys and values         2 d k
    the rest of a block     2 d d  (query, output)  +  3 d f  (MLP)  +  2 d per key that the token attends to

and the task needs

    prefix      each distinct one once; in the last block only keys and values, as nothing reads its output
    statements  each unpatched run once, on the keys of its prefix; in the last block all keys and values, and the
                rest of the block at the last token only
    cells       for a patch after block l at token p: the blocks above l, for tokens from p on, on the unpatched run's
                keys before p; in the last block keys and values of those tokens, and the rest at the last token
    nothing     for cells at tokens where both runs agree, and after the last block at any token but the last; after
                the last block at the last token, only the answers are computed
    answers     two rows of the unembedding, for each run and each cell

No method that runs whole blocks needs less. In the first block above a patch, only the patched token has a new query,
key and value; reusing those of the later tokens would save another 4 % at 8 layers and less with more layers, which is
not counted.

>>> from benchmarks.shapes import SHAPES
>>> round(2 * multiply_adds(SHAPES["small"]) / SHAPES["small"].pairs / 1e9, 2)  # GFLOP per pair
4.16
"""

from __future__ import annotations

import statistics
import time

from benchmarks.shapes import Shape


def multiply_adds(shape: Shape) -> int:
    """Return the multiply-adds of the whole task (all pairs), as described in the module's docstring."""
    prefixes = 1 if shape.shared_prefix else shape.pairs
    first = shape.first_difference if shape.use_unchanged else 0
    cells = sum(
        _cell(shape, layer, token) for layer in range(shape.layers) for token in range(first, shape.statement)
    )
    return prefixes * _prefix(shape) + shape.pairs * (_statement(shape) + cells)


def _keys(shape: Shape) -> int:
    return 2 * shape.hidden * shape.kv_size


def _rest(shape: Shape, n_keys: int) -> int:
    """Return the cost of one token in one block, without its key and value."""
    d = shape.hidden
    return 2 * d * d + 3 * d * shape.intermediate + 2 * d * n_keys


def _blocks(shape: Shape, n_blocks: int, begin: int, end: int, *, read: bool) -> int:
    """Return the cost of tokens [begin, end) in the last `n_blocks` blocks; `read` if the final output is needed."""
    if not n_blocks:
        return 0
    full = sum(_keys(shape) + _rest(shape, token + 1) for token in range(begin, end))
    last = (end - begin) * _keys(shape) + (_rest(shape, end) if read else 0)
    return (n_blocks - 1) * full + last


def _answers(shape: Shape) -> int:
    return 2 * shape.hidden


def _prefix(shape: Shape) -> int:
    return _blocks(shape, shape.layers, 0, shape.prefix, read=False)


def _statement(shape: Shape) -> int:
    end = shape.prefix + shape.statement
    return _blocks(shape, shape.layers, shape.prefix, end, read=True) + _answers(shape)


def _cell(shape: Shape, layer: int, token: int) -> int:
    above = shape.layers - 1 - layer
    if not above and token < shape.statement - 1:
        return 0
    end = shape.prefix + shape.statement
    return _blocks(shape, above, shape.prefix + token, end, read=True) + _answers(shape)


def matmul_rate(
    device: str = "cpu", dtype: str = "float32", size: int = 2048, repeats: int = 5
) -> dict[str, float]:
    """Return multiply-adds per second (wall time, and CPU time of all threads) of square matrix products; medians.

    Examples
    --------
    >>> sorted(matmul_rate(size=64))
    ['cpu_seconds', 'seconds']
    """
    import torch

    a, b = (torch.randn(size, size, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    taken: dict[str, list[float]] = {"seconds": [], "cpu_seconds": []}
    for _ in range(repeats):
        synchronize(device)
        begin, begin_cpu = time.perf_counter(), time.process_time()
        a @ b
        synchronize(device)
        taken["seconds"].append(time.perf_counter() - begin)
        taken["cpu_seconds"].append(time.process_time() - begin_cpu)
    return {what: size**3 / max(statistics.median(each), 1e-9) for what, each in taken.items()}


def synchronize(device: str) -> None:
    """Wait until the device has finished its work."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()
