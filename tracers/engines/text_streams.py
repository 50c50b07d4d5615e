"""Run text once and keep what stages are compared by: streams, final states, entropies, losses and sums over slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nnsight
import torch

from posttrace.tracers import sites
from posttrace.tracers.batching.memory import tokens_that_fit
from posttrace.tracers.batching.padding import right_padded
from posttrace.tracers.engines.neuron_ablation import MAX_VALUES, token_scores


@dataclass(frozen=True)
class Kept:
    """What is kept of each row besides its entropies and losses."""

    places: tuple[tuple[int, ...], ...]
    """Per row, the tokens that count, in increasing order; a *place* is an index into them."""
    slots: tuple[tuple[int, int, int], ...]
    """(row, place, slot): which tokens are summed into which slot."""
    n_slots: int
    samples: tuple[tuple[int, int], ...]
    """(row, place) of tokens whose streams are kept as they are."""
    sampled_layers: tuple[int, ...]
    stream_dtype: str
    """Name of the torch dtype of `TextStreams.stream`."""
    projection: tuple[int, int] | None = None
    """(dims, seed) of a random projection that `TextStreams.stream` is put through; None: streams as they are."""


@dataclass(frozen=True)
class TextStreams:
    """What a run of some rows gave; NaN at places that a row does not have."""

    stream: torch.Tensor
    """`resid_post` of every block, projected if asked for; dims row x layer x place x kept."""
    norm: torch.Tensor
    """Its length before any projection (float32); dims row x layer x place."""
    final: torch.Tensor
    """What enters the unembedding, in the model's dtype; dims row x place x hidden."""
    entropy: torch.Tensor
    """Entropy of the next token's distribution, nats (float32); dims row x place."""
    loss: torch.Tensor
    """-log P(next token), nats (float32), NaN where no known token follows; dims row x place."""
    slot_sum: torch.Tensor
    """Sum of `resid_post` over each slot's tokens (float64); dims layer x slot x hidden."""
    sampled: torch.Tensor
    """`resid_post` of the samples in the model's dtype; dims sample x layer x hidden."""


