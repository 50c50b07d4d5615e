"""What is measured between two stages: distributions, streams, linear maps, principal components. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

RANK = 20
"""Tokens whose log probability rises most, of every position."""
SHUFFLES = 20
"""Column shuffles of the null of principal components."""
RIDGES = tuple(10.0**k for k in range(-4, 5))
"""Penalties of the linear map that are tried, in units of the mean squared singular value."""


def kl_terms(lp: torch.Tensor, lq: torch.Tensor) -> torch.Tensor:
    """`q_v log(q_v / p_v)` of every token of the vocabulary, nats; their sum is KL(q || p).

    >>> p = torch.tensor([0.5, 0.5]).log()
    >>> kl_terms(p, p).tolist()
    [0.0, 0.0]

    lp, lq: log probabilities of source and target, dims ... x vocabulary.
    """
    return lq.exp() * (lq - lp)


def js(lp: torch.Tensor, lq: torch.Tensor) -> torch.Tensor:
    """Jensen-Shannon divergence, nats (float64), 0 to ln 2; exactly 0 for equal arguments.

    >>> p = torch.tensor([0.5, 0.5]).log()
    >>> js(p, p).item()
    0.0

    lp, lq: log probabilities, dims ... x vocabulary.
    """
    x = lq - lp
    # log(m / p) = log((1 + e^x) / 2) and log(m / q), without overflow and exactly 0 where x is.
    half = torch.log1p(torch.expm1(-x.abs()) / 2)
    terms = lp.exp() * (half + x.clamp(min=0)) + lq.exp() * (half - x.clamp(max=0))
    return 0.0 - terms.sum(-1, dtype=torch.float64) / 2


@dataclass(frozen=True)
class Divergences:
    """Two next-token distributions compared at some tokens."""

    kl: torch.Tensor
    """KL(target || source), nats (float64); dims token."""
    occurring: torch.Tensor
    """At how many of the tokens each token of the vocabulary is among the `RANK` that rise most; dims vocabulary."""
    kl_by_token: torch.Tensor
    """Sum over the tokens of what each token of the vocabulary adds to KL, nats (float64); dims vocabulary."""
    risen: torch.Tensor
    """Ids of the tokens whose log probability rises most, the first one first; dims token x rank."""
    rise: torch.Tensor
    """How far it rises, nats; dims token x rank."""


def divergences(lp: torch.Tensor, lq: torch.Tensor) -> Divergences:
    """Compare two distributions at some tokens, token of the vocabulary by token.

    >>> p = torch.tensor([[0.5, 0.25, 0.25]]).log()
    >>> divergences(p, p).kl_by_token.tolist()
    [0.0, 0.0, 0.0]

    lp, lq: log probabilities of source and target, dims token x vocabulary.
    """
    terms = kl_terms(lp, lq)
    rise, risen = (lq - lp).topk(min(RANK, lp.shape[-1]), dim=-1)
    return Divergences(
        kl=terms.sum(-1, dtype=torch.float64),
        occurring=torch.bincount(risen.flatten(), minlength=lp.shape[-1]),
        kl_by_token=terms.sum(0, dtype=torch.float64),
        risen=risen,
        rise=rise,
    )


def rounding_variance(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Mean squared rounding error of values that were rounded to a dtype (float32): ulp² / 12.

    >>> rounding_variance(torch.ones(1), torch.float16).sqrt().item() < 2**-10
    True
    """
    about = torch.finfo(dtype)
    ulp = torch.exp2(torch.floor(torch.log2(values.abs().float().clamp(min=about.tiny)))) * about.eps
    return ulp.square() / 12


def cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear centred kernel alignment of two sets of activations, 0 to 1; NaN where one does not vary.

    >>> x = np.random.default_rng(0).standard_normal((10, 3))
    >>> round(cka(x, 2 * x), 6)
    1.0

    x, y: dims item x hidden. Source: Kornblith et al. 2019.
    """
    x, y = x - x.mean(0), y - y.mean(0)
    if len(x) < x.shape[1]:
        gram, other = x @ x.T, y @ y.T
        return _ratio((gram * other).sum(), np.linalg.norm(gram) * np.linalg.norm(other))
    return _ratio(np.square(x.T @ y).sum(), np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def _ratio(part: Any, whole: Any) -> float:
    return float(part / whole) if whole > 0 else float("nan")


def predicted(source: np.ndarray, target: np.ndarray, train: np.ndarray) -> tuple[float, float, float]:
    """R² of the target's activations on held-out items, predicted from the source's in three ways.

    >>> x = np.random.default_rng(0).standard_normal((20, 3))
    >>> [round(r, 6) for r in predicted(x, x + 1, np.arange(20) < 12)][1:]
    [1.0, 1.0]

    As they are; with the mean shift of the training items added; and by a linear map on top of that, ridge-penalised
    towards no change, its penalty chosen by generalised cross-validation on the training items. source, target: dims
    item x hidden; train: dims item.
    """
    held, mean = ~train, target[train].mean(0)
    total = np.square(target[held] - mean).sum()
    change = target - source
    shift = change[train].mean(0)
    linear = source[held] + shift + _ridge(source[train], change[train], source[held])
    residuals = (change[held], change[held] - shift, target[held] - linear)
    r = [1 - _ratio(np.square(some).sum(), total) for some in residuals]
    return r[0], r[1], r[2]


def _ridge(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Centred predictions for new items, of centred y from centred x."""
    mean = x.mean(0)
    u, s, vt = np.linalg.svd(x - mean, full_matrices=False)
    along, y = u.T @ (y - y.mean(0)), y - y.mean(0)
    n, best, chosen = len(x), np.inf, 0.0
    outside = np.square(y).sum() - np.square(along).sum()
    for penalty in np.asarray(RIDGES) * max(np.square(s).mean(), np.finfo(float).tiny):
        shrink = penalty / (np.square(s) + penalty)
        left = outside + np.square(shrink[:, None] * along).sum()
        freedom = n - 1 - (1 - shrink).sum()
        score = left / freedom**2 if freedom > 0 else np.inf
        if score < best:
            best, chosen = score, penalty
    weights = (s / (np.square(s) + chosen) if chosen else 0 * s)[:, None] * along
    return (new - mean) @ vt.T @ weights


