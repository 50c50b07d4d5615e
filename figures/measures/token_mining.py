"""Order the vocabulary by what changed, with intervals over blocks of documents and ranks in a control pair."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from posttrace.figures.measures.intervals import SEED, percentile_interval, resampled_counts


@dataclass(frozen=True)
class Mined:
    """The tokens that lead one ordering, the first one first."""

    token: np.ndarray
    """Ids, dims rank."""
    value: np.ndarray
    """Mean over the tokens of the text, dims rank."""
    low: np.ndarray
    """Lower ends of 95 % bootstrap intervals over blocks of documents; NaN with fewer than two blocks."""
    high: np.ndarray
    control_rank: np.ndarray
    """Rank of the same token in the control pair, 1 the first; 0 without a control."""


def ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of every value, 1 for the highest; equal ones share the best rank.

    Examples
    --------
    >>> ranks(np.array([0.5, 2.0, 0.5])).tolist()
    [2, 1, 2]
    """
    ordered = np.sort(values)
    return len(values) - np.searchsorted(ordered, values, side="right") + 1


def mined(sums: np.ndarray, n_tokens: np.ndarray, control: np.ndarray | None, top: int) -> Mined:
    """Return the `top` tokens of the vocabulary with the highest means.

    Examples
    --------
    >>> found = mined(np.array([[1.0, 4.0], [1.0, 6.0]]), np.array([10, 10]), None, top=1)
    >>> found.token.tolist(), found.value.tolist()
    ([1], [0.5])

    Parameters
    ----------
    sums: of each block of documents and token of the vocabulary, dims block x vocabulary.
    n_tokens: tokens of the text in each block.
    control: as `sums`, of the control pair.
    """
    sums = sums.astype(np.float64)
    value = sums.sum(axis=0) / n_tokens.sum()
    token = np.argsort(-value, kind="stable")[:top]
    low = high = np.full(len(token), np.nan)
    if len(sums) > 1:
        draws = [
            counts @ sums[:, token] / (counts @ n_tokens)[:, None]
            for counts in resampled_counts(len(sums), np.random.default_rng(SEED))
        ]
        low, high = percentile_interval(np.concatenate(draws))
    rank = np.zeros(len(token), int) if control is None else ranks(control.sum(axis=0))[token]
    return Mined(token=token, value=value[token], low=low, high=high, control_rank=rank)


def share_of_top(values: np.ndarray, share: float) -> float:
    """Return what share of a sum its largest values hold; NaN where the sum is 0.

    Examples
    --------
    >>> share_of_top(np.array([8.0, 1.0, 1.0, 0.0]), 0.25)
    0.8
    """
    largest = np.sort(values)[::-1][: max(1, round(share * len(values)))]
    total = values.sum()
    return float(largest.sum() / total) if total > 0 else float("nan")
