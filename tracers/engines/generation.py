"""Greedy generation with steering: many prompts at once, keys and values cached, every step a tracing context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import nnsight
import torch

from posttrace.tracers.batching.memory import in_batches
from posttrace.tracers.batching.padding import prompt_inputs
from posttrace.tracers.engines.activations import has_weights, widen_logits
from posttrace.tracers.engines.edits import Edit, apply_edits, check_edits
from posttrace.tracers.engines.steering import necessary_edits
from posttrace.tracers.errors import TracerError

Ids = Sequence[int]


@dataclass(frozen=True)
class Openings:
    """Tokens that begin a refusal, and tokens that begin an answer that complies."""

    refusal: tuple[int, ...]
    compliant: tuple[int, ...]


@dataclass(frozen=True)
class Completions:
    """What was generated."""

    ids: tuple[tuple[int, ...], ...]
    """New token ids of every prompt, up to and with the token that ended it."""
    log_odds: torch.Tensor
    """log P(refusal opening) - log P(compliant opening) at the first new token (float32, nats); dims prompt. NaN
    without openings."""
    peak: torch.Tensor
    """Highest logit seen (float32), not finite where an activation was not; dims prompt."""


def generate(
    model,
    prompts: Sequence[Ids],
    edits: Sequence[Edit],
    openings: Openings | None,
    *,
    max_new_tokens: int,
    stop: Ids = (),
    max_tokens: int | None = None,
) -> Completions:
    """Continue prompts greedily, the stream edited.

    >>> generate(model, [[1, 7, 9], [1, 8]], [], openings, max_new_tokens=16).ids       # doctest: +SKIP
    ((12, 5, 2), (7, 7, 1))

    prompts: token ids, of unequal length as they are; they are padded on the left, positions and masks written out,
    so that a row gives what it would give alone, up to rounding (where blocks keep states, only prompts of one length
    run together). edits: without columns, for every token, of the prompt and new; with columns, for those tokens of the
    prompts (rows: numbers of prompts). stop: tokens that end an answer. max_tokens: tokens in one forward pass, by
    default `tokens_that_fit`, halved when memory runs out.
    Raises TracerError for edits that do not fit the model.
    """
    # Cells name their prompts: one row for all of them would be prompt 0 alone.
    everywhere = [edit for edit in edits if edit.columns is None or isinstance(edit.rows, int)]
    check_everywhere(model, everywhere)
    edits = necessary_edits(edits) if len(everywhere) == len(edits) else list(edits)
    ids: list[tuple[int, ...]] = [()] * len(prompts)
    log_odds, peak = torch.full((2, len(prompts)), torch.nan)

    def some(rows):
        batch = [prompts[r] for r in rows]
        here = edits_of_rows(edits, rows, [len(prompt) for prompt in batch])
        return _generate_batch(model, batch, here, openings, max_new_tokens, stop)

    lengths, whole = [len(p) + max_new_tokens for p in prompts], bool(model.architecture.whole)
    for part, (new, odds, highest) in in_batches(model, some, lengths, max_tokens, one_length=whole):
        log_odds[part], peak[part] = odds, highest
        for row, tokens in zip(part, new, strict=True):
            ids[row] = tokens
    return Completions(ids=tuple(ids), log_odds=log_odds, peak=peak)


def check_everywhere(model, edits: Sequence[Edit]) -> None:
    """Check that edits fit the model and act at every token; raises TracerError naming what does not."""
    check_edits(model, edits)
    for edit in edits:
        if edit.columns is not None:
            raise TracerError(
                f"{edit.site}: edited at tokens {list(edit.columns)}; while generating only `all` has a meaning"
            )
        if not edit.values.any():
            raise TracerError(f"{edit.site}: the direction that is added must not be zero")


def edits_of_rows(edits: Sequence[Edit], rows: Sequence[int], lengths: Sequence[int]) -> list[Edit]:
    """Edits of some prompts, as they lie in a batch that is padded on the left.

    >>> edit = Edit(site="resid_post", layers=(0,), mode="replace", values=torch.ones(2, 4), rows=torch.tensor([0, 1]),
    ...             columns=torch.tensor([0, -1]))
    >>> [(e.rows.tolist(), e.columns.tolist()) for e in edits_of_rows([edit], [1, 0], [5, 3])]
    [([1, 0], [2, 4])]

    rows: numbers of the prompts. lengths: their tokens.
    """
    width, place = max(lengths), {row: i for i, row in enumerate(rows)}
    found = []
    for edit in edits:
        if edit.columns is None:
            found.append(edit)
            continue
        n = len(edit.columns)
        of_cell = torch.as_tensor(edit.rows).expand(n).tolist()
        kept = [cell for cell in range(n) if of_cell[cell] in place]
        if not kept:
            continue
        new_rows = [place[of_cell[cell]] for cell in kept]
        columns = [
            width + column - (lengths[row] if column >= 0 else 0)
            for row, column in zip(new_rows, torch.as_tensor(edit.columns)[kept].tolist(), strict=True)
        ]
        found.append(
            replace(
                edit,
                rows=torch.tensor(new_rows),
                columns=torch.tensor(columns),
                values=edit.values if edit.values.dim() == 1 else edit.values[kept],
                head=edit.head if isinstance(edit.head, int) else edit.head[kept],
            )
        )
    return found


def opening_log_odds(logits: torch.Tensor, openings: Openings) -> torch.Tensor:
    """Log P(refusal opening) - log P(compliant opening), float32, nats; dims of logits: prompt x vocabulary."""
    refusal, compliant = (logits[:, list(ids)].float() for ids in (openings.refusal, openings.compliant))
    return refusal.logsumexp(1) - compliant.logsumexp(1)


def _generate_batch(model, prompts, edits, openings, max_new_tokens, stop):
    with torch.no_grad():
        inputs = prompt_inputs(model, prompts)
        ends = torch.tensor(list(stop), device=model.device)
        # A server that hides its weights copies arguments: the cache would travel several times for every token, and a
        # block whose input is edited would fill a copy of it. There the whole text runs again.
        cache, name, caching = None, model.architecture.cache, has_weights(model.nn.unembed)
        new, peaks, log_odds = [], [], None
        ended = torch.zeros(len(prompts), dtype=torch.bool, device=model.device)
        for step in range(max_new_tokens):
            if caching and step == 1:  # the prompt's tokens are in the cache
                edits = [edit for edit in edits if edit.columns is None]
            if caching:
                held = {} if cache is None else {name: cache}
                logits, cache = _step(
                    model.nn, dict(**inputs, **held, use_cache=True), name, edits, wide=step == 0
                )
                caching = (
                    cache is not None
                )  # a model may keep it to itself: then the whole text runs again, too
            else:
                logits = last_logits(model.nn, dict(**inputs, use_cache=False), edits)
            if log_odds is None:
                none = logits.new_full((len(prompts),), torch.nan, dtype=torch.float32)
                log_odds = (none if openings is None else opening_log_odds(logits, openings)).cpu()
            chosen = logits.argmax(-1).to(model.device)
            new.append(chosen)
            peaks.append(logits.amax(-1).float())
            if len(stop):
                ended = ended | (chosen[:, None] == ends).any(1)
                if step + 1 < max_new_tokens and bool(ended.all()):
                    break
            added = dict(input_ids=chosen[:, None])
            if "attention_mask" in inputs:
                added["attention_mask"] = inputs["attention_mask"].new_ones(len(prompts), 1)
                added["position_ids"] = inputs["position_ids"][:, -1:] + 1
            kept = ("attention_mask",) if caching else tuple(added)
            inputs = {
                key: torch.cat([inputs[key], value], dim=1) if key in kept else value
                for key, value in added.items()
            }
    ids = [_until(row, stop) for row in torch.stack(new, dim=1).tolist()]
    return ids, log_odds, torch.stack(peaks).amax(0).cpu()


def last_logits(nn, inputs: dict, edits: Sequence[Edit]) -> torch.Tensor:
    """Logits at the last token (see `unembedded`) of a forward pass with the stream edited; dims row x vocabulary."""
    with nn.trace(**inputs, logits_to_keep=1):
        apply_edits(nn, edits)
        widen_logits(nn)
        logits = nnsight.save(nn.output.logits[:, -1])
    return logits


def _step(nn, inputs: dict, cache_name: str, edits: Sequence[Edit], wide: bool):
    """Logits at the last token, and the keys and values (or states) of all tokens so far, as the model keeps them.

    wide: whether logits are computed as in `last_logits`, which takes longer.
    """
    with nn.trace(**inputs, logits_to_keep=1):
        apply_edits(nn, edits)
        if wide:
            widen_logits(nn)
        logits = nnsight.save(nn.output.logits[:, -1])
        cache = nnsight.save(getattr(nn.output, cache_name, None))
    return logits, cache


def _until(tokens: list[int], stop: Ids) -> tuple[int, ...]:
    """Return the tokens up to and with the first that ends an answer."""
    end = next((i for i, token in enumerate(tokens) if token in stop), len(tokens))
    return tuple(tokens[: end + 1])