@dataclass(frozen=True)
class Components:
    """Principal components of differences of activations."""

    share: np.ndarray
    """Of the variance, the largest first; dims component."""
    null: np.ndarray
    """95th percentile of the same with every column shuffled; dims component."""
    participation: float
    """(sum of variances)² / sum of their squares: how many components share the variance, about."""
    above: int
    """Components, from the first on, above the null."""
    mean_share: float
    """|mean|² as a share of the mean squared length."""
    axes: np.ndarray
    """Unit vectors; dims component x hidden."""
    scores: np.ndarray
    """Of every item; dims item x component."""


def components(d: np.ndarray, n: int, rng: np.random.Generator) -> Components:
    """Principal components of centred differences, against a null of shuffled columns.

    >>> d = np.outer(np.arange(8.0), [1, 0, 0])
    >>> components(d, 2, np.random.default_rng(0)).share.round(6).tolist()
    [1.0, 0.0]

    d: dims item x hidden. Where nothing differs, shares are 0.
    """
    mean = d.mean(0)
    centred = d - mean
    _, s, vt = np.linalg.svd(centred, full_matrices=False)
    # Of the two signs of an axis, the one that makes its largest entry positive.
    vt *= np.sign(np.take_along_axis(vt, np.abs(vt).argmax(1)[:, None], axis=1))
    variance = np.square(s)
    total = max(variance.sum(), np.finfo(float).tiny)
    null = []
    for _ in range(SHUFFLES):
        shuffled = rng.permuted(centred, axis=0)
        gram = shuffled @ shuffled.T if len(d) < d.shape[1] else shuffled.T @ shuffled
        null.append(np.linalg.eigvalsh(gram)[::-1][:n] / total)
    bound = np.quantile(null, 0.95, axis=0)
    share = variance[:n] / total
    return Components(
        share=share,
        null=bound,
        participation=_ratio(variance.sum() ** 2, np.square(variance).sum()),
        above=int(np.cumprod(share > bound).sum()),
        mean_share=_ratio(np.square(mean).sum(), np.square(d).sum(1).mean()),
        axes=vt[:n],
        scores=centred @ vt[:n].T,
    )


@dataclass(frozen=True)
class Topics:
    """Groups of tokens that rise together."""

    share: np.ndarray
    """Of all that the topics add to the rises, the largest first; dims topic."""
    token: np.ndarray
    """The tokens with the largest weights; dims topic x rank."""
    weight: np.ndarray
    """Share of the topic that each of those tokens has; dims topic x rank."""
    sample: np.ndarray
    """Samples in which the topic weighs most; dims topic x extreme."""


def topics(
    risen: np.ndarray, rise: np.ndarray, vocabulary: int, *, n: int, tokens: int, samples: int
) -> Topics:
    """Non-negative factors of how far tokens rise at some samples: which tokens rise together, and where.

    >>> found = topics(np.array([[0, 1]] * 3 + [[2, 3]] * 3), np.ones((6, 2)), 5, n=2, tokens=2, samples=3)
    >>> sorted(map(sorted, found.token.tolist())), found.share.round(3).tolist()
    ([[0, 1], [2, 3]], [0.5, 0.5])

    risen, rise: ids and nats, dims sample x rank; what falls counts as 0. n: topics. Source: scikit-learn's NMF.
    """
    from scipy.sparse import csr_array
    from sklearn.decomposition import NMF

    start = np.arange(0, risen.size + 1, risen.shape[1])
    risen_by = csr_array((rise.clip(0).ravel(), risen.ravel(), start), shape=(len(risen), vocabulary))
    factors = NMF(n, init="nndsvda", max_iter=1000, random_state=0)
    by_sample = factors.fit_transform(risen_by)
    by_token = factors.components_
    total = by_token.sum(1)
    added = by_sample.sum(0) * total
    order = np.argsort(-added, kind="stable")
    top = np.argsort(-by_token[order], axis=1, kind="stable")[:, :tokens]
    weight = np.take_along_axis(by_token[order], top, axis=1)
    tiny = np.finfo(float).tiny
    return Topics(
        share=added[order] / max(added.sum(), tiny),
        token=top,
        weight=weight / np.maximum(total[order], tiny)[:, None],
        sample=np.argsort(-by_sample[:, order], axis=0, kind="stable")[:samples].T,
    )
