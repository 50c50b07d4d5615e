"""Accuracies and intervention effects with intervals over statements.

Source of the effect: Du et al. 2025, section 4. The bootstrap is ours: the paper gives no intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from posttrace.figures.statistics import CONFIDENCE, RESAMPLES, SEED, percentile_interval, resampled_means
from posttrace.figures.truthfulness.source import StatementSet, Summary

EFFECTS = ("both", "false_to_true", "true_to_false")
"""The mean of the two directions of an intervention, and each."""


@dataclass(frozen=True)
class Drawn:
    """Values on all statements, and on resamples of them; a difference or mean of several stays paired."""

    value: np.ndarray
    draws: np.ndarray
    """dims resample x as `value`"""
    n: int

    @property
    def interval(self) -> np.ndarray:
        """Lower and upper end of the percentile interval; dims 2 x as `value`."""
        return percentile_interval(self.draws)


def accuracy(one: StatementSet, layer: int | None = None) -> Drawn:
    """Return the share of statements that each probe judges right; dims probe x source x target (x layer).

    Example
    -------
    >>> accuracy(one, layer=3).value.shape         # 2 kinds of probe, 3 stages
    (2, 3, 3)

    Arguments
    ---------
    layer: place on the layer axis; every layer when not given. All are of the same resamples.
    """
    correct = one.values("correct")
    correct = np.moveaxis(correct if layer is None else correct[..., layer], 3, 0).astype(np.float64)
    rng = np.random.default_rng(SEED)
    draws = np.concatenate(list(resampled_means(correct.reshape(len(correct), -1), rng)))
    return Drawn(correct.mean(axis=0), draws.reshape(len(draws), *correct.shape[1:]), len(correct))


def effect(one: StatementSet, p_diff: np.ndarray | None = None) -> Drawn:
    """Return effects of the pushes; dims kind (as `EFFECTS`) x direction x target.

    Example
    -------
    >>> effect(one).value.shape                    # none, 3 stages' directions, 20 random ones
    (3, 24, 3)

    Arguments
    ---------
    p_diff: P(TRUE) - P(FALSE) after each push, dims direction x target x statement; the group's own when not given.
        Beforehand is the group's own direction `none` in any case. True and false statements are resampled apart.

    `(~P- - P-) / (1 - P-)` of the false and `(~P+ - P+) / (-1 - P+)` of the true statements.
    """
    none = one.directions.index("none")
    before = one.values("p_diff")[none]
    after = one.values("p_diff") if p_diff is None else p_diff
    rng = np.random.default_rng(SEED)
    points, draws = [], []
    for wanted, goal in ((one.used & ~one.truth, 1.0), (one.used & one.truth, -1.0)):
        values = np.concatenate([before[None], after])[..., wanted]
        values = np.moveaxis(values, -1, 0).astype(np.float64)
        means = np.concatenate(list(resampled_means(values, rng)))
        points.append(_share(values.mean(axis=0), goal))
        draws.append(_share(means, goal))
    both = [(a + b) / 2 for a, b in (points, draws)]
    return Drawn(np.stack([both[0], *points]), np.stack([both[1], *draws], axis=1), int(one.used.sum()))


def _share(means: np.ndarray, goal: float) -> np.ndarray:
    """Share of the way to certainty; means: dims ... x (before, after each direction) x target."""
    before, after = means[..., :1, :], means[..., 1:, :]
    with np.errstate(invalid="ignore", divide="ignore"):
        return (after - before) / (goal - before)


def mean_of(several: Sequence[Drawn]) -> Drawn:
    """Return the mean over sets, each resampled by itself; n is the number of all statements.

    Example
    -------
    >>> mean_of([accuracy(one, layer=3), accuracy(other, layer=3)]).n      # of 20 and of 12 statements
    32
    """
    return Drawn(
        np.mean([one.value for one in several], axis=0),
        np.mean([_shuffled(one, i) for i, one in enumerate(several)], axis=0),
        sum(one.n for one in several),
    )


def _shuffled(one: Drawn, number: int) -> np.ndarray:
    """The draws in another order for each set: every set begins with the same generator."""
    return np.random.default_rng([SEED, number]).permutation(one.draws)


def control_range(values: np.ndarray) -> tuple[float, float, float]:
    """Return the median of random directions' effects, and the range that holds 95 % of them.

    Example
    -------
    >>> [round(float(x), 4) for x in control_range(np.arange(21.0))]
    [10.0, 0.5, 19.5]
    """
    low, high = percentile_interval(np.asarray(values))
    return float(np.median(values)), float(low), float(high)


def tested_sets(summary: Summary, sets: dict[str, StatementSet]) -> list[str]:
    """Return the sets whose probes are all tested, in the store's order."""
    return [name for name, done in zip(summary.sets, summary.tested, strict=True) if done and name in sets]


def pushed_sets(summary: Summary, sets: dict[str, StatementSet]) -> list[str]:
    """Return the sets whose interventions are all done, in the store's order."""
    return [name for name in summary.sets if name in sets and sets[name].pushed]


def interval_words() -> str:
    """Return how the intervals came about, for captions."""
    return (
        f"Brackets: {CONFIDENCE:.0%} percentile bootstrap interval over statements, {RESAMPLES} resamples, "
        f"seed {SEED}, each drawn independently of the others, also where a true and a false one are about the same "
        "entity; where every statement comes out alike the interval has no width, which is no certainty."
    )
