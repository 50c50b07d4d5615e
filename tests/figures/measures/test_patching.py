"""The aggregation against loops that spell out the definition, and properties that hold for any data."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from posttrace.figures.measures.patching import (
    LEVELS,
    compare,
    correlation,
    largest_difference,
    normalise,
    recovered_share_interval,
)

# Values as logit differences are: well apart from the resolution of a float64, or exactly equal.
nats = st.floats(-30, 30, width=32).map(lambda x: round(x, 3))
matrices = arrays.arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=nats)


def normalise_by_loop(matrix):
    """The definition, cell by cell: which of the 20 bins does a value fall into?"""
    edges = np.linspace(matrix.min() - 1e-5, matrix.max() + 1e-5, 21)
    result = np.empty_like(matrix)
    for place, value in np.ndenumerate(matrix):
        for bin_number in range(1, 21):
            if edges[bin_number - 1] <= value < edges[bin_number]:
                result[place] = 0 if bin_number <= 10 else (bin_number - 10) / 10
    return result


def statistics_by_loop(first, second, key_columns):
    def three(one, other):
        differences = [abs(one[cell] - other[cell]) for cell in np.ndindex(one.shape)]
        key = [abs(one[cell] - other[cell]) for cell in np.ndindex(one.shape) if cell[1] in key_columns]
        return stats.pearsonr(one.ravel(), other.ravel())[0], max(differences), max(key)

    raw = [sum(values) / len(values) for values in (first, second)]
    return {
        (scale, name): value
        for scale, pair in (("normalised", [normalise_by_loop(m) for m in raw]), ("raw", raw))
        for name, value in zip(("correlation", "max", "max_k"), three(*pair), strict=True)
    }


@given(matrices)
def test_normalise_agrees_with_the_definition_cell_by_cell(matrix):
    np.testing.assert_array_equal(normalise(matrix), normalise_by_loop(matrix))


@given(matrices)
def test_normalise_puts_every_value_into_the_bin_that_digitize_finds(matrix):
    edges = np.linspace(matrix.min() - 1e-5, matrix.max() + 1e-5, 21)
    np.testing.assert_array_equal(normalise(matrix), LEVELS[np.digitize(matrix, edges) - 1])


def test_levels_are_exactly_the_published_ones():
    assert LEVELS.tolist() == [0.0] * 10 + [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    ramp = normalise(np.linspace(0.025, 0.975, 20)[None])
    assert ramp[0].tolist() == LEVELS.tolist()


@given(arrays.arrays(np.float64, (3, 4, 5), elements=nats))
def test_normalise_treats_each_resample_apart(stack):
    np.testing.assert_array_equal(normalise(stack), np.stack([normalise(matrix) for matrix in stack]))


def test_normalise_refuses_an_unfinished_matrix():
    with pytest.raises(ValueError, match="not finite"):
        normalise(np.array([[0.0, np.nan]]))


@given(matrices, st.randoms(use_true_random=False))
def test_correlation_is_symmetric_and_bounded(matrix, random):
    other = matrix * random.choice([-1.0, 0.5]) + np.arange(matrix.size).reshape(matrix.shape)
    one, two = correlation(matrix, other), correlation(other, matrix)
    np.testing.assert_array_equal(one, two)
    assert np.isnan(one) or -1 <= one <= 1


@given(matrices)
def test_a_matrix_does_not_differ_from_itself(matrix):
    assert largest_difference(matrix, matrix) == 0
    r = correlation(matrix, matrix)
    assert np.isnan(r) if np.ptp(matrix) == 0 else r == pytest.approx(1)


def test_correlation_with_a_constant_matrix_is_not_defined():
    assert np.isnan(correlation(np.ones((2, 2)), np.array([[0.0, 1.0], [2.0, 3.0]])))


def test_k_looks_at_the_key_columns_only():
    first, second = np.zeros((2, 3)), np.array([[0.0, 0.5, 9.0], [0.0, -0.7, 9.0]])
    assert largest_difference(first, second) == 9
    assert largest_difference(first, second, [0, 1]) == pytest.approx(0.7)
    assert np.isnan(largest_difference(first, second, []))


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 9), st.integers(0, 2**32))
def test_compare_agrees_with_a_loop_over_the_definition(pairs, seed):
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(2, pairs, 4, 5))
    ours = compare(first, second, [1, 3], rng, resamples=10)
    for key, value in statistics_by_loop(first, second, [1, 3]).items():
        assert ours[key].value == pytest.approx(value, nan_ok=True), key
        assert ours[key].n == pairs


def test_interval_agrees_with_a_loop_over_resamples():
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=(2, 7, 3, 4))
    ours = compare(first, second, [0], np.random.default_rng(5), resamples=300)
    counts_rng = np.random.default_rng(5)
    counts = np.concatenate([counts_rng.multinomial(7, [1 / 7] * 7, size=size) for size in (256, 44)])
    draws = []
    for drawn in counts:
        # The same pairs for both matrices, each as often as it was drawn.
        chosen = np.repeat(np.arange(7), drawn)
        draws.append(statistics_by_loop(first[chosen], second[chosen], [0]))
    for key, estimate in ours.items():
        expected = np.percentile([draw[key] for draw in draws], [2.5, 97.5])
        assert [estimate.low, estimate.high] == pytest.approx(expected.tolist()), key


@settings(deadline=None, max_examples=30)
@given(arrays.arrays(np.float64, (2, 3, 4), elements=nats), st.integers(2, 12))
def test_identical_pairs_give_an_interval_without_width(two, pairs):
    first, second = (np.broadcast_to(matrix, (pairs, *matrix.shape)) for matrix in two)
    for estimate in compare(first, second, [0], np.random.default_rng(0), resamples=40).values():
        np.testing.assert_array_equal([estimate.low, estimate.high], [estimate.value] * 2)


def test_intervals_depend_on_the_generator_alone():
    first, second = np.random.default_rng(0).normal(size=(2, 10, 4, 5))
    a, b, c = (compare(first, second, [0], np.random.default_rng(seed), 200) for seed in (1, 1, 2))
    assert a == b
    assert a != c


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(11)
    truth, hits = np.linspace(-3, 3, 20).reshape(4, 5), 0
    for _ in range(100):
        share = recovered_share_interval(
            truth[None] + rng.normal(size=(30, 4, 5)), np.full(30, 3.0), np.full(30, -3.0), rng, resamples=200
        )
        hits += share[1][1, 2] <= (truth[1, 2] + 3) / 6 <= share[2][1, 2]
    assert 86 <= hits <= 100


def test_one_pair_has_an_estimate_but_no_interval():
    first, second = np.random.default_rng(0).normal(size=(2, 1, 3, 4))
    estimate = compare(first, second, [0], np.random.default_rng(0))["raw", "max"]
    assert estimate.value == pytest.approx(np.abs(first - second).max())
    assert np.isnan([estimate.low, estimate.high]).all()


@pytest.mark.parametrize(
    ("first", "second", "complaint"),
    [
        (np.zeros((2, 3, 4)), np.zeros((2, 3, 5)), "differ"),
        (np.zeros((0, 3, 4)), np.zeros((0, 3, 4)), "no pair"),
        (np.full((2, 3, 4), np.nan), np.zeros((2, 3, 4)), "not finite"),
    ],
)
def test_compare_refuses_what_cannot_be_compared(first, second, complaint):
    with pytest.raises(ValueError, match=complaint):
        compare(first, second, [0], np.random.default_rng(0))


def test_recovered_share_is_a_ratio_of_means():
    patched = np.array([[[1.0, -2.0]], [[5.0, -2.0]]])
    share, low, high = recovered_share_interval(
        patched, np.array([4.0, 8.0]), np.array([-2.0, -2.0]), np.random.default_rng(0), resamples=50
    )
    np.testing.assert_allclose(share, [[5 / 8, 0]])  # the mean of ratios would be (3/6 + 7/10) / 2 = 0.6
    assert (low <= share).all()
    assert (share <= high).all()
