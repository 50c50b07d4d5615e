"""Means and intervals: percentile bootstrap, Wilson's score interval, permutation p.

Sources: Efron & Tibshirani 1993, chapter 13 (percentile bootstrap); Wilson 1927; Phipson & Smyth 2010.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

RESAMPLES = 2000

CONFIDENCE = 0.95

SEED = 0
"""Seed of the generator of resamples. Each comparison starts anew, so results do not depend on what else is drawn."""

CHUNK = 256
"""Resamples held in memory at once: 256 x 32 layers x 20 tokens of float64 are 1.3 MB per matrix."""


@dataclass(frozen=True)
class Estimate:
    """A statistic with its interval."""

    value: float
    """On all items; NaN if undefined (the correlation with a constant matrix)."""
    low: float
    """Lower end of the interval; NaN with fewer than two items."""
    high: float
    """Upper end of the interval; NaN with fewer than two items."""
    n: int
    """Items used."""


@dataclass(frozen=True)
class Bootstrap:
    """A statistic on all items and on resamples of them, so that differences and means of several stay paired."""

    value: np.ndarray
    draws: np.ndarray
    """Dims resample x those of `value`."""
    n: int
    """Items used."""

    @cached_property
    def interval(self) -> np.ndarray:
        """Lower and upper end of the percentile interval; dims 2 x those of `value`."""
        return percentile_interval(self.draws)


def mean_over_items(values: np.ndarray) -> np.ndarray:
    """Return the mean over the first axis.

    Parameters
    ----------
    values
        Any unit, dims item x ...; finite.

    Raises
    ------
    ValueError
        There are no items, or a value is not finite (drop unfinished pairs first).

    Examples
    --------
    >>> mean_over_items(np.array([[[1.0, 2.0]], [[3.0, 4.0]]]))
    array([[2., 3.]])
    """
    values = checked(values)
    # Offsets from the first item: the mean of identical items is then exactly their value, also after resampling, and
    # rounding cannot move a value across the edge of a bin.
    return values[0] + (values - values[0]).mean(axis=0)


def resampled_counts(n: int, rng: np.random.Generator, resamples: int = RESAMPLES) -> Iterator[np.ndarray]:
    """Yield how often each of n items is drawn with replacement, chunk by chunk (dims resample x item).

    The counts determine any mean, so one matrix product replaces all draws of a chunk.

    Examples
    --------
    >>> [counts.shape for counts in resampled_counts(5, np.random.default_rng(0), resamples=300)]
    [(256, 5), (44, 5)]
    """
    for start in range(0, resamples, CHUNK):
        yield rng.multinomial(n, np.full(n, 1.0 / n), size=min(CHUNK, resamples - start))


def resampled_means(
    values: np.ndarray, rng: np.random.Generator, resamples: int = RESAMPLES
) -> Iterator[np.ndarray]:
    """Yield means over items drawn with replacement, chunk by chunk (dims resample x the rest).

    Parameters
    ----------
    values
        Any unit, dims item x ...; finite. Stack matrices along a later axis to resample them together.

    Examples
    --------
    >>> chunks = resampled_means(np.ones((5, 2, 3)), np.random.default_rng(0), resamples=300)
    >>> [chunk.shape for chunk in chunks]
    [(256, 2, 3), (44, 2, 3)]
    """
    values = checked(values)
    n = len(values)
    offsets = (values - values[0]).reshape(n, -1)
    for counts in resampled_counts(n, rng, resamples):
        yield values[0] + (counts @ offsets / n).reshape(len(counts), *values.shape[1:])


def mean_draws(values: np.ndarray) -> np.ndarray:
    """Return all means of `resampled_means`, on the resamples that every mean of as many items gets.

    Examples
    --------
    >>> mean_draws(np.ones((5, 2, 3))).shape
    (2000, 2, 3)
    """
    return np.concatenate(list(resampled_means(values, np.random.default_rng(SEED))))


def percentile_interval(draws: np.ndarray, confidence: float = CONFIDENCE) -> np.ndarray:
    """Return the lower and upper percentiles of resampled values along the first axis; NaN if a draw is NaN.

    Examples
    --------
    >>> percentile_interval(np.arange(101.0), confidence=0.9)
    array([ 5., 95.])
    """
    tail = (1.0 - confidence) / 2
    return np.quantile(draws, [tail, 1.0 - tail], axis=0)


def bootstrap_mean(values: np.ndarray) -> Estimate:
    """Return the mean with its percentile interval; NaN if there are too few items.

    Parameters
    ----------
    values
        Any unit, dims item; finite.

    Examples
    --------
    >>> bootstrap_mean(np.ones(5))
    Estimate(value=1.0, low=1.0, high=1.0, n=5)
    """
    n = len(values)
    if n == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    value = float(mean_over_items(values))
    if n == 1:
        return Estimate(value, np.nan, np.nan, 1)
    low, high = map(float, percentile_interval(mean_draws(values)))
    return Estimate(value, low, high, n)


def mean_interval(values: np.ndarray) -> np.ndarray:
    """Return the percentile interval of means over the first axis; NaN with too few items or a value missing.

    Parameters
    ----------
    values
        Any unit, dims item x ...

    Returns
    -------
    interval
        Lower and upper end; dims 2 x the rest.

    Examples
    --------
    >>> mean_interval(np.array([[1.0, 2.0], [1.0, np.nan]]))
    array([[ 1., nan],
           [ 1., nan]])
    """
    values = np.asarray(values, dtype=np.float64)
    found = np.full((2, *values.shape[1:]), np.nan)
    whole = np.isfinite(values).all(axis=0)
    if len(values) > 1 and whole.any():
        found[:, whole] = percentile_interval(mean_draws(values[:, whole]))
    return found


def mean_of(several: Sequence[Bootstrap]) -> Bootstrap:
    """Return the mean of statistics on separate sets of items, each resampled separately; n is the total.

    Examples
    --------
    >>> one = Bootstrap(np.array(0.5), np.array([0.4, 0.6]), n=20)
    >>> mean_of([one, one]).n
    40
    """
    return Bootstrap(
        np.mean([one.value for one in several], axis=0),
        np.mean([_shuffled(one, i) for i, one in enumerate(several)], axis=0),
        sum(one.n for one in several),
    )


def wilson(share: float | np.ndarray, n: int | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % Wilson score interval of a share of n items, valid also for shares of 0 and 1.

    NaN if n is 0. Source: Wilson 1927; Brown, Cai and DasGupta 2001.

    Examples
    --------
    >>> [round(float(end), 3) for end in wilson(0.0, 100)]
    [0.0, 0.037]
    """
    share, n, z = np.asarray(share, dtype=np.float64), np.asarray(n, dtype=np.float64), 1.959963984540054
    with np.errstate(invalid="ignore", divide="ignore"):
        middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return np.clip(middle - half, 0.0, 1.0), np.clip(middle + half, 0.0, 1.0)


