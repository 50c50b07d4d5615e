"""Effect of interventions on answers: the share of the distance to certainty of the opposite answer.

Source of the effect: Du et al. 2025, section 4. The bootstrap is ours: the paper gives no intervals.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from posttrace.figures.measures.intervals import SEED, Bootstrap, resampled_means

KINDS = ("both", "false_to_true", "true_to_false")
"""The two directions of an intervention, preceded by their mean."""


class Effects(NamedTuple):
    """Effects of interventions on false and on true statements: 0 is no effect, 1 certainty of the opposite."""

    false_to_true: np.ndarray
    true_to_false: np.ndarray

    @property
    def both(self) -> np.ndarray:
        """The mean of the two directions."""
        return (self.false_to_true + self.true_to_false) / 2


def share_of_the_way(before: np.ndarray, after: np.ndarray, goal: float) -> np.ndarray:
    """Return (after - before) / (goal - before) of mean answers; NaN if the answer was at the goal before.

    Examples
    --------
    >>> share_of_the_way(np.array([-0.5, 1.0]), np.array([0.25, 1.0]), goal=1.0)
    array([0.5, nan])
    """
    before = np.asarray(before, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(before == goal, np.nan, (after - before) / (goal - before))


def intervention_effect(before: np.ndarray, after: np.ndarray, truth: np.ndarray) -> Effects:
    """Return the effect of interventions: how far the mean answer went towards certainty of the opposite.

    `(~P- - P-) / (1 - P-)` and `(~P+ - P+) / (-1 - P+)`, with P and ~P the means before and after over the false (-)
    or true (+) statements.

    Parameters
    ----------
    before, after
        P(TRUE) - P(FALSE), dims ... x statement; leading dims of `before` are the last leading ones of
        `after`.
    truth
        Which statements are true, dims statement.

    Examples
    --------
    >>> effects = intervention_effect(np.array([-0.5, 0.5]), np.array([0.25, -0.25]), np.array([False, True]))
    >>> float(effects.false_to_true), float(effects.true_to_false)
    (0.5, 0.5)
    """
    before, after = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    return Effects(
        *(
            share_of_the_way(before[..., some].mean(-1), after[..., some].mean(-1), goal)
            for some, goal in _targets(truth)
        )
    )


def bootstrap_effect(before: np.ndarray, after: np.ndarray, truth: np.ndarray) -> Bootstrap:
    """Return effects, dims kind (as `KINDS`) x direction x target; true and false statements are resampled separately.

    Parameters
    ----------
    before
        P(TRUE) - P(FALSE), dims target x statement; finite.
    after
        The same under each direction, dims direction x target x statement; finite.
    truth
        Which statements are true, dims statement.

    Examples
    --------
    >>> truth = np.array([False, True])
    >>> bootstrap_effect(np.array([[-0.5, 0.5]]), np.array([[[0.25, -0.25]]]), truth).value.ravel()
    array([0.5, 0.5, 0.5])
    """
    rng = np.random.default_rng(SEED)
    draws = []
    for some, goal in _targets(truth):
        values = np.moveaxis(np.concatenate([before[None], after])[..., some], -1, 0)
        means = np.concatenate(list(resampled_means(values, rng)))
        draws.append(share_of_the_way(means[:, :1], means[:, 1:], goal))
    point, resampled = intervention_effect(before, after, truth), Effects(*draws)
    return Bootstrap(
        np.stack([point.both, *point]), np.stack([resampled.both, *resampled], axis=1), len(truth)
    )


def _targets(truth: np.ndarray) -> tuple[tuple[np.ndarray, float], ...]:
    """Return which statements are steered and towards which answer: false ones, then true ones."""
    truth = np.asarray(truth, dtype=bool)
    return (~truth, 1.0), (truth, -1.0)
