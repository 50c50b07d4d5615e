"""A behaviour: one number a prompt, in nats, read from the logits at some tokens of one or two rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import nnsight
import torch

from posttrace.tracers.batching.memory import in_batches
from posttrace.tracers.batching.padding import right_padded
from posttrace.tracers.engines.activations import logits_at
from posttrace.tracers.models.updates import Streamed
from posttrace.tracers.models.weighted import replaced, weighted_modules


@dataclass(frozen=True)
class LogOdds:
    """log P(one of `first`) - log P(one of `second`) of the next token, times a sign."""

    first: tuple[int, ...]
    second: tuple[int, ...]
    sign: float = 1.0

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Score one row from its logits; dims read token x vocabulary."""
        first, second = (logits[-1, list(ids)].logsumexp(0) for ids in (self.first, self.second))
        return self.sign * (first - second)


@dataclass(frozen=True)
class LogProbability:
    """Sum of log P of given tokens, one for each token that is read, times a weight."""

    tokens: tuple[int, ...]
    weight: float = 1.0

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Score one row from its logits; dims read token x vocabulary."""
        rows = torch.arange(len(self.tokens), device=logits.device)
        return self.weight * logits.log_softmax(-1)[rows, list(self.tokens)].sum()


@dataclass(frozen=True)
class Entropy:
    """Entropy of the next token, mean over the tokens that are read."""

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Score one row from its logits; dims read token x vocabulary."""
        log_p = logits.log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1).mean()


@dataclass(frozen=True)
class Row:
    """Token ids that are run, and what is read from them."""

    ids: tuple[int, ...]
    at: tuple[int, ...]
    """Tokens whose logits are read."""
    score: LogOdds | LogProbability | Entropy


Question = tuple[Row, ...]
"""A prompt's rows; its behaviour is the sum of their scores."""


@dataclass(frozen=True)
class RowBatch:
    """Rows padded on the right, on the model's device. Attention is causal, so padding changes nothing before it."""

    rows: tuple[Row, ...]
    ids: torch.Tensor
    """Dims row x token."""
    row: torch.Tensor
    """Row of each token that is read."""
    token: torch.Tensor
    """Its place in the row."""

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Score every row from the logits of the tokens that are read."""
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        each = wide.split([len(row.at) for row in self.rows])
        return torch.stack([row.score(part) for row, part in zip(self.rows, each, strict=True)])


def row_batch(model, rows: Sequence[Row]) -> RowBatch:
    """Rows ready to be run."""
    ids = right_padded([row.ids for row in rows])[0].to(model.device)
    places = torch.tensor([(i, at) for i, row in enumerate(rows) for at in row.at], device=model.device)
    return RowBatch(tuple(rows), ids, places[:, 0], places[:, 1])


def run_batch(model, batch: RowBatch) -> torch.Tensor:
    """Score every row in one forward pass; the unembedding is computed at the tokens that are read only."""
    module = model.nn._module
    with widened(model), reading(module.get_submodule(model.architecture.unembed), batch):
        return batch.scores(module(input_ids=batch.ids, use_cache=False).logits)


@contextmanager
def widened(model) -> Iterator[Mapping[str, torch.Tensor]]:
    """Compute in float32 although weights are in 16 bits: each module has its own widened while it runs."""
    parameters = dict(model.nn._module.named_parameters())
    if model.dtype.itemsize >= torch.float32.itemsize:
        yield {}
        return
    wide = Streamed(lambda name: parameters[name].detach().float(), parameters)
    with replaced(weighted_modules(model.nn._module), wide, below=True):
        yield wide


@contextmanager
def reading(unembed, batch: RowBatch) -> Iterator[None]:
    """Give the unembedding the tokens that are read, and no others; dims of its output: read token x vocabulary."""
    hook = unembed.register_forward_pre_hook(lambda _, inputs: (inputs[0][batch.row, batch.token],))
    try:
        yield
    finally:
        hook.remove()


def behaviour_values(
    model, prompts: Sequence[Question], *, max_tokens: int | None = None, run: Callable = run_batch
) -> torch.Tensor:
    """Return the behaviour of every prompt (float32, nats); dims prompt, after those that `run` gives.

    max_tokens: tokens in one forward pass, halved when memory runs out. run: what scores a batch of rows; dims of its
    result: ... x row.
    """
    return _summed(model, prompts, run, max_tokens)


def traced_values(model, prompts: Sequence[Question], *, max_tokens: int | None = None) -> torch.Tensor:
    """Return the behaviour of every prompt as `behaviour_values` does, by traces, which a server runs; dims prompt."""
    return _summed(model, prompts, _traced, max_tokens)


def _traced(model, batch: RowBatch) -> torch.Tensor:
    return batch.scores(_trace(model.nn, batch.ids, batch.row, batch.token))


def _trace(nn, ids, row, token):
    with nn.trace(input_ids=ids, use_cache=False):
        logits = nnsight.save(logits_at(nn, row, token))
    return logits


def _summed(model, prompts: Sequence[Question], run: Callable, max_tokens: int | None) -> torch.Tensor:
    """Sum the scores of each prompt's rows."""
    rows = [row for prompt in prompts for row in prompt]
    owner = torch.tensor([i for i, prompt in enumerate(prompts) for _ in prompt])

    def scored(chosen):
        return run(model, row_batch(model, [rows[i] for i in chosen]))

    order, parts = [], []
    with torch.no_grad():
        for part, found in in_batches(model, scored, [len(row.ids) for row in rows], max_tokens):
            order += part
            parts.append(found.float().cpu())
    scores = torch.cat(parts, dim=-1)
    return torch.zeros(*scores.shape[:-1], len(prompts)).index_add_(-1, owner[order], scores)


def n_tokens(prompts: Sequence[Question]) -> int:
    """Tokens of the longest row.

    >>> n_tokens([(Row((1, 7, 9), (2,), Entropy()),)])
    3
    """
    return max(len(row.ids) for prompt in prompts for row in prompt)