def wilson_estimate(outcomes: np.ndarray) -> Estimate:
    """Return the share of positive outcomes with its Wilson interval; NaN if there are no outcomes.

    Parameters
    ----------
    outcomes
        0 or 1, dims item.

    Examples
    --------
    >>> round(wilson_estimate(np.ones(100, bool)).low, 3)
    0.963
    """
    n = len(outcomes)
    share = float(mean_over_items(outcomes)) if n else np.nan
    low, high = wilson(share, n)
    return Estimate(share, float(low), float(high), n)


def middle_range(values: np.ndarray) -> Estimate:
    """Return the median of values and the range of their middle 95 %.

    Examples
    --------
    >>> found = middle_range(np.arange(21.0))
    >>> found.value, round(found.low, 4), round(found.high, 4)
    (10.0, 0.5, 19.5)
    """
    low, high = percentile_interval(np.asarray(values))
    return Estimate(float(np.median(values)), float(low), float(high), len(values))


def permutation_p(found: float, null: np.ndarray) -> float:
    """Return the share of null values at least as large in absolute value, counting the observed one.

    It is never 0. Source: Phipson & Smyth 2010, "Permutation P-values should never be zero".

    Examples
    --------
    >>> permutation_p(2.0, np.array([-3.0, 1.0, 0.5]))
    0.5
    """
    return float((1 + (np.abs(null) >= abs(found)).sum()) / (1 + len(null)))


def checked(values: np.ndarray) -> np.ndarray:
    """Return values as float64; raise ValueError if there are none or one is not finite."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim == 0 or len(values) == 0:
        raise ValueError("no pair to average; the store is unfinished")
    if not np.isfinite(values).all():
        raise ValueError("values that are not finite; drop unfinished pairs first")
    return values


def _shuffled(one: Bootstrap, number: int) -> np.ndarray:
    """Return the draws in an order of their own for each set, since all sets start from the same seed."""
    return np.random.default_rng([SEED, number]).permutation(one.draws)
