"""Directions, probes and effects on arrays made up here, against NumPy written out by hand."""

import numpy as np
import pytest
import torch

from posttrace.figures.measures.interventions import intervention_effect
from posttrace.pipeline.studies.truthfulness.analysis import earliest_good, training_sets
from posttrace.pipeline.studies.truthfulness.probes import (
    cosine,
    directions,
    judged_true,
    layer_of,
    random_direction,
)
from posttrace.pipeline.studies.truthfulness.probes import fit as fit_all
from tests.support.probes import centre_of, direction, fit, sample


def test_published_numbers_round_trip():
    """Du et al. 2025: P- = -0.90625 and P+ = 0.9453125 for base, effects 0.7070 and 0.9518."""
    before = np.array([-0.90625, 0.9453125])
    truth = np.array([False, True])
    after = np.array([-0.90625 + 0.7070 * (1 + 0.90625), 0.9453125 + 0.9518 * (-1 - 0.9453125)])
    assert after == pytest.approx([0.44147, -0.90624], abs=1e-4), "what the formula says the paper's ~P were"
    up, down = intervention_effect(before, after, truth)
    assert (float(up), float(down)) == pytest.approx((0.7070, 0.9518), abs=1e-12)


def test_effect_is_of_means_by_label_and_keeps_leading_dims():
    before = np.array([-1.0, -0.5, 0.8, 0.6])
    truth = np.array([False, False, True, True])
    after = np.stack([before, [1.0, 1.0, -1.0, -1.0], [-1.0, 0.25, 0.8, -0.8]])
    up, down = intervention_effect(before, after, truth)
    assert up.tolist() == pytest.approx([0, 1, (-0.375 + 0.75) / 1.75])
    assert down.tolist() == pytest.approx([0, 1, (0.0 - 0.7) / (-1 - 0.7)])


def test_certainty_beforehand_leaves_no_effect_to_measure():
    up, down = intervention_effect(np.array([1.0, 0.5]), np.array([1.0, 0.0]), np.array([False, True]))
    assert np.isnan(up) and down == pytest.approx(1 / 3)


def planted(rng, n, truth_direction, polarity_direction=None, negated=False, noise=0.5, hidden=12):
    """A set whose statements lie along a direction by label (turned round by negation, if there is a polarity one)."""
    truth = np.arange(n) % 2 == 0
    sign = np.where(truth, 1.0, -1.0)[:, None]
    h = sign * truth_direction + noise * rng.standard_normal((n, hidden)) + 5 * rng.standard_normal(hidden)
    if polarity_direction is not None:
        h = h + sign * (-1 if negated else 1) * polarity_direction
    return sample(h, truth, negated)


def test_direction_is_the_difference_of_class_means_of_centred_sets():
    rng = np.random.default_rng(0)
    sets = [rng.standard_normal((n, 6)) + 10 * k for k, n in enumerate((5, 8))]
    labels = [rng.random(len(h)) > 0.4 for h in sets]
    centred = np.concatenate([h - h.mean(0) for h in sets])
    truth = np.concatenate(labels)
    expected = centred[truth].mean(0) - centred[~truth].mean(0)
    found = direction([sample(h, y) for h, y in zip(sets, labels, strict=True)])
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert cosine(found, -2 * expected) == pytest.approx(-1)


@pytest.mark.parametrize("kind", ["mass_mean", "logistic", "ttpd"])
def test_a_probe_finds_a_planted_direction_on_a_set_it_never_saw(kind):
    rng = np.random.default_rng(1)
    t = np.eye(12)[0]
    sets = [planted(rng, 60, t) for _ in range(4)]
    probe, test = fit(kind, sets[:3]), sets[3]
    assert (probe.judges_true(test, centre_of(sets[:3])) == test.truth).mean() > 0.9
    assert cosine(probe.truth, t) > 0.9
    turned = planted(rng, 60, -t)
    assert (probe.judges_true(turned, turned.mean) == turned.truth).mean() < 0.1


def test_mass_mean_probe_is_unpenalised_regression_on_the_projection():
    """Newton's method by hand on overlapping classes, where the border is well defined."""
    rng = np.random.default_rng(2)
    sets = [planted(rng, 80, np.eye(12)[0], noise=1.5) for _ in range(2)]
    h, y = np.concatenate([s.centred for s in sets]), np.concatenate([s.truth for s in sets])
    x = np.stack([h @ direction(sets), np.ones(len(h))], axis=1)
    w = np.zeros(2)
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ w))
        w += np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x, x.T @ (y - p))
    probe = fit("mass_mean", sets)
    np.testing.assert_allclose(probe.truth, w[0] * direction(sets), rtol=1e-4)
    assert probe.bias == pytest.approx(w[1], abs=1e-4)


def test_ttpd_reads_truth_where_negation_turns_the_direction_round():
    """With a polarity-dependent part larger than the general one, one direction fails on negations; TTPD does not."""
    rng = np.random.default_rng(3)
    general, sensitive = np.eye(12)[0], 3 * np.eye(12)[1]
    train = [planted(rng, 80, general, sensitive, negated=bool(k % 2), noise=0.3) for k in range(4)]
    affirmed, negated = (planted(rng, 80, general, sensitive, negated=n, noise=0.3) for n in (False, True))
    one_sided = fit("mass_mean", [s for s in train if not s.negated])
    probe, centre = fit("ttpd", train), centre_of(train)
    assert (one_sided.judges_true(negated, centre) == negated.truth).mean() < 0.2
    for test in (affirmed, negated):
        assert (probe.judges_true(test, centre) == test.truth).mean() > 0.95
    assert probe.polarity is not None
    assert fit("ttpd", [s for s in train if not s.negated]).polarity is None


