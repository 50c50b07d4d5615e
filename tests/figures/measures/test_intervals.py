"""Means, bootstrap and score intervals against their definitions."""

import numpy as np
import pytest

from posttrace.figures.measures.intervals import (
    Bootstrap,
    bootstrap_mean,
    mean_of,
    mean_over_items,
    middle_range,
    percentile_interval,
    permutation_p,
    resampled_means,
    wilson,
    wilson_estimate,
)


def test_resampled_means_are_the_means_of_the_drawn_pairs():
    values = np.random.default_rng(0).normal(size=(6, 2, 3))
    chunks = list(resampled_means(values, np.random.default_rng(9), resamples=260))
    assert [len(chunk) for chunk in chunks] == [256, 4]
    drawn = np.random.default_rng(9).multinomial(6, [1 / 6] * 6, size=256)[17]
    np.testing.assert_allclose(chunks[0][17], np.repeat(values, drawn, axis=0).mean(axis=0))
    np.testing.assert_allclose(np.concatenate(chunks).mean(axis=0), mean_over_items(values), atol=0.15)


def test_wilson_is_the_score_interval():
    low, high = wilson(np.array([0.5, 1.0, 0.3]), np.array([20, 10, 0]))
    for end in (low[0], high[0]):
        assert abs(0.5 - end) / np.sqrt(end * (1 - end) / 20) == pytest.approx(1.959964, abs=1e-5)
    assert high[1] == pytest.approx(1.0) and low[1] == pytest.approx(0.7225, abs=1e-4)
    assert np.isnan([low[2], high[2]]).all()


def test_a_mean_has_an_interval_from_two_items_on():
    assert bootstrap_mean(np.array([2.0, 2.0])).low == 2.0
    assert bootstrap_mean(np.array([2.0])).value == 2.0 and np.isnan(bootstrap_mean(np.array([2.0])).low)
    nothing = bootstrap_mean(np.array([]))
    assert nothing.n == 0 and np.isnan([nothing.value, nothing.low, nothing.high]).all()


def test_the_interval_of_a_mean_covers_it_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    found = [bootstrap_mean(rng.normal(size=40)) for _ in range(100)]
    assert 86 <= sum(one.low <= 0 <= one.high for one in found) <= 99


def test_the_interval_of_a_share_is_wilsons():
    found = wilson_estimate(np.arange(10) < 3)
    assert (found.value, found.n) == (pytest.approx(0.3), 10)
    assert (found.low, found.high) == pytest.approx(tuple(map(float, wilson(0.3, 10))))
    assert np.isnan(wilson_estimate(np.array([])).value)


def test_the_mean_of_sets_varies_less_than_each():
    """Two sets with the same draws are not the same set: resampled apart, their mean has a narrower interval."""
    one = Bootstrap(np.array(0.0), np.random.default_rng(0).normal(size=2000), 10)
    both = mean_of([one, one])
    assert both.n == 20 and np.ptp(both.interval) == pytest.approx(np.ptp(one.interval) / np.sqrt(2), rel=0.1)


def test_the_middle_range_is_that_of_percentiles():
    values = np.random.default_rng(0).normal(size=50)
    found = middle_range(values)
    assert found.value == np.median(values)
    np.testing.assert_array_equal([found.low, found.high], percentile_interval(values))


def test_p_of_a_permutation_counts_the_value_in():
    assert permutation_p(-2.0, np.array([3.0, 1.0])) == pytest.approx(2 / 3)
    assert permutation_p(5.0, np.zeros(9)) == pytest.approx(0.1)
