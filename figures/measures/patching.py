"""Patching grids: normalisation, comparison of two matrices, recovered share, estimates versus exact values.

Source: Du et al. 2025, "How Post-Training Reshapes LLMs" (arXiv 2504.02904), appendix "Causal Tracing Matrix
Normalization", for `normalise` and the three statistics. The bootstrap is ours: the paper gives no intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from posttrace.figures.measures.intervals import (
    CONFIDENCE,
    RESAMPLES,
    SEED,
    Estimate,
    checked,
    mean_over_items,
    percentile_interval,
    resampled_means,
)

BINS = 20
"""Equal-width bins of the normalisation; the lower half becomes 0."""

MARGIN = 1e-5
"""Added to both ends of the range, nats, so that no value lies on the outermost edges."""

LEVELS = np.concatenate([np.zeros(BINS // 2), np.arange(1, BINS // 2 + 1) / (BINS // 2)])
"""Value of each bin: ten zeros, then 0.1, 0.2 ... 1.0."""

CONSTANT = 1e-12
"""Variance, relative to the mean square, below which values count as constant."""


@dataclass(frozen=True)
class PooledAgreement:
    """How far estimates are from exact values, over the cells of all pairs."""

    correlation: Estimate
    """Pearson r; NaN where either side is constant."""
    mean_miss: Estimate
    """Mean `|estimate - exact|`, in the values' unit."""


