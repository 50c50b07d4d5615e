"""How sure a model is of its answer: the probability of two answers, and of all others together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nnsight
import torch

from posttrace.tracers.batching.prefix_cache import statement_rows
from posttrace.tracers.engines.activations import logits_at
from posttrace.tracers.prompts import Prompt


@dataclass(frozen=True)
class AnswerProbabilities:
    """The next-token distribution at the end of each prompt (float32); dims prompt."""

    logit_diff: torch.Tensor
    """Logit of the first answer minus that of the second, nats."""
    answer_mass: torch.Tensor
    """Probability of the two answers together."""
    entropy: torch.Tensor
    """Entropy over the whole vocabulary, nats."""


def read_answers(model, prompts: Sequence[Prompt], *, answers: tuple[int, int]) -> AnswerProbabilities:
    """Reduce the distribution that follows each prompt to two answers, their share and the entropy.

    P(first | first or second) is the sigmoid of `logit_diff`. A prefix that several prompts share is run once.

    Examples
    --------
    >>> read_answers(model, prompts, answers=(287, 288)).answer_mass      # doctest: +SKIP
    tensor([0.9981, 0.9975])
    """
    with torch.no_grad():
        rows = statement_rows(model, prompts)
        two, rest = _trace_answers(model.nn, rows.inputs, rows.row, rows.last, list(answers))
    two, rest = two.cpu(), rest.cpu()
    return AnswerProbabilities(two[:, 0] - two[:, 1], two.exp().sum(1), rest)


def _trace_answers(nn, inputs, row, last, answers):
    """Log-probabilities of the answers and entropy at the last slot of each segment only."""
    with nn.trace(**inputs):
        log_p = torch.log_softmax(logits_at(nn, row, last).float(), dim=-1)
        two = nnsight.save(log_p[:, answers])
        entropy = nnsight.save(-(log_p.exp() * log_p).sum(-1))
    return two, entropy
