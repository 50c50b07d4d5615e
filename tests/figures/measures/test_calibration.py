"""The calibration error against its definition."""

import numpy as np
import pytest

from posttrace.figures.measures.calibration import BINS, bins_of, calibration_error


def test_calibration_error_equals_its_definition():
    rng = np.random.default_rng(0)
    confidence, right = rng.uniform(0.5, 1, 300), rng.random(300) < 0.7
    total = 0.0
    for b in range(BINS):
        inside = (confidence >= 0.5 + 0.05 * b) & (confidence < 0.5 + 0.05 * (b + 1))
        if inside.any():
            total += inside.sum() / 300 * abs(right[inside].mean() - confidence[inside].mean())
    assert calibration_error(confidence, right) == pytest.approx(total)
    assert bins_of(np.array([0.5, 1.0])).tolist() == [0, BINS - 1]
