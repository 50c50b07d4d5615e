"""Directions and probes one by one, with scikit-learn: what the batched ones are compared with.

Sources: Marks & Tegmark 2024 (mass-mean direction), Bürger et al. 2024 (TTPD), Du et al. 2025, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression


@dataclass(frozen=True)
class Sample:
    """Activations of one set in one model at one layer."""

    centred: np.ndarray
    """Minus the set's own mean (float64, model units); dims statement x hidden."""
    mean: np.ndarray
    """That mean; dims hidden."""
    truth: np.ndarray
    """Which statements are true (bool); dims statement."""
    negated: bool = False
    """Whether its statements are negations: the polarity that TTPD tells apart."""


@dataclass(frozen=True)
class Probe:
    """A linear classifier: true where `centred @ truth + (h - mean over the training sets) @ polarity + bias > 0`."""

    truth: np.ndarray
    """dims hidden"""
    bias: float
    polarity: np.ndarray | None = None
    """dims hidden; None where the probe looks at set-centred activations only."""

    def judges_true(self, sample: Sample, centre: np.ndarray) -> np.ndarray:
        """Which statements the probe takes for true (bool); dims statement.

        centre: mean over the training sets in the sample's model; dims hidden.
        """
        score = sample.centred @ self.truth + self.bias
        if self.polarity is not None:
            score = score + (sample.centred + (sample.mean - centre)) @ self.polarity
        return score > 0


def sample(activations: np.ndarray, truth: np.ndarray, negated: bool = False) -> Sample:
    """Activations centred on the set's own mean, as METHODS asks before training and testing.

    >>> sample(np.array([[1.0], [3.0]]), np.array([True, False])).centred.ravel()
    array([-1.,  1.])
    """
    values = np.asarray(activations, dtype=np.float64)
    mean = values.mean(axis=0)
    return Sample(values - mean, mean, np.asarray(truth, dtype=bool), negated)


def centre_of(samples: Sequence[Sample]) -> np.ndarray:
    """Mean of all statements of some sets, not centred; dims hidden."""
    sizes = [len(one.truth) for one in samples]
    return np.average([one.mean for one in samples], axis=0, weights=sizes)


def direction(samples: Sequence[Sample]) -> np.ndarray:
    """`mean(h | true) - mean(h | false)` over all statements of the training sets (model units); dims hidden.

    >>> direction([sample(np.array([[1.0], [3.0]]), np.array([False, True]))])
    array([2.])
    """
    h = np.concatenate([one.centred for one in samples])
    truth = np.concatenate([one.truth for one in samples])
    return h[truth].mean(axis=0) - h[~truth].mean(axis=0)


def fit(kind: str, samples: Sequence[Sample]) -> Probe:
    """Train a probe on the training sets.

    >>> one = sample(np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([False, False, True, True]))
    >>> fit("mass_mean", [one]).judges_true(one, one.mean)
    array([False, False,  True,  True])

    kind: `mass_mean` (unpenalised logistic regression on the projection on `direction`), `logistic` (on the whole
    vector, L2 penalty of strength 1 on activations scaled to unit root mean square), or `ttpd` (regression on the
    projection on the general truth direction and, where the training sets have both polarities, on a polarity
    direction). A single polarity leaves TTPD the truth direction alone.
    """
    return {"mass_mean": _mass_mean, "logistic": _logistic, "ttpd": _ttpd}[kind](samples)


def _mass_mean(samples: Sequence[Sample]) -> Probe:
    return _on_projections(samples, direction(samples))


def _logistic(samples: Sequence[Sample]) -> Probe:
    h, truth = _together(samples)
    weights, bias = _regression(h, truth)
    return Probe(weights, bias)


def _ttpd(samples: Sequence[Sample]) -> Probe:
    """Least squares `centred = label x t_G + label x polarity x t_P` (+1 or -1 each), then regression on both."""
    h, truth = _together(samples)
    sign = np.where(truth, 1.0, -1.0)
    negated = np.concatenate([np.full(len(one.truth), one.negated) for one in samples])
    both = negated.any() and not negated.all()
    design = np.stack([sign, sign * np.where(negated, -1.0, 1.0)], axis=1) if both else sign[:, None]
    general = np.linalg.lstsq(design, h, rcond=None)[0][0]
    if not both:
        return _on_projections(samples, general)
    centre = centre_of(samples)
    around = np.concatenate([one.centred + (one.mean - centre) for one in samples])
    return _on_projections(samples, general, _regression(around, negated)[0], around)


def _on_projections(samples, truth_direction, polarity_direction=None, around=None) -> Probe:
    """Unpenalised regression on one or two projections, each scaled to unit deviation so that it converges."""
    h, truth = _together(samples)
    vectors, features = [truth_direction], [h @ truth_direction]
    if polarity_direction is not None:
        vectors.append(polarity_direction)
        features.append(around @ polarity_direction)
    scales = [float(feature.std()) or 1.0 for feature in features]
    columns = np.stack([f / s for f, s in zip(features, scales, strict=True)], axis=1)
    # C = inf: no penalty; separable classes end at the tolerance, with the border between them.
    fitted = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(columns, truth)
    weighted = [c / s * v for c, s, v in zip(fitted.coef_[0], scales, vectors, strict=True)]
    return Probe(weighted[0], float(fitted.intercept_[0]), weighted[1] if len(weighted) > 1 else None)


def _regression(h: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, float]:
    scale = float(np.sqrt((h**2).mean())) or 1.0
    fitted = LogisticRegression(C=1.0, tol=1e-7, max_iter=10_000).fit(h / scale, label)
    return fitted.coef_[0] / scale, float(fitted.intercept_[0])


def _together(samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([one.centred for one in samples]), np.concatenate([one.truth for one in samples])