def overlapping(n_sets=6, n=60, hidden=24, seed=4):
    """Sets of both polarities whose classes overlap, each with a mean of its own."""
    rng = np.random.default_rng(seed)
    general, sensitive = np.eye(hidden)[0], 1.5 * np.eye(hidden)[1]
    values, truths, negated = [], [], [bool(k % 2) for k in range(n_sets)]
    for turned in negated:
        truth = rng.random(n) < 0.4
        sign = np.where(truth, 1.0, -1.0)[:, None]
        along = sign * (general + (-1 if turned else 1) * sensitive)
        values.append(along + 1.5 * rng.standard_normal((n, hidden)) + 5 * rng.standard_normal(hidden))
        truths.append(truth)
    layer = layer_of([torch.from_numpy(one) for one in values], truths, negated)
    return layer, [sample(*one) for one in zip(values, truths, negated, strict=True)]


TRAINING = torch.tensor(
    [[0, 0, 1, 1, 1, 1], [1, 1, 0, 0, 1, 1], [1, 0, 1, 0, 1, 0], [0, 1, 1, 1, 0, 1]], dtype=torch.bool
)
"""Problems with several topics left out; the third has one polarity."""


@pytest.mark.parametrize("kind", ["mass_mean", "logistic", "ttpd"])
def test_probes_fitted_together_are_those_fitted_one_by_one(kind):
    layer, samples = overlapping()
    together = fit_all(kind, layer, TRAINING)
    centres = layer.centres(TRAINING)
    for k, used in enumerate(TRAINING.tolist()):
        some = [one for one, wanted in zip(samples, used, strict=True) if wanted]
        alone = fit(kind, some)
        for found, wanted in (
            (together.truth[k], alone.truth),
            (together.polarity[k], np.zeros(24) if alone.polarity is None else alone.polarity),
            (together.bias[k], alone.bias),
        ):
            np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-3 * np.abs(alone.truth).max())
        for j, one in enumerate(samples):
            judged = judged_true(together, layer, j, centres)[k].numpy()
            assert (judged != alone.judges_true(one, centre_of(some))).mean() <= 1 / 60


def test_a_long_vector_is_fitted_as_scikit_learn_fits_it():
    """More components than statements, classes that a plane parts: the penalty decides."""
    layer, samples = overlapping(n_sets=4, n=40, hidden=300)
    training = ~torch.eye(4, dtype=torch.bool)
    together = fit_all("logistic", layer, training)
    for k in range(4):
        alone = fit("logistic", [one for j, one in enumerate(samples) if j != k])
        assert cosine(together.truth[k].numpy(), alone.truth) > 0.9999
        judged = judged_true(together, layer, k)[k].numpy()
        assert (judged == alone.judges_true(samples[k], samples[k].mean)).mean() >= 0.97


def test_directions_of_all_problems_are_those_of_each():
    layer, samples = overlapping()
    found = directions(layer, TRAINING)
    for k, used in enumerate(TRAINING.tolist()):
        some = [one for one, wanted in zip(samples, used, strict=True) if wanted]
        np.testing.assert_allclose(found[k], direction(some), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(layer.centres(TRAINING)[k], centre_of(some), rtol=1e-5, atol=1e-6)


def test_sets_that_do_not_differ_leave_a_probe_that_is_finite():
    same = torch.ones(6, 5)
    layer = layer_of([same, same], [np.arange(6) % 2 == 0] * 2, [False, False])
    for kind in ("mass_mean", "logistic", "ttpd"):
        probes = fit_all(kind, layer, torch.ones(1, 2, dtype=torch.bool))
        assert torch.isfinite(probes.truth).all() and torch.isfinite(probes.bias).all()


def test_random_directions_have_the_norm_asked_for_and_depend_on_nothing_else_that_is_drawn():
    one, other = (random_direction(0, "cities", i, 2.5, 400) for i in (3, 4))
    assert np.linalg.norm(one) == pytest.approx(2.5) and abs(cosine(one, other)) < 0.2
    np.testing.assert_array_equal(one, random_direction(0, "cities", 3, 2.5, 400))
    assert not np.array_equal(one, random_direction(1, "cities", 3, 2.5, 400))
    assert not np.array_equal(one, random_direction(0, "facts", 3, 2.5, 400))


def test_a_set_and_its_negation_are_left_out_together():
    sets = dict.fromkeys(["cities", "neg_cities", "facts", "neg_facts"])
    assert training_sets(sets, "neg_cities") == ["facts", "neg_facts"]


def test_of_layers_that_are_as_good_the_earliest_is_taken():
    assert earliest_good(np.array([0.5, 0.99, 1.0, 0.998]), n=100) == 1
    assert earliest_good(np.array([0.5, 0.9, 1.0, 0.998]), n=100) == 2
    assert earliest_good(np.array([0.5, 0.99, 1.0, 0.998]), n=100_000) == 2
    assert earliest_good(np.array([0.5, 0.99, 1.0, 0.998]), n=100, begin=2) == 2
