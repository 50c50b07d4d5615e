"""Steering the naive way: one whole forward pass per prompt and steer, without cache or batch.

`tracers.engines.steered_answers.steered_answers` is compared with it, in the tests and, on a sample, during every run.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from posttrace.tracers import sites
from posttrace.tracers.engines.steered_answers import TokenSteer
from posttrace.tracers.oracles.compare import compared, sample, tolerance
from posttrace.tracers.prompts import Prompt


def steered_answers_naive(
    model,
    prompts: Sequence[Prompt],
    steers: Sequence[Sequence[TokenSteer | None]],
    *,
    answers: tuple[int, int],
) -> torch.Tensor:
    """As `tracers.engines.steered_answers.steered_answers`; dims prompt x variant.

    >>> steered_answers_naive(model, prompts, [[None, steer]] * len(prompts), answers=(287, 288))    # doctest: +SKIP
    """
    rows = [
        [naive_answer(model, p, steer, answers) for steer in variants]
        for p, variants in zip(prompts, steers, strict=True)
    ]
    return torch.tensor(rows)


def naive_answer(model, prompt: Prompt, steer: TokenSteer | None, answers: tuple[int, int]) -> float:
    """P(first answer) - P(second answer) of one prompt under one steer."""
    logits = naive_logits(model, prompt.ids, steer, len(prompt.ids))
    both = torch.softmax(logits.float(), dim=-1)[list(answers)]
    return float(both[0] - both[1])


def naive_logits(model, ids: Sequence[int], steer: TokenSteer | None, end: int) -> torch.Tensor:
    """Logits at the last of `ids` (dims vocabulary); the steer counts its tokens from `end`, where the prompt ends."""
    with torch.no_grad():
        inputs = torch.tensor(list(ids))[None]
        if steer is None:
            return _trace_unsteered(model.nn, inputs)
        positions = [end + token for token in steer.tokens]
        return _trace_steered(model.nn, inputs, steer, positions)


def steered_completions(
    model, prompts: Sequence[Prompt], steers: Sequence[Sequence[TokenSteer | None]], *, n_tokens: int
) -> torch.Tensor:
    """Ids of the most probable continuation, token by token, under each steer; dims prompt x variant x token.

    >>> steered_completions(model, prompts, [[None, steer]] * len(prompts), n_tokens=4)              # doctest: +SKIP

    Only tokens of the prompt are steered, not new ones. Every token is a whole forward pass: for a few samples.
    """
    every = []
    for prompt, variants in zip(prompts, steers, strict=True):
        for steer in variants:
            ids = list(prompt.ids)
            for _ in range(n_tokens):
                ids.append(int(naive_logits(model, ids, steer, len(prompt.ids)).argmax()))
            every.append(ids[len(prompt.ids) :])
    return torch.tensor(every).reshape(len(prompts), len(steers[0]), n_tokens)


def check_steered_answers(
    model,
    prompts: Sequence[Prompt],
    steers: Sequence[Sequence[TokenSteer | None]],
    fast: torch.Tensor,
    *,
    answers: tuple[int, int],
    share: float,
    rng: random.Random,
) -> tuple[int, float]:
    """Compute a random share of the answers (at least one) the naive way: how many, and the largest difference.

    >>> check_steered_answers(model, prompts, steers, fast, answers=(287, 288), share=0.01, rng=rng)   # doctest: +SKIP
    (6, 3.1e-07)

    fast: what `steered_answers` gave. Raises TracerError when an answer differs by more than rounding: 1e-3 in float32,
    0.1 in 16 bits, where logits around 10 are rounded to 1/16.
    """
    cells = [(p, v) for p in range(fast.shape[0]) for v in range(fast.shape[1])]
    chosen = sample(cells, share, rng)
    allowed = min(0.1, 10 * tolerance(model.dtype))
    largest = 0.0
    for p, v in chosen:
        naive = naive_answer(model, prompts[p], steers[p][v], answers)
        what = f"model {model.name}: {prompts[p].text[-60:]!r}, steer {v}"
        largest = max(largest, compared(float(fast[p, v]), naive, allowed, what))
    return len(chosen), largest


def _trace_unsteered(nn, ids):
    with nn.trace(input_ids=ids):
        logits = nn.output.logits[0, -1].save()
    return logits


def _trace_steered(nn, ids, steer, positions):
    with nn.trace(input_ids=ids):
        for layer in steer.layers:
            steer_block(nn.layers[layer], steer, positions)
        logits = nn.output.logits[0, -1].save()
    return logits


def steer_block(block, steer, positions) -> None:
    """Steer the tokens at `positions` of batch row 0 in one block, inside a trace."""
    sites.change(block, steer.site, lambda hidden: with_steering(hidden, steer, positions))


def with_steering(hidden, steer, positions):
    """`hidden` (dims 1 x token x hidden) with the tokens at `positions` steered."""
    hidden = hidden.clone()
    for position in positions:
        hidden[0, position] = sites.steered(hidden[0, position], steer.vector, steer.mode, steer.coefficient)
    return hidden
