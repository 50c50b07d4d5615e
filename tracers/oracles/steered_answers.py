"""Steering the naive way: one whole forward pass per prompt and edit, without cache or batch.

`tracers.engines.steered_answers.steered_answers` is compared with it, in the tests and, on a sample, during every run.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import torch

from posttrace.tracers.engines.edits import Edit
from posttrace.tracers.engines.generation import last_logits
from posttrace.tracers.oracles.compare import compared, sample, tolerance
from posttrace.tracers.prompts import Prompt


def steered_answers_naive(
    model,
    prompts: Sequence[Prompt],
    variants: Sequence[Sequence[Edit | None]],
    *,
    answers: tuple[int, int],
) -> torch.Tensor:
    """As `tracers.engines.steered_answers.steered_answers`; dims prompt x variant.

    Examples
    --------
    >>> steered_answers_naive(model, prompts, [[None, edit]] * len(prompts), answers=(287, 288))    # doctest: +SKIP
    """
    rows = [
        [naive_answer(model, p, edit, answers) for edit in some]
        for p, some in zip(prompts, variants, strict=True)
    ]
    return torch.tensor(rows)


def naive_answer(model, prompt: Prompt, edit: Edit | None, answers: tuple[int, int]) -> float:
    """P(first answer) - P(second answer) of one prompt after one edit."""
    logits = naive_logits(model, prompt.ids, edit, len(prompt.ids))
    both = torch.softmax(logits.float(), dim=-1)[list(answers)]
    return float(both[0] - both[1])


def naive_logits(model, ids: Sequence[int], edit: Edit | None, end: int) -> torch.Tensor:
    """Logits at the last of `ids` (dims vocabulary); the edit counts its tokens from `end`, where the prompt ends."""
    edits = [] if edit is None else [replace(edit, columns=[end + int(c) for c in edit.columns or ()])]
    with torch.no_grad():
        return last_logits(model.nn, dict(input_ids=torch.tensor([list(ids)]), use_cache=False), edits)[0]


def steered_completions(
    model, prompts: Sequence[Prompt], variants: Sequence[Sequence[Edit | None]], *, n_tokens: int
) -> torch.Tensor:
    """Ids of the most probable continuation, token by token, after each edit; dims prompt x variant x token.

    Only tokens of the prompt are edited, not new ones. Every token is a whole forward pass: for a few samples.

    Examples
    --------
    >>> steered_completions(model, prompts, [[None, edit]] * len(prompts), n_tokens=4)              # doctest: +SKIP
    """
    every = []
    for prompt, some in zip(prompts, variants, strict=True):
        for edit in some:
            ids = list(prompt.ids)
            for _ in range(n_tokens):
                ids.append(int(naive_logits(model, ids, edit, len(prompt.ids)).argmax()))
            every.append(ids[len(prompt.ids) :])
    return torch.tensor(every).reshape(len(prompts), len(variants[0]), n_tokens)


def check_steered_answers(
    model,
    prompts: Sequence[Prompt],
    variants: Sequence[Sequence[Edit | None]],
    fast: torch.Tensor,
    *,
    answers: tuple[int, int],
    share: float,
    rng: random.Random,
) -> tuple[int, float]:
    """Compute a random share of the answers (1 to 8) the naive way: how many, and the largest difference.

    Parameters
    ----------
    fast
        What `steered_answers` gave.

    Raises
    ------
    TracerError
        If an answer differs by more than rounding: 1e-3 in float32, 0.1 in 16 bits, where logits around 10 are
        rounded to 1/16.

    Examples
    --------
    >>> check_steered_answers(model, prompts, variants, fast, answers=(287, 288), share=0.01, rng=rng)  # doctest: +SKIP
    (6, 3.1e-07)
    """
    cells = [(p, v) for p in range(fast.shape[0]) for v in range(fast.shape[1])]
    chosen = sample(cells, share, rng)
    allowed = min(0.1, 10 * tolerance(model.dtype))
    largest = 0.0
    for p, v in chosen:
        naive = naive_answer(model, prompts[p], variants[p][v], answers)
        what = f"model {model.name}: {prompts[p].text[-60:]!r}, variant {v}"
        largest = max(largest, compared(float(fast[p, v]), naive, allowed, what))
    return len(chosen), largest
