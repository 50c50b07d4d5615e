"""Answers as a study wants them in one piece: generated, scored by the plain model, a share computed again."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from posttrace.tracers.directions import unlikelihood
from posttrace.tracers.generation import Ids, Openings, Steering, generate
from posttrace.tracers.generation_oracle import check_log_odds


@dataclass(frozen=True)
class Answers:
    """What a model answered to some prompts."""

    ids: tuple[tuple[int, ...], ...]
    """New token ids of every prompt, up to and with the token that ended it."""
    log_odds: torch.Tensor
    """log P(refusal opening) - log P(compliant opening) at the first new token (float32, nats); dims prompt."""
    unlikelihood: torch.Tensor
    """Mean surprise of the plain model at the answer from its second token on (nats a token); dims prompt."""
    peak: torch.Tensor
    """Highest logit met while answering, not finite where an activation was not; dims prompt."""
    checked: int = 0
    """Prompts whose log-odds were computed again one by one."""
    largest_difference: float = 0.0
    """Between the two, in nats."""


def answer(
    model,
    prompts: Sequence[Ids],
    steering: Steering,
    openings: Openings,
    *,
    max_new_tokens: int,
    stop: Ids = (),
    max_tokens: int | None = None,
    share: float = 0.0,
    rng: random.Random | None = None,
) -> Answers:
    """Answer prompts with the stream steered, and score the answers without.

    >>> answer(model, prompts, Steering(), openings, max_new_tokens=16).checked        # doctest: +SKIP
    0

    share, rng: of the prompts, at least one, how many are computed again the naive way. Raises TracerError as
    `generate` and `check_log_odds` do.
    """
    done = generate(
        model, prompts, steering, openings, max_new_tokens=max_new_tokens, stop=stop, max_tokens=max_tokens
    )
    surprise = unlikelihood(model, prompts, done.ids, max_tokens)
    if not share or not done.log_odds.isfinite().all():
        return Answers(done.ids, done.log_odds, surprise, done.peak)
    checked = check_log_odds(model, prompts, steering, openings, done.log_odds, share=share, rng=rng)
    return Answers(done.ids, done.log_odds, surprise, done.peak, *checked)
