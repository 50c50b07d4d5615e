"""Run a model with other weights, and put its own back afterwards."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from posttrace.tracers.engines.behaviours import Question, behaviour_values
from posttrace.tracers.models.updates import Streamed
from posttrace.tracers.models.weighted import replaced, weighted_modules

Change = Callable[[str, torch.Tensor], torch.Tensor]
"""A weight's name and value -> its value in a changed model."""

KINDS = ("gaussian", "permuted")
"""Directions without a meaning that are as long as the update in every tensor."""


def values_with(
    model, prompts: Sequence[Question], weights: Mapping[str, torch.Tensor], *, max_tokens: int | None = None
) -> torch.Tensor:
    """Measure with other weights, by name; dims prompt, nats."""
    with replaced(weighted_modules(model.nn._module), weights):
        return behaviour_values(model, prompts, max_tokens=max_tokens)


def removed_values(
    model,
    prompts: Sequence[Question],
    update: Mapping[str, torch.Tensor],
    *,
    alphas: Sequence[float],
    max_tokens: int | None = None,
) -> torch.Tensor:
    """Measure with a share of an update taken out of the weights; dims alpha x prompt, nats.

    Source: task arithmetic (Ilharco et al. 2023, arXiv 2212.04089).
    """

    def without(alpha: float) -> Change:
        return lambda name, weight: torch.sub(weight, update[name], alpha=alpha)

    return _each(model, prompts, map(without, alphas), max_tokens)


def control_values(
    model,
    prompts: Sequence[Question],
    update: Mapping[str, torch.Tensor],
    *,
    kind: str,
    draws: int,
    seed: str,
    max_tokens: int | None = None,
) -> torch.Tensor:
    """Measure with a meaningless direction, as long as the update in each tensor, taken out of the weights.

    kind: `gaussian`, or `permuted`: the update's own entries, exchanged within each tensor. Dims draw x prompt, nats.
    """

    def drawn(draw: int) -> Change:
        def changed(name: str, weight: torch.Tensor) -> torch.Tensor:
            rng = _generator(f"{seed}/{kind}/{draw}/{name}")
            return weight - direction(update[name], kind, rng).to(weight)

        return changed

    return _each(model, prompts, map(drawn, range(draws)), max_tokens)


def rounding_values(
    model, prompts: Sequence[Question], *, draws: int, seed: str, max_tokens: int | None = None
) -> torch.Tensor:
    """Measure with weights moved at random within half a unit in bfloat16's last place; dims draw x prompt.

    It is how far rounding alone could have moved the behaviour of a checkpoint that is stored in bfloat16.
    """

    def drawn(draw: int) -> Change:
        def changed(name: str, weight: torch.Tensor) -> torch.Tensor:
            uniform = torch.rand(weight.shape, generator=_generator(f"{seed}/rounding/{draw}/{name}")) - 0.5
            return weight + uniform.to(weight) * last_place(weight)

        return changed

    return _each(model, prompts, map(drawn, range(draws)), max_tokens)


def direction(update: torch.Tensor, kind: str, rng: torch.Generator) -> torch.Tensor:
    """Return a direction without a meaning, as long as one tensor of an update (float32, on the CPU).

    >>> direction(torch.tensor([3.0, 4.0]), "permuted", torch.Generator().manual_seed(0)).norm()
    tensor(5.)
    """
    flat = update.detach().float().cpu().flatten()
    if kind == "permuted":
        return flat[torch.randperm(len(flat), generator=rng)].view(update.shape)
    noise = torch.randn(len(flat), generator=rng)
    return (noise * (flat.norm() / noise.norm())).view(update.shape)


def last_place(weight: torch.Tensor) -> torch.Tensor:
    """Return a unit in the last place of bfloat16 (eight significant bits) at each weight; 0 at 0.

    >>> last_place(torch.tensor([1.0, -3.0]))
    tensor([0.0078, 0.0156])
    """
    _, exponent = torch.frexp(weight)
    return torch.ldexp((weight != 0).to(weight), exponent - 8)


def _each(model, prompts, changes: Iterable[Change], max_tokens) -> torch.Tensor:
    """Measure with the weights changed in each way; the changed weights of one module are held at a time."""
    return torch.stack([_changed(model, prompts, change, max_tokens) for change in changes])


def _changed(model, prompts, change: Change, max_tokens) -> torch.Tensor:
    parameters = dict(model.nn._module.named_parameters())
    weights = Streamed(lambda name: change(name, parameters[name].float()), parameters)
    with torch.no_grad():
        return values_with(model, prompts, weights, max_tokens=max_tokens)


def _generator(key: str) -> torch.Generator:
    """Random numbers that depend on the key alone, the same on every device and in every order."""
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    return torch.Generator().manual_seed(number >> 1)
