"""Path attribution and swaps the naive way: gradients of the weights, and whole forward passes of one prompt."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence

import torch

from posttrace.tracers.engines.behaviours import Question, behaviour_values, row_batch, run_batch
from posttrace.tracers.engines.path_attribution import slopes_at
from posttrace.tracers.engines.swaps import Setting, in_setting
from posttrace.tracers.models.weighted import parts_of, replaced, weighted_modules
from posttrace.tracers.oracles.compare import compared, sample, tolerance

Weights = Mapping[str, torch.Tensor]


def naive_slopes(model, prompt: Question, update: Weights, s: float) -> dict[str, float]:
    """<df/dW, dW> of every weight at one place of the path, by automatic differentiation of the weights."""
    module = model.nn._module
    moved = {
        name: (weight.detach() + (s - 1) * update[name]).requires_grad_()
        for name, weight in module.named_parameters()
    }
    with torch.enable_grad(), replaced(weighted_modules(module), moved):
        f = torch.stack([run_batch(model, row_batch(model, [row]))[0] for row in prompt]).sum()
        slopes = torch.autograd.grad(f, list(moved.values()))
    return {
        name: float((slope.double() * update[name].double()).sum())
        for name, slope in zip(moved, slopes, strict=True)
    }


def check_slopes(
    model, prompts: Sequence[Question], update: Weights, *, share: float, rng: random.Random
) -> tuple[int, float]:
    """Compute df/ds of a random share of prompts (1 to 8) from the weights' gradients: how many, largest miss.

    Raises TracerError when one differs by more than rounding explains.
    """
    largest, chosen = 0.0, sample(range(len(prompts)), share, rng)
    for i in chosen:
        s = rng.random()
        fast = float(slopes_at(model, prompts, update, [(i, s)]).total[0])
        slopes = naive_slopes(model, prompts[i], update, s)
        allowed = tolerance(torch.float32) * max(1.0, sum(map(abs, slopes.values())))
        what = f"model {model.name}: prompt {i}: slope at {s:.2f} of the path"
        largest = max(largest, compared(fast, sum(slopes.values()), allowed, what))
    return len(chosen), largest


def naive_swap(model, prompt: Question, earlier: Weights, setting: Setting) -> float:
    """Return the behaviour of one prompt in one setting, no block skipped."""
    with in_setting(weighted_modules(model.nn._module), earlier, setting, model.n_layers):
        return float(behaviour_values(model, [prompt])[0])


def check_swaps(
    model,
    prompts: Sequence[Question],
    earlier: Weights,
    settings: Sequence[Setting],
    *,
    values: torch.Tensor,
    share: float,
    rng: random.Random,
) -> tuple[int, float]:
    """Compute a random share of swapped values (1 to 8) without skipping: how many, and the largest difference.

    Raises TracerError when one differs by more than rounding explains.
    """
    largest, cells = 0.0, [(k, i) for k in range(len(settings)) for i in range(len(prompts))]
    chosen = sample(cells, share, rng)
    for k, i in chosen:
        naive = naive_swap(model, prompts[i], earlier, settings[k])
        what = f"model {model.name}: prompt {i}: swap {k}"
        allowed = tolerance(torch.float32) * max(1.0, abs(naive))
        largest = max(largest, compared(float(values[k, i]), naive, allowed, what))
    return len(chosen), largest


def shapley_values(model, prompt: Question, earlier: Weights) -> list[float]:
    """Return every part's exact Shapley value: its mean effect over all orders of exchanging parts (nats).

    2^parts whole forward passes: for models of two or three blocks. The values sum to f(later) - f(earlier).
    """
    n = len(parts_of(model.n_layers))
    value = {
        setting: naive_swap(model, prompt, earlier, setting)
        for setting in itertools.product((False, True), repeat=n)
    }
    found = [0.0] * n
    for setting, f in value.items():
        size = sum(setting)
        for part in range(n):
            if not setting[part]:
                weight = math.factorial(size) * math.factorial(n - size - 1) / math.factorial(n)
                found[part] += weight * (value[(*setting[:part], True, *setting[part + 1 :])] - f)
    return found
