"""Candidates, and the overlap of two stages expected by chance, against enumeration and known worlds."""

import itertools
from math import comb

import numpy as np
import pytest

from posttrace.figures.measures.entropy_neurons import (
    candidates,
    hypergeometric_overlap,
    matched,
    overlap,
    permutation_overlap,
)

STAGES = ("base", "instruct")


def test_the_overlap_by_chance_is_that_of_drawing():
    """Enumerated: all pairs of choices of 2 out of pools of 4 that have 3 neurons in common."""
    one, two = np.array([9.0, 8, 7, 6, 0, 1, 2, 3]), np.array([9.0, 8, 7, 0, 6, 1, 2, 3])
    pools = [(0, 1, 2, 3), (0, 1, 2, 4)]
    counts = [
        len(set(a) & set(b)) for a, b in itertools.product(*(itertools.combinations(p, 2) for p in pools))
    ]
    assert len(counts) == comb(4, 2) ** 2
    for found in (0, 1, 2):
        null = hypergeometric_overlap((one, two), found, top_share=0.5, count=2)
        assert null.expected == pytest.approx(np.mean(counts))
        assert null.p == pytest.approx(np.mean([c >= found for c in counts]))


def test_overlap_that_norm_explains_is_expected_by_the_exchange():
    """LogitVar falls with norm alone: the same neurons are candidates in both stages, and so in every exchange."""
    norm = np.linspace(1, 2, 400)
    rng = np.random.default_rng(1)
    variances = [np.exp(-8 * norm) * rng.uniform(0.99, 1.01, 400) for _ in STAGES]
    found = overlap(*(candidates(norm, v, 0.25, 10) for v in variances))
    assert hypergeometric_overlap((norm, norm), found, 0.25, 10).p < 1e-3
    assert permutation_overlap((norm, norm), variances, found, 0.25, 10).expected > found - 2
    assert permutation_overlap((norm, norm), variances, found, 0.25, 10).p > 0.2
    unrelated = [rng.uniform(size=400) for _ in STAGES]
    null = permutation_overlap((norm, norm), unrelated, 0, 0.25, 10)
    assert null.expected == pytest.approx(1.0, abs=0.15) and null.p == 1


def test_controls_have_the_candidates_range_of_norms():
    norm = np.random.default_rng(0).permutation(np.linspace(1, 2, 1000))
    picked = np.argsort(norm)[[700, 720, 850]]
    singles, sets = matched(norm, picked, 50, np.random.default_rng(1))
    low, high = norm[picked].min(), norm[picked].max()
    for members in (singles, sets.ravel()):
        assert not np.isin(members, picked).any()
        assert (norm[members] >= low).all() and (norm[members] <= high).all()
    assert len(set(singles)) == 50 and sets.shape == (50, 3)
    narrow = np.argsort(norm)[[995, 996, 997]]  # no neuron between them: the range is widened
    assert len(set(matched(norm, narrow, 50, np.random.default_rng(1))[0])) == 50
