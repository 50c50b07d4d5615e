"""Neuron ablation the naive way: one whole forward pass per row and set of neurons, no block skipped."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from posttrace.tracers.engines.neuron_ablation import (
    AblationEffects,
    run_unablated,
    text_batches,
    trace_ablated,
)
from posttrace.tracers.models.mlp_neurons import Neurons
from posttrace.tracers.oracles.compare import compared, sample, tolerance


def check_ablation(
    model,
    rows: Sequence[Sequence[int]],
    *,
    neurons: Neurons,
    mean: torch.Tensor,
    ablations: Sequence[Sequence[int]],
    effects: AblationEffects,
    share: float,
    rng: random.Random,
) -> tuple[int, float]:
    """Compute a random share of the effects (1 to 8) by whole forward passes: how many, the largest difference.

    Raises
    ------
    TracerError
        If one differs by more than rounding explains.

    Examples
    --------
    >>> check_ablation(model, rows, effects=found, share=0.01, rng=random.Random(0), **same)      # doctest: +SKIP
    (12, 4.1e-07)
    """
    cells = [(a, row) for a in range(len(ablations)) for row in range(len(rows))]
    chosen = sample(cells, share, rng)
    largest = 0.0
    with torch.no_grad():
        for a, row in chosen:
            (batch,) = text_batches([rows[row]], neurons)
            run = run_unablated(model.nn, batch.ids, neurons)
            where = f"neurons {list(ablations[a])[:10]} of block {neurons.layer} at their mean"
            for direct, how in ((False, "total"), (True, "direct")):
                scores = trace_ablated(
                    model.nn, batch, run, neurons, mean, list(ablations[a]), direct, whole=True
                )
                for score, values in zip(("entropy", "loss"), scores, strict=True):
                    naive, fast = float(batch.mean(values)), float(getattr(effects, f"{score}_{how}")[a, row])
                    allowed = tolerance(model.dtype) * max(1.0, abs(naive))
                    what = f"model {model.name}: {where}: {score} ({how})"
                    largest = max(largest, compared(fast, naive, allowed, what))
    return len(chosen), largest