def normalise(matrix: np.ndarray) -> np.ndarray:
    """Map each value to 0 (lower ten of 20 equal bins over the matrix's range) or to 0.1, 0.2 ... 1.0 (upper ten).

    Source: Du et al. 2025, "Causal Tracing Matrix Normalization"; the bins lie over [min - 1e-5, max + 1e-5].

    Parameters
    ----------
    matrix
        Mean logit difference, nats, dims ... x layer x token; leading axes (resamples) are normalised separately.

    Raises
    ------
    ValueError
        A value is not finite.

    Examples
    --------
    >>> normalise(np.array([[0.0, 4.0], [6.5, 10.0]]))
    array([[0. , 0. ],
           [0.3, 1. ]])
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    if not np.isfinite(matrix).all():
        raise ValueError(
            "normalise: the matrix holds values that are not finite; drop unfinished pairs first"
        )
    low = matrix.min(axis=(-2, -1), keepdims=True) - MARGIN
    high = matrix.max(axis=(-2, -1), keepdims=True) + MARGIN
    width = (high - low) / BINS
    index = np.clip(np.floor((matrix - low) / width), 0, BINS - 1)
    # The quotient may round across an edge. Comparing with the edges (computed as in `numpy.linspace`) gives the same
    # bin as `numpy.digitize`, for all resamples at once.
    index += (matrix >= (index + 1) * width + low) & (index < BINS - 1)
    index -= (matrix < index * width + low) & (index > 0)
    return LEVELS[index.astype(np.intp)]


def correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return Pearson's r over all cells of two matrices; NaN if either is constant.

    Parameters
    ----------
    first, second
        Dims ... x layer x token, any unit; leading axes are compared one by one.

    Examples
    --------
    >>> float(correlation(np.array([[0.0, 1.0]]), np.array([[2.0, 4.0]])))
    1.0
    """
    first, second = (m.reshape(*m.shape[:-2], -1) for m in (np.asarray(first), np.asarray(second)))
    constant = (np.ptp(first, axis=-1) == 0) | (np.ptp(second, axis=-1) == 0)
    first = first - first.mean(axis=-1, keepdims=True)
    second = second - second.mean(axis=-1, keepdims=True)
    norm = np.sqrt((first**2).sum(axis=-1) * (second**2).sum(axis=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.clip((first * second).sum(axis=-1) / norm, -1.0, 1.0)
    return np.where(constant, np.nan, r)


def largest_difference(
    first: np.ndarray, second: np.ndarray, columns: Sequence[int] | None = None
) -> np.ndarray:
    """Return max|first - second| over all token columns, or some of them.

    Parameters
    ----------
    first, second
        Dims ... x layer x token, same unit.
    columns
        Positions on the token axis; all by default, and NaN for an empty selection.

    Examples
    --------
    >>> float(largest_difference(np.array([[0.0, 1.0]]), np.array([[0.5, 1.0]]), columns=[1]))
    0.0
    """
    difference = np.abs(np.asarray(first) - np.asarray(second))
    if columns is not None:
        difference = difference[..., list(columns)]
    if difference.shape[-1] == 0:
        return np.full(difference.shape[:-2], np.nan)
    return difference.max(axis=(-2, -1))


def compare(
    first: np.ndarray,
    second: np.ndarray,
    key_columns: Sequence[int],
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> dict[tuple[str, str], Estimate]:
    """Return the paper's three statistics between two mean matrices, normalised and raw, with intervals over pairs.

    Each resample draws the same pairs for both matrices, averages, normalises again and compares; the interval is the
    percentile interval of these values. For the two maxima it is *biased upward*: noise can only raise a maximum of
    absolute differences, so resampled maxima lie above the estimate, and the interval may even exclude it. Read it as
    "no larger than", not as a test against zero. For the correlation of two nearly equal matrices it is biased downward
    for the same reason: read it as "no less than".

    Source: statistics Du et al. 2025; percentile bootstrap Efron & Tibshirani 1993, chapter 13.

    Parameters
    ----------
    first, second
        Logit difference, nats, dims pair x layer x token; the same pairs in the same order; finite.
    key_columns
        Token columns that count for K (subject and object; knowledge in free-form sets).

    Returns
    -------
    dict
        (scale, statistic) -> estimate, with scale "normalised" or "raw" and statistic "correlation", "max" or "max_k".

    Raises
    ------
    ValueError
        Shapes differ, there are no pairs, or a value is not finite.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> base, sft = rng.normal(size=(2, 24, 8, 14))
    >>> compare(base, sft, key_columns=[3, 8], rng=rng)["normalised", "correlation"].n
    24
    """
    first, second = checked(first), checked(second)
    if first.shape != second.shape:
        raise ValueError(
            f"compare: shapes {first.shape} and {second.shape} differ; pass the same pairs of one set"
        )
    point = _statistics(mean_over_items(first), mean_over_items(second), key_columns)
    n = len(first)
    if n < 2:
        return {key: Estimate(float(value), np.nan, np.nan, n) for key, value in point.items()}
    draws: dict[tuple[str, str], list[np.ndarray]] = {key: [] for key in point}
    for means in resampled_means(np.stack([first, second], axis=1), rng, resamples):
        for key, values in _statistics(means[:, 0], means[:, 1], key_columns).items():
            draws[key].append(values)
    intervals = {
        key: percentile_interval(np.concatenate(values), confidence) for key, values in draws.items()
    }
    return {
        key: Estimate(float(value), float(intervals[key][0]), float(intervals[key][1]), n)
        for key, value in point.items()
    }


def recovered_share(patched: np.ndarray, clean: np.ndarray, corrupt: np.ndarray) -> np.ndarray:
    """Return (patched - corrupt) / (clean - corrupt) of means: 0 = patching changed nothing, 1 = like the clean run.

    A ratio of means, not a mean of ratios, which pairs with nearly equal clean and corrupt values would dominate.

    Parameters
    ----------
    patched
        Mean logit difference, nats, dims ... x layer x column.
    clean, corrupt
        Mean unpatched logit difference, nats, dims ...; clean in the source, corrupt in the target.

    Examples
    --------
    >>> recovered_share(np.array([[-1.0, 1.0]]), np.array(3.0), np.array(-1.0))
    array([[0. , 0.5]])
    """
    clean, corrupt = np.asarray(clean)[..., None, None], np.asarray(corrupt)[..., None, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        return (patched - corrupt) / (clean - corrupt)


def recovered_share_interval(
    patched: np.ndarray,
    clean: np.ndarray,
    corrupt: np.ndarray,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the recovered share and the ends of its percentile interval, dims layer x column each.

    Parameters
    ----------
    patched
        Logit difference, nats, dims pair x layer x column; finite.
    clean, corrupt
        Unpatched logit difference of the same pairs, nats, dims pair; finite.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> share, low, high = recovered_share_interval(np.zeros((5, 1, 2)), np.ones(5), -np.ones(5), rng)
    >>> share, high - low
    (array([[0.5, 0.5]]), array([[0., 0.]]))
    """
    n, shape = len(patched), patched.shape[1:]
    together = np.concatenate([np.reshape(patched, (n, -1)), np.stack([clean, corrupt], axis=1)], axis=1)

    def share(means: np.ndarray) -> np.ndarray:
        return recovered_share(
            means[..., :-2].reshape(*means.shape[:-1], *shape), means[..., -2], means[..., -1]
        )

    point = share(mean_over_items(together))
    if n < 2:
        return point, np.full(shape, np.nan), np.full(shape, np.nan)
    draws = np.concatenate([share(means) for means in resampled_means(together, rng, resamples)])
    return point, *percentile_interval(draws, confidence)


def pooled_agreement(estimate: np.ndarray, exact: np.ndarray) -> PooledAgreement:
    """Compare estimates with exact values over the cells of all pairs, with percentile intervals over pairs.

    Parameters
    ----------
    estimate, exact
        Same unit, dims pair x layer x token; NaN if there is no cell.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> exact = rng.normal(size=(6, 4, 5))
    >>> round(pooled_agreement(exact + 1, exact).mean_miss.value, 6)
    1.0
    """
    n = len(estimate)
    miss = np.abs(estimate - exact)
    # Sums over the cells of each pair determine both for any resample of pairs. Values are centred first, so that r is
    # not a small difference of large sums.
    x, y = (values - np.nanmean(values) for values in (estimate, exact))
    terms = (np.isfinite(miss), x, y, x * x, y * y, x * y, miss)
    sums = np.stack([np.nansum(term.reshape(n, -1), axis=1) for term in terms], axis=1)
    point = _r_and_mean(mean_over_items(sums))
    low, high = np.full(2, np.nan), np.full(2, np.nan)
    if n > 1:
        means = resampled_means(sums, np.random.default_rng(SEED))
        low, high = percentile_interval(np.concatenate([_r_and_mean(chunk) for chunk in means]))
    r, mean = (Estimate(float(point[i]), float(low[i]), float(high[i]), n) for i in range(2))
    return PooledAgreement(correlation=r, mean_miss=mean)


def _statistics(
    first: np.ndarray, second: np.ndarray, key_columns: Sequence[int]
) -> dict[tuple[str, str], np.ndarray]:
    result = {}
    for scale, one, other in (("normalised", normalise(first), normalise(second)), ("raw", first, second)):
        result[scale, "correlation"] = correlation(one, other)
        result[scale, "max"] = largest_difference(one, other)
        result[scale, "max_k"] = largest_difference(one, other, key_columns)
    return result


def _r_and_mean(sums: np.ndarray) -> np.ndarray:
    """Return Pearson r (NaN if either side is constant) and mean miss from the sums of `pooled_agreement`."""
    cells, *rest = np.moveaxis(sums, -1, 0)
    x, y, xx, yy, xy, miss = (term / cells for term in rest)
    one, other = xx - x**2, yy - y**2
    constant = (one <= CONSTANT * xx) | (other <= CONSTANT * yy)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.clip((xy - x * y) / np.sqrt(one * other), -1.0, 1.0)
    return np.stack([np.where(constant, np.nan, r), miss], axis=-1)
