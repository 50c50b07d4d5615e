"""Candidate entropy neurons, how many of them two stages share, and how many they would share by chance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from posttrace.figures.measures.intervals import SEED, permutation_p

BANDS = 10
"""Bands of norm within which the second null model permutes LogitVar."""
PERMUTATIONS = 1000


@dataclass(frozen=True)
class Chance:
    """The overlap of two stages under a null model."""

    expected: float
    """Mean overlap."""
    p: float
    """Probability of at least the overlap found."""


def top_by_norm(norm: np.ndarray, top_share: float) -> np.ndarray:
    """Return the given share of neurons (rounded down, at least one) with the largest norms, largest first.

    Examples
    --------
    >>> top_by_norm(np.array([1.0, 4.0, 2.0, 3.0]), 0.5)
    array([1, 3])
    """
    count = max(1, int(len(norm) * top_share))
    return np.argsort(-np.asarray(norm), kind="stable")[:count]


def candidates(norm: np.ndarray, logit_var: np.ndarray, top_share: float, count: int) -> np.ndarray:
    """Return the candidate entropy neurons, smallest LogitVar first.

    Source: Du et al. 2025: the top 25 % by norm, of these the 10 with the smallest LogitVar.

    Parameters
    ----------
    norm, logit_var
        Dims neuron.
    top_share
        Share of the neurons, by norm, among which candidates are chosen.

    Examples
    --------
    >>> candidates(np.array([1.0, 4.0, 2.0, 3.0]), np.array([0.0, 0.3, 0.1, 0.2]), top_share=0.5, count=1)
    array([3])
    """
    pool = top_by_norm(norm, top_share)
    return pool[np.argsort(np.asarray(logit_var)[pool], kind="stable")[:count]]


def mean_ratio_difference(norms, logit_vars, shared: np.ndarray) -> float:
    """Return the mean of `|ratio_1 - ratio_2|` over shared candidates, ratio = norm / log(LogitVar); NaN if none.

    Source: Du et al. 2025.

    Parameters
    ----------
    norms, logit_vars
        Of the two stages, dims neuron each.
    shared
        Candidates of both.

    Examples
    --------
    >>> mean_ratio_difference(([1.0], [1.0]), ([np.exp(-2.0)], [np.exp(-4.0)]), np.array([0]))
    0.25
    """
    if not len(shared):
        return float("nan")
    one, two = (
        np.asarray(n)[shared] / np.log(np.asarray(v)[shared]) for n, v in zip(norms, logit_vars, strict=True)
    )
    return float(np.abs(one - two).mean())


def hypergeometric_overlap(norms, found: int, top_share: float, count: int) -> Chance:
    """Return the overlap expected if each stage drew its candidates at random from its own top neurons by norm.

    "8 of 10" means little if few neurons have large norms and they are the same in both stages. The result is exact:
    both the number of the first stage's draws that lie in the common pool and the number of these that the second stage
    draws again are hypergeometric.

    Parameters
    ----------
    norms
        Of the two stages, dims neuron each.
    found
        The overlap whose probability is wanted.

    Examples
    --------
    >>> hypergeometric_overlap((np.arange(40.0), np.arange(40.0)), found=0, top_share=0.5, count=5)
    Chance(expected=1.25, p=1.0)
    """
    from scipy.stats import hypergeom

    pool, other = (top_by_norm(norm, top_share) for norm in norms)
    size, common = len(pool), len(np.intersect1d(pool, other))
    hits = np.arange(count + 1)
    first = hypergeom(size, common, count).pmf(hits)
    at_least = sum(p * hypergeom(size, j, count).sf(found - 1) for j, p in zip(hits, first, strict=True) if p)
    return Chance(count * count * common / size**2, float(min(1.0, at_least)))


def permutation_overlap(norms, logit_vars, found: int, top_share: float, count: int) -> Chance:
    """Return the overlap expected if LogitVar were permuted among neurons of similar norm, in each stage separately.

    The stages keep their norms and the dependence of LogitVar on norm: it is permuted within ten bands of norm rank, a
    thousand times with a fixed seed. The probability counts the observed overlap, so it is never 0.

    Examples
    --------
    >>> same = np.arange(40.0)                     # LogitVar rises with norm, which explains the overlap
    >>> round(permutation_overlap((same, same), (same, same), found=5, top_share=0.5, count=5).expected, 1)
    4.5
    """
    rng = np.random.default_rng(SEED)
    pools = [top_by_norm(norm, top_share) for norm in norms]
    counts = np.array(
        [
            overlap(
                *(
                    pool[
                        np.argsort(_permuted_within_bands(np.asarray(values)[pool], rng), kind="stable")[
                            :count
                        ]
                    ]
                    for pool, values in zip(pools, logit_vars, strict=True)
                )
            )
            for _ in range(PERMUTATIONS)
        ]
    )
    return Chance(float(counts.mean()), permutation_p(found, counts))


def overlap(one: np.ndarray, two: np.ndarray) -> int:
    """Return how many neurons two selections share."""
    return len(np.intersect1d(one, two))


def matched(
    norm: np.ndarray, chosen: np.ndarray, sets: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return random neurons, and random sets of the size of `chosen`, from the range of norms of `chosen`.

    The range is widened by rank, equally on both sides, until it contains `sets` neurons other than the chosen ones (or
    all neurons). A set contains a neuron at most once.

    Raises
    ------
    ValueError
        There are too few neurons for a set without the chosen ones.

    Examples
    --------
    >>> singles, many = matched(np.arange(100.0), np.arange(80, 90), 50, np.random.default_rng(0))
    >>> singles.shape, many.shape
    ((50,), (50, 10))
    """
    order = np.argsort(np.asarray(norm), kind="stable")
    ranks = np.flatnonzero(np.isin(order, chosen))
    low, high = ranks.min(), ranks.max() + 1
    while high - low - len(chosen) < sets and (low > 0 or high < len(order)):
        low, high = max(0, low - 1), min(len(order), high + 1)
    pool = np.setdiff1d(order[low:high], chosen)
    if len(pool) < len(chosen):
        raise ValueError(f"{len(pool)} neurons other than the {len(chosen)} candidates are too few for a set")
    singles = rng.choice(pool, size=min(sets, len(pool)), replace=False)
    return singles, np.stack([rng.choice(pool, size=len(chosen), replace=False) for _ in range(sets)])


def _permuted_within_bands(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Permute values, which are in order of norm, within bands of norm."""
    bands = np.array_split(np.arange(len(values)), min(BANDS, len(values)))
    return np.concatenate([values[rng.permutation(band)] for band in bands])
