"""Pushes as anyone would first write them: one whole forward pass per prompt and push, without cache or batch.

`tracers.pushing.pushed_answers` is compared with it, in the tests and, on a sample, during every run.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from posttrace.tracers import sites
from posttrace.tracers.alignment import Prompt
from posttrace.tracers.errors import TracerError
from posttrace.tracers.pushing import Push
from posttrace.tracers.selfcheck import tolerance


def pushed_answers_naive(
    model, prompts: Sequence[Prompt], pushes: Sequence[Sequence[Push | None]], *, answers: tuple[int, int]
) -> torch.Tensor:
    """As `tracers.pushing.pushed_answers`; dims prompt x variant.

    >>> pushed_answers_naive(model, prompts, [[None, push]] * len(prompts), answers=(287, 288))    # doctest: +SKIP
    """
    rows = [
        [naive_answer(model, p, push, answers) for push in variants]
        for p, variants in zip(prompts, pushes, strict=True)
    ]
    return torch.tensor(rows)


def naive_answer(model, prompt: Prompt, push: Push | None, answers: tuple[int, int]) -> float:
    """P(first answer) - P(second answer) of one prompt after one push."""
    logits = naive_logits(model, prompt.ids, push, len(prompt.ids))
    both = torch.softmax(logits.float(), dim=-1)[list(answers)]
    return float(both[0] - both[1])


def naive_logits(model, ids: Sequence[int], push: Push | None, end: int) -> torch.Tensor:
    """Logits at the last of `ids` (dims vocabulary); the push counts its tokens from `end`, where the prompt ends."""
    with torch.no_grad():
        inputs = torch.tensor(list(ids))[None]
        if push is None:
            return _trace_unpushed(model.nn, inputs)
        positions = [end + token for token in push.tokens]
        return _trace_pushed(model.nn, inputs, push, positions)


def pushed_completions(
    model, prompts: Sequence[Prompt], pushes: Sequence[Sequence[Push | None]], *, n_tokens: int
) -> torch.Tensor:
    """Ids of the most probable continuation, token by token, after each push; dims prompt x variant x token.

    >>> pushed_completions(model, prompts, [[None, push]] * len(prompts), n_tokens=4)              # doctest: +SKIP

    The push stays on the tokens of the prompt; new tokens are not pushed. Every token is a whole forward pass: for a
    few samples.
    """
    every = []
    for prompt, variants in zip(prompts, pushes, strict=True):
        for push in variants:
            ids = list(prompt.ids)
            for _ in range(n_tokens):
                ids.append(int(naive_logits(model, ids, push, len(prompt.ids)).argmax()))
            every.append(ids[len(prompt.ids) :])
    return torch.tensor(every).reshape(len(prompts), len(pushes[0]), n_tokens)


def check_pushed(
    model,
    prompts: Sequence[Prompt],
    pushes: Sequence[Sequence[Push | None]],
    fast: torch.Tensor,
    *,
    answers: tuple[int, int],
    share: float,
    rng: random.Random,
) -> tuple[int, float]:
    """Compute a random share of the answers (at least one) the naive way: how many, and the largest difference.

    >>> check_pushed(model, prompts, pushes, fast, answers=(287, 288), share=0.01, rng=rng)        # doctest: +SKIP
    (6, 3.1e-07)

    fast: what `pushed_answers` gave. Raises TracerError when an answer differs by more than rounding: 1e-3 in float32,
    0.1 in 16 bits, where logits around 10 are rounded to 1/16.
    """
    cells = [(p, v) for p in range(fast.shape[0]) for v in range(fast.shape[1])]
    chosen = rng.sample(cells, max(1, round(share * len(cells))))
    allowed = min(0.1, 10 * tolerance(model.dtype))
    largest = 0.0
    for p, v in chosen:
        naive = naive_answer(model, prompts[p], pushes[p][v], answers)
        largest = max(largest, abs(naive - float(fast[p, v])))
        if not abs(naive - float(fast[p, v])) <= allowed:
            raise TracerError(
                f"model {model.name}: {prompts[p].text[-60:]!r}, push {v}: the fast run gives {float(fast[p, v]):.6g}, "
                f"a whole forward pass {naive:.6g} (allowed: {allowed:.2g} apart); this unit was not stored, please "
                "report it with the model's architecture"
            )
    return len(chosen), largest


def _trace_unpushed(nn, ids):
    with nn.trace(input_ids=ids):
        logits = nn.output.logits[0, -1].save()
    return logits


def _trace_pushed(nn, ids, push, positions):
    with nn.trace(input_ids=ids):
        for layer in push.layers:
            push_block(nn.layers[layer], push, positions)
        logits = nn.output.logits[0, -1].save()
    return logits


def push_block(block, push, positions) -> None:
    """Push the tokens at `positions` of batch row 0 in one block, inside a trace."""
    sites.change(block, push.site, lambda hidden: pushed(hidden, push, positions))


def pushed(hidden, push, positions):
    """`hidden` (dims 1 x token x hidden) with the tokens at `positions` steered."""
    hidden = hidden.clone()
    for position in positions:
        hidden[0, position] = sites.steered(hidden[0, position], push.vector, push.mode, push.coefficient)
    return hidden