def read_streams(model, rows: Sequence[Sequence[int]], *, kept: Kept, vocabulary: int) -> TextStreams:
    """Run rows of token ids once, and keep what `kept` names.

    >>> read_streams(model, [[1, 17, 4, 90]], kept=kept, vocabulary=300).entropy.shape     # doctest: +SKIP
    torch.Size([1, 4])

    vocabulary: the distributions are over its first so many tokens. Rows are padded on the right, where causal
    attention makes padding harmless.
    """
    width, hidden = max(map(len, kept.places)), model.hidden_size
    dims = kept.projection[0] if kept.projection else hidden
    matrix = projection(hidden, *kept.projection) if kept.projection else None
    n, layers = len(rows), model.n_layers
    norm = torch.full((n, layers, width), torch.nan)
    entropy, loss = torch.full((2, n, width), torch.nan)
    stream = torch.full((n, layers, width, dims), torch.nan, dtype=getattr(torch, kept.stream_dtype))
    slot_sum = torch.zeros(layers, kept.n_slots, hidden, dtype=torch.float64)
    finals, samples = [], []
    size = max(1, MAX_VALUES // (vocabulary * max(map(len, rows))))
    with torch.no_grad():
        for begin in range(0, n, size):
            end = min(begin + size, n)
            row, place, token = _cells(kept.places[begin:end])
            ids, _ = right_padded(rows[begin:end])
            following = torch.cat([ids[:, 1:], ids[:, :1]], dim=1)
            scored = following < vocabulary
            scored[row, torch.tensor([len(r) - 1 for r in rows[begin:end]])[row]] = False
            following = following.clamp(max=vocabulary - 1)
            values, final, scores = _trace(model.nn, ids, following, vocabulary, model.n_layers)
            scores = scores.cpu()
            entropy[begin + row, place] = scores[0][row, token]
            loss[begin + row, place] = scores[1].where(scored, torch.nan)[row, token]
            cell = torch.full((end - begin, width), -1)
            cell[row, place] = torch.arange(len(row))
            in_slot = torch.zeros(kept.n_slots, len(row), dtype=torch.float64)
            for r, p, slot in kept.slots:
                if begin <= r < end:
                    in_slot[slot, cell[r - begin, p]] = 1
            sampled = [int(cell[r - begin, p]) for r, p in kept.samples if begin <= r < end]
            streams = []
            for layer, value in enumerate(values):
                cells = sites.at(value, row, token).cpu()
                norm[begin + row, layer, place] = cells.float().norm(dim=-1)
                kept_cells = cells.float() @ matrix if matrix is not None else cells
                stream[begin + row, layer, place] = kept_cells.to(stream.dtype)
                slot_sum[layer] += in_slot @ cells.double()
                if layer in kept.sampled_layers:
                    streams.append(cells[sampled])
            samples.append(torch.stack(streams, dim=1))
            grid = final.new_full((end - begin, width, hidden), torch.nan, device="cpu")
            grid[row, place] = sites.at(final, row, token).cpu()
            finals.append(grid)
    return TextStreams(
        stream=stream,
        norm=norm,
        final=torch.cat(finals),
        entropy=entropy,
        loss=loss,
        slot_sum=slot_sum,
        sampled=torch.cat(samples),
    )


def steered_finals(
    model,
    rows: Sequence[Sequence[int]],
    vectors: torch.Tensor,
    *,
    layer: int,
    column: int | None = None,
    max_tokens: int | None = None,
) -> torch.Tensor:
    """Return what enters the unembedding with a vector added to the stream that leaves a block, one vector at a time.

    >>> steered_finals(model, [[1, 17, 4]], torch.zeros(2, 32), layer=1).shape      # doctest: +SKIP
    torch.Size([2, 1, 3, 32])

    vectors: dims variant x hidden, added to every token but the first, or, with `column`, put in the place of that
    token's stream. max_tokens: of one forward pass, `tokens_that_fit` by default. The blocks up to `layer` are run
    once, and skipped for each variant, unless blocks hand each other more than the stream. Returns dims variant x row
    x token x hidden in the model's dtype, anything at padding.
    """
    ids, _ = right_padded(rows)
    with torch.no_grad():
        stream = _trace_stream(model.nn, ids, layer)
        size = max(1, (max_tokens or tokens_that_fit(model)) // ids.numel())
        parts = []
        for some in vectors.split(size):
            steered = stream.repeat(len(some), 1, 1)
            added = some.repeat_interleave(len(ids), dim=0).to(steered)
            if column is None:
                steered[:, 1:] = steered[:, 1:] + added[:, None]
            else:
                steered[:, column] = added
            trace = _trace_replaced if model.architecture.whole else _trace_from
            final = trace(model.nn, ids.repeat(len(some), 1), steered, layer)
            parts.append(final.cpu().unflatten(0, (len(some), len(ids))))
    return torch.cat(parts)


def projection(hidden: int, dims: int, seed: int) -> torch.Tensor:
    """Return a Gaussian projection, the same for every stage, that keeps squared lengths on average; hidden x dims.

    >>> projection(160, 64, seed=0).shape
    torch.Size([160, 64])
    """
    drawn = torch.randn(hidden, dims, generator=torch.Generator().manual_seed(seed))
    return drawn / dims**0.5


def _cells(places) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Row, place and token of every token that counts; dims cell."""
    cells = [(r, p, token) for r, some in enumerate(places) for p, token in enumerate(some)]
    row, place, token = torch.tensor(cells, dtype=torch.long).T
    return row, place, token


def _trace(nn, ids, following, vocabulary, n_layers):
    with nn.trace(input_ids=ids, use_cache=False):
        values = nnsight.save([])
        for layer in range(n_layers):
            values.append(sites.get(nn.layers[layer], "resid_post"))
        final = nnsight.save(nn.unembed.input)
        scores = nnsight.save(token_scores(nn.output.logits[..., :vocabulary], following))
    return values, final, scores


def _trace_stream(nn, ids, layer):
    with nn.trace(input_ids=ids, use_cache=False):
        stream = nnsight.save(sites.get(nn.layers[layer], "resid_post"))
    return stream


def _trace_from(nn, ids, stream, layer):
    with nn.trace(input_ids=ids, use_cache=False):
        for earlier in range(layer + 1):
            sites.skip(nn.layers[earlier], stream)
        final = nnsight.save(nn.unembed.input)
    return final


def _trace_replaced(nn, ids, stream, layer):
    with nn.trace(input_ids=ids, use_cache=False):
        sites.change(nn.layers[layer], "resid_post", lambda _: stream)
        final = nnsight.save(nn.unembed.input)
    return final
