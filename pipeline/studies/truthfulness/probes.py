"""Directions and linear probes, fitted for many training sets at once. Nothing here knows of models.

A *problem* is a choice of training sets; all problems of a layer share each pass over its activations. The one-by-one
version with scikit-learn, which these are tested against, is tests/support/probes.py.
Sources: Marks & Tegmark 2024 (mass-mean direction), Bürger et al. 2024 (TTPD), Du et al. 2025, section 4.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from posttrace.pipeline import interrupts

GRADIENT = 1e-6
"""Fits end when no component of the mean gradient is larger (scikit-learn's default: 1e-4). At 1e-5, three of 1,250
statements at hidden size 4096 were judged otherwise than at the minimum."""
ITERATIONS = 1000
MEMORY = 10
"""Earlier steps that L-BFGS looks back on."""


@dataclass(frozen=True)
class Layer:
    """Activations of some sets in one model at one layer."""

    centred: torch.Tensor
    """Minus the mean of the statement's own set (float32, model units); dims statement x hidden."""
    means: torch.Tensor
    """Those means; dims set x hidden."""
    truth: torch.Tensor
    """Which statements are true (bool); dims statement."""
    of_set: torch.Tensor
    """Number of each statement's set (int64); dims statement."""
    negated: torch.Tensor
    """Which sets are negations, the polarity that TTPD tells apart (bool); dims set."""

    @cached_property
    def sizes(self) -> torch.Tensor:
        """Statements of each set (float64); dims set."""
        return torch.bincount(self.of_set, minlength=len(self.means)).double()

    @cached_property
    def sums(self) -> torch.Tensor:
        """Sums of the false and of the true statements (float64); dims 2 x set x hidden."""
        found = torch.zeros(2 * len(self.means), self.centred.shape[1], dtype=torch.float64)
        return found.index_add_(
            0, self.of_set + len(self.means) * self.truth, self.centred.double()
        ).unflatten(0, (2, -1))

    @cached_property
    def counts(self) -> torch.Tensor:
        """Numbers of false and of true statements (float64); dims 2 x set."""
        both = self.of_set + len(self.means) * self.truth
        return torch.bincount(both, minlength=2 * len(self.means)).double().unflatten(0, (2, -1))

    @cached_property
    def squares(self) -> torch.Tensor:
        """Sums of squares (float64); dims set."""
        found = torch.zeros(len(self.means), dtype=torch.float64)
        return found.index_add_(0, self.of_set, (self.centred**2).sum(1).double())

    def centres(self, training: torch.Tensor) -> torch.Tensor:
        """Mean of all statements of each problem, not centred (float64); dims problem x hidden."""
        weights = training.double() * self.sizes
        return weights @ self.means.double() / weights.sum(1, keepdim=True)

    def around(self, centres: torch.Tensor) -> torch.Tensor:
        """Return what makes a centred statement relative to a problem's centre when added; problem x set x hidden."""
        return self.means.double()[None] - centres[:, None]


@dataclass(frozen=True)
class Probes:
    """One linear classifier for each problem.

    True where `centred @ truth + (h - mean over the training sets) @ polarity + bias > 0`.
    """

    truth: torch.Tensor
    """Float64, dims problem x hidden."""
    polarity: torch.Tensor
    """The same; zero where the probe looks at set-centred activations only."""
    bias: torch.Tensor
    """Dims problem."""


def layer_of(activations: list[torch.Tensor], truths: list[np.ndarray], negated: list[bool]) -> Layer:
    """Centre the sets on their own means, as METHODS asks before training and testing.

    Parameters
    ----------
    activations
        Of each set, dims statement x hidden.
    truths
        Of each set, whether its statements are true.
    negated
        Whether a set's statements are negations.

    Examples
    --------
    >>> layer_of([torch.tensor([[1.0], [3.0]])], [np.array([True, False])], [False]).centred.ravel()
    tensor([-1.,  1.])
    """
    values = [one.float() for one in activations]
    means = torch.stack([one.double().mean(0) for one in values]).float()
    return Layer(
        centred=torch.cat([one - mean for one, mean in zip(values, means, strict=True)]),
        means=means,
        truth=torch.from_numpy(np.concatenate(truths).astype(bool)),
        of_set=torch.repeat_interleave(torch.arange(len(values)), torch.tensor([len(one) for one in values])),
        negated=torch.tensor(negated),
    )


def directions(layer: Layer, training: torch.Tensor) -> torch.Tensor:
    """`mean(h | true) - mean(h | false)` over the training sets of each problem (model units); problem x hidden.

    Parameters
    ----------
    training
        Which sets each problem learns from (bool); dims problem x set.

    Examples
    --------
    >>> layer = layer_of([torch.tensor([[1.0], [3.0]])], [np.array([False, True])], [False])
    >>> directions(layer, torch.tensor([[True]]))
    tensor([[2.]], dtype=torch.float64)
    """
    used = training.double()
    false, true = used @ layer.sums[0], used @ layer.sums[1]
    n_false, n_true = used @ layer.counts[0], used @ layer.counts[1]
    return true / n_true[:, None] - false / n_false[:, None]


def fit(kind: str, layer: Layer, training: torch.Tensor) -> Probes:
    """Train a kind of probe for every problem.

    Parameters
    ----------
    kind
        `mass_mean` (unpenalised logistic regression on the projection on `directions`), `logistic` (on the whole
        vector, L2 penalty of strength 1 on activations scaled to unit root mean square), or `ttpd` (regression on the
        projection on the general truth direction and, if the training sets have both polarities, on a polarity
        direction).
    training
        Which sets each problem learns from (bool); dims problem x set.

    Examples
    --------
    >>> layer = layer_of([torch.tensor([[0.0], [1.0], [2.0], [3.0]])], [np.array([False, False, True, True])], [False])
    >>> probes = fit("mass_mean", layer, torch.tensor([[True]]))
    >>> judged_true(probes, layer, 0).ravel()
    tensor([False, False,  True,  True])
    """
    fits: dict[str, Callable] = {"mass_mean": _mass_mean, "logistic": _logistic, "ttpd": _ttpd}
    return fits[kind](layer, training)


def judged_true(
    probes: Probes, layer: Layer, tested: int, centres: torch.Tensor | None = None
) -> torch.Tensor:
    """Which statements of a set each probe takes for true (bool); dims problem x statement.

    Parameters
    ----------
    tested
        Number of the set.
    centres
        Mean over each problem's training sets in the model that is judged; dims problem x hidden. Needed if a probe
        has a polarity.
    """
    h = layer.centred[layer.of_set == tested].double()
    score = h @ (probes.truth + probes.polarity).T + probes.bias
    if centres is not None:
        score = score + ((layer.means[tested] - centres) * probes.polarity).sum(1)
    return (score > 0).T


def _mass_mean(layer: Layer, training: torch.Tensor) -> Probes:
    return _on_projections(layer, training, directions(layer, training))


def _logistic(layer: Layer, training: torch.Tensor) -> Probes:
    used = training.double()
    n = used @ layer.sizes
    scale = (used @ layer.squares / n / layer.centred.shape[1]).sqrt()
    truth = layer.truth.double()[:, None].expand(-1, len(training))
    weights, bias = _regressions(layer, training, truth, scale)
    return Probes(weights, torch.zeros_like(weights), bias)


def _ttpd(layer: Layer, training: torch.Tensor) -> Probes:
    """Least squares `centred = label x t_G + label x polarity x t_P` (+1 or -1 each), then regression on both."""
    used, polarity = training.double(), torch.where(layer.negated, -1.0, 1.0).double()
    signed = layer.sums[1] - layer.sums[0]  # sum of label x centred, dims set x hidden
    n = used @ layer.sizes
    cross = used @ (polarity * layer.sizes)
    plain, turned = used @ signed, (used * polarity) @ signed
    both = (training & layer.negated).any(1) & (training & ~layer.negated).any(1)
    # Normal equations of two columns of +1 and -1: [[n, cross], [cross, n]].
    determinant = torch.where(both, n**2 - cross**2, 1.0)
    general = torch.where(
        both[:, None],
        (n[:, None] * plain - cross[:, None] * turned) / determinant[:, None],
        plain / n[:, None],
    )
    found = _on_projections(layer, training, general)
    if not both.any():
        return found
    some = training[both]
    centres = layer.centres(some)
    offsets = layer.around(centres)
    spread = (some.double() * layer.sizes * (offsets**2).sum(-1)).sum(1)
    scale = ((some.double() @ layer.squares + spread) / n[both] / layer.centred.shape[1]).sqrt()
    negated = layer.negated[layer.of_set].double()[:, None].expand(-1, len(some))
    directions_of_polarity, _ = _regressions(layer, some, negated, scale, means=True)
    part = _on_projections(layer, some, general[both], directions_of_polarity, offsets)
    for whole, new in ((found.truth, part.truth), (found.polarity, part.polarity), (found.bias, part.bias)):
        whole[both] = new
    return found


def _on_projections(layer: Layer, training: torch.Tensor, truth, polarity=None, offsets=None) -> Probes:
    """Unpenalised regression on one or two projections, each scaled to unit deviation so that it converges."""
    mask = training.double().T[layer.of_set]
    features = [layer.centred.double() @ truth.T]
    if polarity is not None:
        shifts = (offsets * polarity[:, None]).sum(-1)  # problem x set
        features.append(layer.centred.double() @ polarity.T + shifts.T[layer.of_set])
    n = mask.sum(0)
    scales = []
    for feature in features:
        mean = (mask * feature).sum(0) / n
        deviation = ((mask * (feature - mean) ** 2).sum(0) / n).sqrt()
        scales.append(torch.where(deviation > 0, deviation, 1.0))
    columns = torch.stack([f / s for f, s in zip(features, scales, strict=True)], dim=-1)
    fitted = _newton(columns, layer.truth.double(), mask)
    weights = [fitted[:, i, None] / scales[i][:, None] for i in range(len(features))]
    return Probes(
        weights[0] * truth,
        torch.zeros_like(truth) if polarity is None else weights[1] * polarity,
        fitted[:, -1],
    )


def _newton(features: torch.Tensor, label: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Unpenalised logistic regressions by Newton's method with halved steps; returns problem x (feature, 1).

    Separable classes end at the tolerance, with the border between them.

    Parameters
    ----------
    features
        Statement x problem x feature.
    """
    x = torch.cat([features, torch.ones_like(features[..., :1])], dim=-1)
    n, target = mask.sum(0), label[:, None]
    weights = torch.zeros(x.shape[1:], dtype=torch.float64)
    small = 1e-10 * torch.eye(x.shape[-1], dtype=torch.float64)

    def loss(w: torch.Tensor) -> torch.Tensor:
        score = (x * w).sum(-1)
        return (mask * (torch.nn.functional.softplus(score) - target * score)).sum(0) / n

    for _ in range(100):
        p = torch.sigmoid((x * weights).sum(-1))
        gradient = torch.einsum("skf,sk->kf", x, mask * (p - target)) / n[:, None]
        left = gradient.abs().amax(1) > 1e-8  # a problem ends by itself, whatever the others do
        if not left.any():
            break
        hessian = torch.einsum("skf,skg,sk->kfg", x, x, mask * p * (1 - p)) / n[:, None, None]
        step = torch.linalg.solve(hessian + small, gradient)
        before, size = loss(weights), torch.ones(len(weights), 1, dtype=torch.float64)
        for _ in range(30):
            worse = loss(weights - size * step) > before
            if not worse.any():
                break
            size[worse] /= 2
        weights = torch.where(left[:, None], weights - size * step, weights)
    return weights


def _regressions(
    layer: Layer, training: torch.Tensor, label: torch.Tensor, scale: torch.Tensor, means: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logistic regressions on whole vectors with an L2 penalty of strength 1, by L-BFGS with exact line search.

    Every step costs two passes over the activations, whatever the number of problems.

    Parameters
    ----------
    label
        Statement x problem.
    scale
        Of each problem's activations.
    means
        Whether the sets' own means are part of the activations. Returns weights (problem x hidden) and biases.
    """
    scale = torch.where(scale > 0, scale, 1.0)
    mask = training.double().T[layer.of_set]
    n, hidden = mask.sum(0), layer.centred.shape[1]
    own = layer.means.double()

    def scores(w: torch.Tensor) -> torch.Tensor:
        """Of vectors problem x (hidden, 1); dims statement x problem."""
        v = w[:, :-1] / scale[:, None]
        found = (layer.centred @ v.T.float()).double() + w[:, -1]
        return found + (own @ v.T)[layer.of_set] if means else found

    def gradient(w: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
        rest = mask * (torch.sigmoid(score) - label)
        by_hidden = (layer.centred.T @ rest.float()).double()
        if means:
            by_set = torch.zeros(len(own), rest.shape[1], dtype=torch.float64).index_add_(
                0, layer.of_set, rest
            )
            by_hidden = by_hidden + own.T @ by_set
        return torch.cat([by_hidden.T / scale[:, None] + w[:, :-1], rest.sum(0)[:, None]], dim=1)

    w = torch.zeros(len(training), hidden + 1, dtype=torch.float64)
    score = torch.zeros(len(layer.centred), len(training), dtype=torch.float64)
    g, left = gradient(w, score), torch.ones(len(training), dtype=torch.bool)
    steps: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    for _ in range(ITERATIONS):
        interrupts.check()
        left &= g.abs().amax(1) / n > GRADIENT  # a problem ends by itself, whatever the others do
        if not left.any():
            break
        p = -_two_loops(g, steps)
        along = scores(p)
        a = torch.where(left, _line_search(mask, label, score, along, w[:, :-1], p[:, :-1]), 0.0)
        w, score = w + a[:, None] * p, score + a * along
        new = gradient(w, score)
        s, y = a[:, None] * p, new - g
        steps = [*steps, (s, y, 1 / (s * y).sum(1).clamp_min(1e-300))][-MEMORY:]
        g = new
    return w[:, :-1] / scale[:, None], w[:, -1]


def _two_loops(g: torch.Tensor, steps: list) -> torch.Tensor:
    """Return the L-BFGS direction of every problem (Nocedal & Wright 2006, algorithm 7.4)."""
    q, factors = g.clone(), []
    for s, y, rho in reversed(steps):
        factor = rho * (s * q).sum(1)
        q -= factor[:, None] * y
        factors.append(factor)
    if steps:
        s, y, _ = steps[-1]
        q *= ((s * y).sum(1) / (y * y).sum(1).clamp_min(1e-300))[:, None]
    for (s, y, rho), factor in zip(steps, reversed(factors), strict=True):
        q += (factor - rho * (y * q).sum(1))[:, None] * s
    return q


def _line_search(mask, label, score, along, w, p) -> torch.Tensor:
    """Find every problem's minimum along a direction by Newton's method: the loss is convex, passes are not needed."""
    a, left = torch.zeros(along.shape[1], dtype=torch.float64), torch.ones(along.shape[1], dtype=torch.bool)
    straight, square = (w * p).sum(1), (p * p).sum(1)
    for _ in range(8):
        q = torch.sigmoid(score + a * along)
        slope = (mask * (q - label) * along).sum(0) + straight + a * square
        curve = (mask * q * (1 - q) * along**2).sum(0) + square
        change = slope / curve.clamp_min(1e-300)
        a = torch.where(left, (a - change).clamp_min(0), a)
        left &= change.abs() > 1e-3 * a
        if not left.any():
            break
    return a


def cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine of the angle between vectors along the last axis.

    Examples
    --------
    >>> float(cosine(np.array([1.0, 0.0]), np.array([1.0, 1.0])).round(4))
    0.7071
    """
    return (first * second).sum(-1) / (np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1))


def random_direction(seed: int, held_out: str, number: int, norm: float, hidden: int) -> np.ndarray:
    """Return a direction drawn evenly over all directions, of a given norm (float64); dims hidden.

    The same for a seed, set and number, whatever else is drawn.

    Examples
    --------
    >>> float(np.linalg.norm(random_direction(0, "cities", 3, norm=2.0, hidden=16)).round(6))
    2.0
    """
    digest = hashlib.sha256(f"{seed}/{held_out}/random-{number}".encode()).digest()
    drawn = np.random.default_rng(int.from_bytes(digest[:8], "big")).standard_normal(hidden)
    return norm * drawn / np.linalg.norm(drawn)
