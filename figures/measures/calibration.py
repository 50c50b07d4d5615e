"""Calibration of answers: bins of confidence and the expected calibration error, with intervals over statements.

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv 1706.04599); the intervals are ours.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from posttrace.figures.measures.intervals import SEED, Estimate, percentile_interval, resampled_counts

BINS = 10
"""Bins of equal width over the range of a confidence, 0.5 to 1."""

EDGES = np.linspace(0.5, 1.0, BINS + 1)


class Judged(NamedTuple):
    """Answers to the same statements; dims statement."""

    confidence: np.ndarray
    """0.5 to 1"""
    right: np.ndarray
    """Whether the answer is right."""


def bins_of(confidence: np.ndarray) -> np.ndarray:
    """Return the bin of each confidence; bins include their lower edge, the last one both edges.

    Examples
    --------
    >>> bins_of(np.array([0.5, 0.55, 1.0]))
    array([0, 1, 9])
    """
    return np.clip(np.searchsorted(EDGES, np.asarray(confidence), side="right") - 1, 0, BINS - 1)


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Return the expected calibration error: `|accuracy - mean confidence|` per bin, weighted by its statements.

    Examples
    --------
    >>> round(calibration_error(np.array([0.9, 0.9, 0.6, 0.6]), np.array([True, True, True, False])), 3)
    0.1
    """
    return float(_statistics(np.ones((1, len(right))), confidence, right)["ece"][0])


def estimates(confidence: np.ndarray, right: np.ndarray) -> dict[str, Estimate]:
    """Return accuracy, mean confidence, their difference and ECE, with percentile intervals over statements.

    Parameters
    ----------
    confidence, right
        Of one stage, dims statement. Noise biases ECE upward, which resampling cannot show.

    Examples
    --------
    >>> estimates(np.full(50, 0.9), np.ones(50, bool))["accuracy"].value
    1.0
    """
    return _estimated(len(right), lambda counts: _statistics(counts, confidence, right))


def differences(first: Judged, second: Judged) -> dict[str, Estimate]:
    """Return second minus first for each statistic, on the same statements, with paired intervals.

    Examples
    --------
    >>> one, two = (Judged(np.full(9, sure), np.ones(9, bool)) for sure in (0.9, 0.8))
    >>> round(differences(one, two)["confidence"].value, 3)
    -0.1
    """

    def statistics(counts):
        one, two = _statistics(counts, *first), _statistics(counts, *second)
        return {name: two[name] - one[name] for name in one}

    return _estimated(len(first.right), statistics)


def _statistics(counts: np.ndarray, confidence, right) -> dict[str, np.ndarray]:
    """Return the statistics of resamples that draw statement i `counts[:, i]` times; dims resample each."""
    confidence, right = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    n = len(right)
    gaps = np.zeros((n, BINS))
    gaps[np.arange(n), bins_of(confidence)] = right - confidence
    accuracy, mean = counts @ right / n, counts @ confidence / n
    return {
        "accuracy": accuracy,
        "confidence": mean,
        "overconfidence": mean - accuracy,
        "ece": np.abs(counts @ gaps).sum(axis=1) / n,
    }


def _estimated(n: int, statistics) -> dict[str, Estimate]:
    point = {name: float(values[0]) for name, values in statistics(np.ones((1, n))).items()}
    if n < 2:
        return {name: Estimate(value, np.nan, np.nan, n) for name, value in point.items()}
    rng = np.random.default_rng(SEED)
    draws: dict[str, list] = {name: [] for name in point}
    for counts in resampled_counts(n, rng):
        for name, values in statistics(counts).items():
            draws[name].append(values)
    intervals = {name: percentile_interval(np.concatenate(values)) for name, values in draws.items()}
    return {
        name: Estimate(point[name], float(low), float(high), n) for name, (low, high) in intervals.items()
    }
