"""The naive way to generate: one prompt, the whole text run again for every token, every edit applied."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from posttrace.tracers.engines.edits import Edit
from posttrace.tracers.engines.generation import (
    Completions,
    Ids,
    Openings,
    check_everywhere,
    last_logits,
    opening_log_odds,
)
from posttrace.tracers.oracles.compare import compared, sample, tolerance


def generate_naive(
    model,
    prompts: Sequence[Ids],
    edits: Sequence[Edit],
    openings: Openings,
    *,
    max_new_tokens: int,
    stop: Ids = (),
) -> Completions:
    """Generate as `generate` does, without batch or cache, no edit left out.

    Examples
    --------
    >>> generate_naive(model, [[1, 7, 9]], [], openings, max_new_tokens=16).ids     # doctest: +SKIP
    ((12, 5, 2),)
    """
    check_everywhere(model, edits)
    found, log_odds, peaks = [], [], []
    with torch.no_grad():
        for prompt in prompts:
            ids, new, highest = list(prompt), list[int](), []
            while len(new) < max_new_tokens and not (new and new[-1] in stop):
                logits = last_logits(model.nn, _whole(model, ids), edits)
                if not new:
                    log_odds.append(opening_log_odds(logits, openings).cpu())
                highest.append(logits.max().float().cpu())
                new.append(int(logits[0].argmax()))
                ids.append(new[-1])
            found.append(tuple(new))
            peaks.append(torch.stack(highest).amax())
    return Completions(ids=tuple(found), log_odds=torch.cat(log_odds), peak=torch.stack(peaks))


def check_log_odds(
    model,
    prompts: Sequence[Ids],
    edits: Sequence[Edit],
    openings: Openings,
    log_odds: torch.Tensor,
    *,
    share: float,
    rng: random.Random,
) -> tuple[int, float]:
    """Compute a random share of the log-odds (1 to 8) the naive way: how many, and the largest difference.

    Tokens are not compared: two that are equally likely up to rounding may swap, log-odds may not change.

    Raises
    ------
    TracerError
        If a value differs by more than rounding (see `tracers.oracles.patching.check_sample`).

    Examples
    --------
    >>> check_log_odds(model, prompts, [], openings, done.log_odds, share=0.1, rng=rng)  # doctest: +SKIP
    (2, 1.9e-06)
    """
    chosen = sample(range(len(prompts)), share, rng)
    largest = 0.0
    for row in chosen:
        with torch.no_grad():
            logits = last_logits(model.nn, _whole(model, prompts[row]), edits)
        allowed = tolerance(model.dtype) * max(1.0, float(logits.abs().max()))
        naive = float(opening_log_odds(logits, openings))
        what = f"model {model.name}: log-odds of prompt {row}"
        largest = max(largest, compared(float(log_odds[row]), naive, allowed, what))
    return len(chosen), largest


def _whole(model, ids: Ids) -> dict:
    return dict(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False)
