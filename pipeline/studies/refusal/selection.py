"""Choose a stage's layer, position and coefficient from what its validation split showed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NEARLY = 0.05
"""A coefficient does nearly as much as the best when its share of refusals is at most this much lower."""


@dataclass(frozen=True)
class Chosen:
    """A place in the sweep."""

    layer: int
    position: int
    """Index on the position axis."""
    qualifies: bool
    """Whether it met every condition; if none did, the best of the others was taken."""


def choose_direction(
    bypass: np.ndarray, induce: np.ndarray, kl: np.ndarray, max_kl: float, max_depth: float
) -> Chosen:
    """Return the place whose ablation lets most harmful prompts through, of those that qualify.

    Parameters
    ----------
    bypass
        Mean log-odds of refusal on harmful prompts, ablated.
    induce
        On harmless ones, added (nats).
    kl
        Mean KL on harmless prompts, ablated (nats); dims layer x position, NaN where not swept. A place qualifies
        when adding the direction makes refusal likelier than compliance (induce > 0), the KL is at most max_kl and
        the layer lies before max_depth of the blocks. If none qualifies, the condition on induce is dropped, then
        that on the KL. Source: Arditi et al. 2024, appendix C; the last rule is ours.

    Examples
    --------
    >>> bypass, induce = np.array([[-1.0], [-3.0], [-9.0]]), np.array([[2.0], [1.0], [-1.0]])
    >>> choose_direction(bypass, induce, np.zeros((3, 1)), max_kl=0.1, max_depth=1)
    Chosen(layer=1, position=0, qualifies=True)
    """
    n_layers = len(bypass)
    swept = np.isfinite(bypass) & np.isfinite(induce) & np.isfinite(kl)
    early = np.arange(n_layers)[:, None] < max_depth * n_layers
    quiet = swept & early & (kl <= max_kl)
    best = [quiet & (induce > 0), quiet, swept & early, swept]
    allowed = next(places for places in best if places.any())
    layer, position = np.unravel_index(int(np.where(allowed, bypass, np.inf).argmin()), bypass.shape)
    return Chosen(int(layer), int(position), qualifies=bool(best[0].any()))


def choose_coefficient(coefficients: Sequence[float], refused: np.ndarray, distance: float) -> float:
    """Return the smallest coefficient with nearly the largest share of refusals.

    Parameters
    ----------
    refused
        Whether harmless prompts were refused with the direction added; dims coefficient x prompt.
    distance
        Of the class means, taken where no coefficient makes the model refuse at all.

    Examples
    --------
    >>> choose_coefficient([1.0, 2.0, 3.0], np.array([[0, 0], [1, 1], [1, 1]]), distance=1.0)
    2.0
    """
    shares = np.asarray(refused, dtype=float).mean(axis=1)
    if not shares.any():
        return distance
    order = np.argsort(coefficients)
    return float(next(coefficients[i] for i in order if shares[i] >= shares.max() - NEARLY))
