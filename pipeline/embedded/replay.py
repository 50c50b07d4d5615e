"""Replay stages of the embedded family in float32, and carry a change of the weights along.

What a small change of a stage's first weights becomes by its end, `J d`, is the derivative of all of its steps: each
step is a function of the weights, both moments of AdamW and, with preferences, the reference model, and forward-mode
differentiation through the gradient gives Hessian-vector products. Data, schedule, clipping and decay are those that
`posttrace.pipeline.embedded.train` declares.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from posttrace.pipeline.embedded import train
from posttrace.pipeline.embedded.train import Batch, Recipe, batches_of, loss_of

Weights = dict[str, torch.Tensor]
Loss = Callable[[Weights, Weights, int], torch.Tensor]
"""Weights, the weights before the stage and the number of a step -> what is minimised."""
ATTENTION = "posttrace_plain"


class State(NamedTuple):
    """What a step of training changes."""

    weights: Weights
    mean: Weights
    """Of gradients, as AdamW keeps it."""
    square: Weights
    """Mean of their squares."""


def trained(
    loss: Loss,
    recipe: Recipe,
    start: Weights,
    change: Weights | None = None,
    each: Callable[[], None] = lambda: None,
) -> tuple[Weights, Weights | None]:
    """Train one stage; return its last weights, and what `change` has become by then (None if there is none).

    Parameters
    ----------
    start: weights before the stage; they are the reference of preferences too.
    change: a small change of `start`, and so of the reference.
    each: called after every step.
    """
    moments = {name: torch.zeros_like(weight) for name, weight in start.items()}
    state = State(start, moments, moments)
    tangent = None if change is None else State(change, moments, moments)
    for number in range(recipe.steps):

        def step(state: State, reference: Weights, number: int = number) -> State:
            gradient = torch.func.grad(loss)(state.weights, reference, number)
            return _stepped(recipe, number, state, gradient)

        if tangent is None:
            state = step(state, start)
        else:
            state, tangent, *_ = torch.func.jvp(step, (state, start), (tangent, change))
        each()
    return state.weights, None if tangent is None else tangent.weights


def _stepped(recipe: Recipe, number: int, state: State, gradient: Weights) -> State:
    """Return the state after a step of AdamW with a clipped gradient (Loshchilov and Hutter 2019)."""
    rate, (fast, slow) = train.learning_rate(recipe, number), train.BETAS
    norm = torch.stack([one.square().sum() for one in gradient.values()]).sum().sqrt()
    factor = (train.CLIP / (norm + 1e-6)).clamp(max=1.0)
    weights, mean, square = {}, {}, {}
    for name, weight in state.weights.items():
        slope = gradient[name] * factor
        mean[name] = fast * state.mean[name] + (1 - fast) * slope
        square[name] = slow * state.square[name] + (1 - slow) * slope.square()
        spread = _root(square[name]) / math.sqrt(1 - slow ** (number + 1)) + train.EPSILON
        kept = 1 - rate * recipe.weight_decay if train.decayed(weight) else 1.0
        weights[name] = kept * weight - rate / (1 - fast ** (number + 1)) * mean[name] / spread
    return State(weights, mean, square)


def _root(square: torch.Tensor) -> torch.Tensor:
    """Return the square root, whose slope at 0 counts as 0: there the gradient was 0 in every step."""
    some = square > 0
    return torch.where(some, square, 1.0).sqrt() * some


@dataclass(frozen=True)
class Trained:
    """A family that `posttrace.pipeline.embedded.train` wrote into one folder.

    Raises ValueError, in words, for a folder that it did not write with its present recipes.

    >>> from posttrace.pipeline.embedded import CHECKPOINTS
    >>> Trained(CHECKPOINTS).seed
    0
    """

    folder: Path
    stages: tuple[str, ...] = train.STAGES
    """The stages that count, in training order: all, or the first ones."""

    @cached_property
    def seed(self) -> int:
        """Seed of its data."""
        try:
            written = json.loads((self.folder / "training.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise ValueError(f"{self.folder} has no training.json") from None
        for stage in self.stages:
            steps, recipe = written.get(stage, {}).get("steps"), train.RECIPES[stage]
            if steps != recipe.steps:
                raise ValueError(
                    f"{self.folder}/training.json: {stage} took {steps} steps, not {recipe.steps}"
                )
        return int(written["base"]["seed"])

    @cached_property
    def _encoder(self) -> train.Encoder:
        return train.Encoder()

    def batches(self, stage: str, order: int = 0) -> list[tuple[Batch, ...]]:
        """Return what a stage's steps were trained on; in another order than 0 the same, shuffled."""
        recipe, key = train.RECIPES[stage], f"{self.seed}-{stage}"
        steps = list(range(recipe.steps))
        if order:
            random.Random(f"{key}-order-{order}").shuffle(steps)
        return [batches_of(self._encoder, recipe, step, key) for step in steps]

    def replay(
        self,
        stages: Sequence[str],
        start: Weights,
        change: Weights | None = None,
        *,
        order: int = 0,
        each: Callable[[], None] = lambda: None,
    ) -> tuple[Weights, Weights | None]:
        """Train stages one after the other, as `trained` trains one.

        Parameters
        ----------
        start: weights (float32) before the first of the stages.
        order: 0 for the data as they came, else the same data in another order.
        each: called after every step.
        """
        model = self._model()
        for stage in stages:
            recipe, data = train.RECIPES[stage], self.batches(stage, order)
            start, change = trained(model_loss(model, recipe, data), recipe, start, change, each)
        return start, change

    def _model(self):
        from transformers import AttentionInterface, AutoModelForCausalLM

        AttentionInterface.register(ATTENTION, plain_attention)
        folder = self.folder / self.stages[0]
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=ATTENTION
        ).eval()


def load_forward_mode() -> None:
    """Have torch load what forward-mode differentiation needs, before threads do it.

    It compiles source code then, as nnsight does when a model is traced, and CPython 3.11 raises SystemError when two
    threads parse at once.
    """
    torch.func.jvp(torch.sin, (torch.zeros(()),), (torch.ones(()),))


def model_loss(model, recipe: Recipe, data: Sequence[tuple[Batch, ...]]) -> Loss:
    """Return the loss of every step as a function of the weights of a model."""

    def loss(weights: Weights, reference: Weights, number: int) -> torch.Tensor:
        def run(given: Weights) -> train.Forward:
            return lambda batch: train.logits_of(
                lambda *ids, **inputs: torch.func.functional_call(model, given, ids, inputs), batch
            )

        return loss_of(recipe, data[number], run(weights), run(reference))

    return loss


def plain_attention(module, query, key, value, mask, scaling: float, dropout: float = 0.0, **_: Any):
    """Attention that can be differentiated forwards and backwards, in any precision; as many keys as queries."""
    scores = (query @ key.transpose(2, 3) * scaling).masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None
