"""Count what a run costs before it begins: forward passes and multiply-adds, from lengths and shapes alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from posttrace.tracers.batching.packing import Packed
from posttrace.tracers.models.architecture import recognise


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that decide the cost of a token."""

    n_layers: int
    block: int
    """Weights of one block: the multiply-adds that a token costs there, without attention scores."""
    mlp: int
    """The part of them in the MLP."""
    attention: int
    """Multiply-adds per token and key in one block: query heads times head size, for scores and for values."""
    whole: str | None = None
    """Why every run is a whole forward pass; None where prefixes are shared (see tracers.models.architecture)."""


@dataclass(frozen=True)
class Cost:
    """Forward passes and multiply-adds."""

    forwards: int = 0
    multiply_adds: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.forwards + other.forwards, self.multiply_adds + other.multiply_adds)

    def __mul__(self, n: int) -> Cost:
        return Cost(n * self.forwards, n * self.multiply_adds)


def shape_of(model) -> Shape:
    """Return the shape of a transformers model, weights or none (see tracers.models.loading.empty_model).

    A mixture of experts counts all of its experts, which is more than a token uses.

    Raises
    ------
    TracerError
        An architecture whose blocks cannot be found.

    Examples
    --------
    >>> shape_of(empty_model("path/to/checkpoint")).n_layers          # doctest: +SKIP
    8
    """
    config, architecture = model.config, recognise(model)
    blocks = model.get_submodule(architecture.layers)
    heads = getattr(config, "num_attention_heads", None) or 0
    head_size = getattr(config, "head_dim", None) or config.hidden_size // max(1, heads)
    halves = [blocks[-1].get_submodule(path) for path in architecture.mlp if hasattr(blocks[-1], path)]
    return Shape(
        n_layers=len(blocks),
        block=sum(p.numel() for p in blocks.parameters()) // len(blocks),
        mlp=sum(p.numel() for half in halves for p in half.parameters()),
        attention=2 * heads * head_size,
        whole=architecture.whole,
    )


def run_cost(shape: Shape, prefixes: Iterable[int], lengths: Sequence[int]) -> Cost:
    """Cost of running distinct prefixes once each, and the statements of some prompts on them.

    Parameters
    ----------
    prefixes
        Their lengths in tokens.
    lengths
        Statement tokens of each prompt. Padding counts, since it is run. Where runs are whole passes, every prompt
        counts with the longest prefix.

    Examples
    --------
    >>> run_cost(Shape(2, 10, 6, 4), prefixes=[3], lengths=[2])
    Cost(forwards=2, multiply_adds=252)
    """
    prefixes = list(prefixes)
    if shape.whole:
        prefixes, lengths = [0], [max(prefixes) + length for length in lengths]
    longest, width = max(prefixes), max(lengths)
    tokens, total = 0, 0
    for n, length, keys in [(len(prefixes), longest, longest), (len(lengths), width, longest + width)]:
        tokens += n * length * shape.block
        total += n * length * keys * shape.attention
    return Cost((longest > 0) + 1, shape.n_layers * (tokens + total))


def cells_cost(shape: Shape, packed: Packed, starts: Iterable[int], n_keys: int) -> Cost:
    """Cost of running packed segments from each of the given blocks on.

    Parameters
    ----------
    n_keys
        Cached keys per row, of prefix and statement. In the last block the MLP runs at the segments' last tokens
        only. Unused slots count, since they are run.

    Examples
    --------
    >>> from posttrace.tracers.batching.packing import whole
    >>> cells_cost(Shape(2, 10, 6, 4), whole([3]), starts=[1], n_keys=5)
    Cost(forwards=1, multiply_adds=114)
    """
    rows, width = packed.token.shape
    cost = Cost()
    for start in starts:
        blocks = shape.n_layers - start
        each = rows * width * (shape.block + (n_keys + width) * shape.attention)
        saved = (rows * width - len(packed.cells)) * shape.mlp if blocks else 0
        cost += Cost(1, blocks * each - saved)
    return cost
