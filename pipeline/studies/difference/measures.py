"""What is measured between two stages: distributions, streams, linear maps, principal components. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator
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


def js(lp: torch.Tensor, lq: torch.Tensor) -> torch.Tensor:
    """Jensen-Shannon divergence, nats (float64), 0 to ln 2; exactly 0 for equal arguments.

    >>> p = torch.tensor([0.5, 0.5]).log()
    >>> js(p, p).item()
    0.0

    lp, lq: log probabilities, dims ... x vocabulary.
    """
    return js_of(lq - lp, lp.exp(), lq.exp())


def js_of(x: torch.Tensor, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Jensen-Shannon divergence of probabilities p and q, given x = log q - log p; dims ... x vocabulary."""
    # log(m / p) = log((1 + e^x) / 2) and log(m / q), without overflow and exactly 0 where x is.
    half = x.abs().neg_().expm1_().div_(2).log1p_()
    terms = (half + x.clamp(min=0)).mul_(p).add_((half - x.clamp(max=0)).mul_(q))
    return 0.0 - terms.sum(-1, dtype=torch.float64) / 2


@dataclass(frozen=True)
class Divergences:
    """Two next-token distributions compared at some tokens."""

    kl: torch.Tensor
    """KL(target || source), nats (float64); dims token."""
    kl_by_token: torch.Tensor
    """Sum over the tokens of what each token of the vocabulary adds to KL, nats (float64); dims vocabulary."""
    risen: torch.Tensor
    """Ids of the tokens whose log probability rises most, the first one first; dims token x rank."""
    rise: torch.Tensor
    """How far it rises, nats; dims token x rank."""


def divergences(x: torch.Tensor, q: torch.Tensor) -> Divergences:
    """Compare two distributions at some tokens, token of the vocabulary by token.

    >>> divergences(torch.zeros(1, 3), torch.tensor([[0.5, 0.25, 0.25]])).kl_by_token.tolist()
    [0.0, 0.0, 0.0]

    x: log q - log p; q: probabilities of the target; dims token x vocabulary.
    """
    terms = q * x
    rise, risen = largest(x, min(RANK, x.shape[-1]))
    return Divergences(
        kl=terms.sum(-1, dtype=torch.float64),
        kl_by_token=terms.sum(0, dtype=torch.float64),
        risen=risen,
        rise=rise,
    )


