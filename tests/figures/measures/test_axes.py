"""The axis that a projection is drawn along, against a decomposition of all axes."""

import numpy as np
import pytest

from posttrace.figures.measures.axes import leading_axis


@pytest.mark.parametrize("shape", [(1, 4), (3, 1), (2, 2), (40, 7), (30, 200), (300, 96)])
def test_the_axis_is_the_first_right_singular_vector(shape):
    rng = np.random.default_rng(0)
    values = rng.standard_normal(shape) * np.linspace(1, 3, shape[1])
    expected = np.linalg.svd(values, full_matrices=False)[2][0]
    found = leading_axis(values)
    assert abs(found @ expected) == pytest.approx(1, abs=1e-9)
    assert found[np.abs(found).argmax()] > 0 and np.linalg.norm(found) == pytest.approx(1)


def test_the_size_of_values_does_not_matter_and_nothing_has_an_axis_too():
    values = np.random.default_rng(0).standard_normal((20, 8))
    np.testing.assert_allclose(leading_axis(1e200 * values), leading_axis(values), atol=1e-9)
    assert leading_axis(np.zeros((5, 3))).tolist() == [1, 0, 0]
