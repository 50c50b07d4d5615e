"""The intervention effect: one formula for the pipeline and for the figures."""

import numpy as np
import pytest

from posttrace.figures.measures.interventions import (
    KINDS,
    bootstrap_effect,
    intervention_effect,
    share_of_the_way,
)

TRUTH = np.arange(12) % 3 == 0


def answers(seed=0):
    """P(TRUE) - P(FALSE) of two targets, unmoved and under three directions."""
    rng = np.random.default_rng(seed)
    return rng.uniform(-0.9, 0.9, size=(2, 12)), rng.uniform(-1, 1, size=(3, 2, 12))


def test_the_bootstrap_is_of_the_same_effect():
    before, after = answers()
    found = bootstrap_effect(before, after, TRUTH)
    for target in range(2):
        one = intervention_effect(before[target], after[:, target], TRUTH)
        for kind in KINDS:
            np.testing.assert_allclose(found.value[KINDS.index(kind), :, target], getattr(one, kind))
    low, high = found.interval
    assert found.draws.shape[1:] == (3, 3, 2) and (low <= found.value).all() and (found.value <= high).all()


def test_an_answer_that_was_certain_before_has_no_effect_to_speak_of():
    assert np.isnan(share_of_the_way(np.array([1.0, -1.0]), np.array([1.0, 0.0]), 1.0)).tolist() == [
        True,
        False,
    ]
    before, after = np.ones((1, 12)), np.zeros((1, 1, 12))
    found = bootstrap_effect(np.where(TRUTH, 0.5, before), after, TRUTH)
    assert np.isnan(found.value[KINDS.index("false_to_true")]).all()
    assert found.value[KINDS.index("true_to_false"), 0, 0] == pytest.approx(1 / 3)