def largest(x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k largest values of each row and their places, the largest first, as `torch.topk`.

    >>> largest(torch.tensor([[1.0, 3.0, 2.0]]), 2)[1].tolist()
    [[1, 2]]

    x: dims row x column. Columns are dealt to groups; only the k groups with the largest maxima can hold one of the k
    largest values.
    """
    n, width = x.shape
    size = round((width / k) ** 0.5)
    if size < 2:
        return x.topk(k, dim=1)
    groups = width // size
    whole = groups * size
    held = x[:, :whole].unflatten(1, (size, groups)).amax(1).topk(k, dim=1).indices
    columns = (held[:, None] + groups * torch.arange(size)[:, None]).flatten(1)
    columns = torch.cat([columns, torch.arange(whole, width).expand(n, -1)], dim=1)
    values, order = x.gather(1, columns).topk(k, dim=1)
    return values, columns.gather(1, order)


def rounding_variance(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Mean squared rounding error of values that were rounded to a dtype (float32): ulp² / 12.

    >>> rounding_variance(torch.ones(1), torch.float16).sqrt().item() < 2**-10
    True
    """
    about = torch.finfo(dtype)
    # Without sign and mantissa, what is left is the power of two.
    power = (values.float().contiguous().view(torch.int32) & 0x7F800000).view(torch.float32)
    return power.clamp_(min=about.tiny).mul_(about.eps).square_().div_(12)


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


def left_vectors(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Left singular vectors of a matrix and the squares of its singular values, the largest first.

    >>> left_vectors(np.diag([1.0, 3.0]))[1].tolist()
    [9.0, 1.0]

    Of the smaller of its Gram matrices, which squares its condition: values below 1e-8 of the largest are noise, and
    their vectors perhaps zero.
    """
    if len(x) <= x.shape[1]:
        squares, u = np.linalg.eigh(x @ x.T)
        return u[:, ::-1], squares[::-1].clip(0)
    squares, v = np.linalg.eigh(x.T @ x)
    squares, v = squares[::-1].clip(0), v[:, ::-1]
    known = squares > np.finfo(float).eps * len(x) * squares[0]
    return x @ (v * np.where(known, 1 / np.sqrt(np.where(known, squares, 1)), 0)), squares


@dataclass(frozen=True)
class Ridge:
    """Linear maps from one set of activations, ridge-penalised: what does not depend on what they predict."""

    vectors: np.ndarray
    """Left singular vectors of those; dims item x component."""
    squares: np.ndarray
    """Squared singular values; dims component."""
    held: np.ndarray
    """Products of held-out items, less the same mean, with those of training; dims item x item."""

    @classmethod
    def of(cls, source: np.ndarray, train: np.ndarray) -> Ridge:
        """Prepare the maps from a source; dims as in `predicted`."""
        mean = source[train].mean(0)
        centred = source[train] - mean
        return cls(*left_vectors(centred), (source[~train] - mean) @ centred.T)

    def predict(self, y: np.ndarray) -> np.ndarray:
        """Centred predictions for the held-out items, of y of the training items."""
        y = y - y.mean(0)
        along, squares = self.vectors.T @ y, self.squares
        n, best, chosen = len(y), np.inf, 0.0
        by_component = np.square(along).sum(1)
        outside = np.square(y).sum() - by_component.sum()
        for penalty in np.asarray(RIDGES) * max(squares.mean(), np.finfo(float).tiny):
            shrink = penalty / (squares + penalty)
            left = outside + (np.square(shrink) * by_component).sum()
            freedom = n - 1 - (1 - shrink).sum()
            score = left / freedom**2 if freedom > 0 else np.inf
            if score < best:
                best, chosen = score, penalty
        weights = (1 / (squares + chosen) if chosen else 0 * squares)[:, None] * along
        return self.held @ (self.vectors @ weights)


def predicted(
    source: np.ndarray, target: np.ndarray, train: np.ndarray, ridge: Ridge | None = None
) -> tuple[float, float, float]:
    """R² of the target's activations on held-out items, predicted from the source's in three ways.

    >>> x = np.random.default_rng(0).standard_normal((20, 3))
    >>> [round(r, 6) for r in predicted(x, x + 1, np.arange(20) < 12)][1:]
    [1.0, 1.0]

    As they are; with the mean shift of the training items added; and by a linear map on top of that, ridge-penalised
    towards no change, its penalty chosen by generalised cross-validation on the training items. source, target: dims
    item x hidden; train: dims item. ridge: `Ridge.of(source, train)`, if it is known.
    """
    held, mean = ~train, target[train].mean(0)
    total = np.square(target[held] - mean).sum()
    change = target - source
    shift = change[train].mean(0)
    linear = (ridge or Ridge.of(source, train)).predict(change[train])
    residuals = (change[held], change[held] - shift, change[held] - shift - linear)
    r = [1 - _ratio(np.square(some).sum(), total) for some in residuals]
    return r[0], r[1], r[2]


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
    u, variance = left_vectors(centred)
    length = np.sqrt(variance[:n, None])
    axes = (u[:, :n].T @ centred) / np.where(length > 0, length, 1)
    # Of the two signs of an axis, the one that makes its largest entry positive.
    axes *= np.sign(np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], axis=1))
    total = max(variance.sum(), np.finfo(float).tiny)
    null = [shares[:n] for shares in _shuffled_shares(centred, rng)]
    bound = np.quantile(null, 0.95, axis=0)
    share = variance[:n] / total
    return Components(
        share=share,
        null=bound,
        participation=_ratio(variance.sum() ** 2, np.square(variance).sum()),
        above=int(np.cumprod(share > bound).sum()),
        mean_share=_ratio(np.square(mean).sum(), np.square(d).sum(1).mean()),
        axes=axes,
        scores=centred @ axes.T,
    )


def _shuffled_shares(centred: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield shares of variance with every column shuffled by itself (float32), `SHUFFLES` times."""
    scaled = centred / max(np.linalg.norm(centred), np.finfo(float).tiny)
    columns = np.ascontiguousarray(scaled.T, dtype="float32")
    for _ in range(SHUFFLES):
        shuffled = rng.permuted(columns, axis=1)
        gram = shuffled.T @ shuffled if len(centred) < len(columns) else shuffled @ shuffled.T
        yield np.linalg.eigvalsh(gram)[::-1].clip(0)


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
