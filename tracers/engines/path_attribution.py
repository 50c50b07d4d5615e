"""How much of a stage's effect each layer, module and token accounts for, along the straight path of weights.

On the path `theta(s) = earlier + s update` the behaviour's slope is a sum over modules and tokens: a linear map `W`
adds `<df/dy_t, dW x_t>` at token t, where y is its output, x its input and dW the update; norm scales and embeddings
are linear in their weights too. The integral over s of all of them is the stage effect f(later) - f(earlier), which
makes them an attribution (completeness). `dW x_t` is what the stage's weights *add* there: attribution patching for
weights, on the axes of the patch grid.

No weight is changed for it: every module adds `(s - 1) dW x` to its output, so rows of one batch may lie at different
s, and a forward and a backward pass of the activations give all modules and tokens at once. The integral is taken at
Gauss-Legendre nodes; where the sum misses the difference of the ends, the interval that misses most is halved.

Source: integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365), applied to weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from posttrace.tracers.batching.memory import in_batches
from posttrace.tracers.engines.attribution import Frozen
from posttrace.tracers.engines.behaviours import Question, n_tokens, reading, row_batch, widened
from posttrace.tracers.models.updates import made_again
from posttrace.tracers.models.weighted import MODULES, Weighted, weighted_modules

NODES = 8
"""Gauss-Legendre nodes of an interval."""
MOST_NODES = 64
"""Of a prompt's whole path."""
FLOOR = 0.01
"""Nats that the sum may miss, whatever the size of the effect."""
ROUNDING = 1e-5
"""Nats by which a sum in float32 may be off, however many nodes it has."""

Weights = Mapping[str, torch.Tensor]
Point = tuple[int, float]
"""A prompt, and where on the path."""


@dataclass(frozen=True)
class Slopes:
    """df/ds at some points of the path, split by where it arises (float64, nats)."""

    values: torch.Tensor
    """f itself; dims point."""
    modules: torch.Tensor
    """Dims point x layer x {attn, mlp} x token."""
    embed: torch.Tensor
    """Dims point x token."""
    unembed: torch.Tensor
    """Dims point."""

    @property
    def total(self) -> torch.Tensor:
        """df/ds; dims point."""
        return self.modules.sum((1, 2, 3)) + self.embed.sum(1) + self.unembed


@dataclass(frozen=True)
class PathAttribution:
    """The stage effect of every prompt, split by layer, module and token (float32, nats)."""

    modules: torch.Tensor
    """Dims prompt x layer x {attn, mlp} x token; NaN beyond a prompt's tokens."""
    embed: torch.Tensor
    """Dims prompt x token; NaN beyond a prompt's tokens."""
    unembed: torch.Tensor
    """Final norm and unembedding; dims prompt."""
    residual: torch.Tensor
    """Sum of all minus (f(later) - f(earlier)); dims prompt."""
    nodes: torch.Tensor
    """Nodes that the sum is taken at; dims prompt."""
    slope: torch.Tensor
    """df/ds at s = 0 and s = 1: estimates from one point; dims prompt x end."""


@dataclass
class _Interval:
    """A piece of one prompt's path."""

    begin: float
    end: float
    f_begin: float
    f_end: float
    modules: torch.Tensor
    embed: torch.Tensor
    unembed: torch.Tensor

    @property
    def misses(self) -> float:
        total = self.modules.sum() + self.embed.sum() + self.unembed
        return float(total) - (self.f_end - self.f_begin)


def path_attribution(
    model,
    prompts: Sequence[Question],
    update: Weights,
    *,
    tolerance: float = 0.02,
    of_mean: float | None = None,
    nodes: int = NODES,
    most_nodes: int = MOST_NODES,
    max_tokens: int | None = None,
) -> PathAttribution:
    """Split the effect of an update, whose later end is the open model, by layer, module and token.

    Parameters
    ----------
    update: later minus earlier weights by name, on the model's devices.
    tolerance: intervals are halved until a prompt's sum misses its effect by at most this share of it and 0.01 nats.
    of_mean: if given, they are halved until it misses at most this share of the mean absolute effect too; 0.01 nats are
        much where effects are small.
    nodes, most_nodes: nodes of an interval, and of all of a prompt's intervals. A prompt may end with a residual above
        the tolerance; it is for the reader to leave it out.
    max_tokens: tokens in one forward and backward pass, halved when memory runs out.
    """

    def slopes(points: Sequence[Point]) -> Slopes:
        return slopes_at(model, prompts, update, points, max_tokens=max_tokens)

    n = len(prompts)
    ends = slopes([(i, float(s)) for s in (0, 1) for i in range(n)])
    f = ends.values.view(2, n).tolist()
    effects = [abs(f[1][i] - f[0][i]) for i in range(n)]
    most = torch.inf if of_mean is None else max(of_mean * sum(effects) / n, ROUNDING)
    pieces = _intervals(slopes, [(i, 0.0, 1.0, f[0][i], f[1][i]) for i in range(n)], nodes)
    paths = [[piece] for piece in pieces]
    while True:
        missing = [i for i in range(n) if _misses(paths[i]) > min(tolerance * effects[i] + FLOOR, most)]
        halved = [i for i in missing if (len(paths[i]) + 1) * nodes <= most_nodes]
        if not halved:
            break
        worst = [max(paths[i], key=lambda piece: abs(piece.misses)) for i in halved]
        middles = [(piece.begin + piece.end) / 2 for piece in worst]
        at_middle = slopes(list(zip(halved, middles, strict=True))).values.tolist()
        wanted = []
        for i, piece, middle, value in zip(halved, worst, middles, at_middle, strict=True):
            paths[i].remove(piece)
            wanted.append((i, piece.begin, middle, piece.f_begin, value))
            wanted.append((i, middle, piece.end, value, piece.f_end))
        for (i, *_), piece in zip(wanted, _intervals(slopes, wanted, nodes), strict=True):
            paths[i].append(piece)
    modules = torch.stack([sum_of([piece.modules for piece in path]) for path in paths])
    embed = torch.stack([sum_of([piece.embed for piece in path]) for path in paths])
    for i, prompt in enumerate(prompts):
        length = n_tokens([prompt])
        modules[i, ..., length:] = embed[i, length:] = torch.nan
    return PathAttribution(
        modules=modules.float(),
        embed=embed.float(),
        unembed=torch.stack([sum_of([piece.unembed for piece in path]) for path in paths]).float(),
        residual=torch.tensor([sum(piece.misses for piece in path) for path in paths]),
        nodes=torch.tensor([len(path) * nodes for path in paths]),
        slope=ends.total.view(2, n).T.float().contiguous(),
    )


def sum_of(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the sum of tensors of one shape."""
    return torch.stack(list(tensors)).sum(0)


def _misses(path: Sequence[_Interval]) -> float:
    return abs(sum(piece.misses for piece in path))


def _intervals(
    slopes, wanted: Sequence[tuple[int, float, float, float, float]], nodes: int
) -> list[_Interval]:
    """Return the integrals over intervals (prompt, begin, end, f at both)."""
    places, weights = np.polynomial.legendre.leggauss(nodes)
    points = [
        (i, begin + (end - begin) * (place + 1) / 2)
        for i, begin, end, *_ in wanted
        for place in places.tolist()
    ]
    found = slopes(points)
    pieces = []
    for k, (_, begin, end, f_begin, f_end) in enumerate(wanted):
        own = slice(k * nodes, (k + 1) * nodes)
        weight = torch.from_numpy(weights * (end - begin) / 2)
        parts = [torch.tensordot(weight, one[own], 1) for one in (found.modules, found.embed, found.unembed)]
        pieces.append(_Interval(begin, end, f_begin, f_end, *parts))
    return pieces


def slopes_at(
    model,
    prompts: Sequence[Question],
    update: Weights,
    points: Sequence[Point],
    *,
    max_tokens: int | None = None,
) -> Slopes:
    """df/ds of some prompts at some places of the path, split by layer, module and token.

    points: (prompt, s); s = 1 is the open model, s = 0 the earlier stage.
    """
    rows, owner, places = [], [], []
    for k, (i, s) in enumerate(points):
        for row in prompts[i]:
            rows.append(row)
            owner.append(k)
            places.append(s)
    n, width = len(points), n_tokens(prompts)
    values, unembed = torch.zeros(2, n, dtype=torch.float64)
    modules = torch.zeros(n, model.n_layers, len(MODULES), width, dtype=torch.float64)
    embed = torch.zeros(n, width, dtype=torch.float64)
    weighted = weighted_modules(model.nn._module)

    def contracted(chosen):
        batch = row_batch(model, [rows[i] for i in chosen])
        return _contracted(model, weighted, batch, update, [places[i] for i in chosen])

    for part, found in in_batches(model, contracted, [len(row.ids) for row in rows], max_tokens):
        to, length = torch.tensor([owner[i] for i in part]), found.embed.shape[1]
        values.index_add_(0, to, found.values)
        unembed.index_add_(0, to, found.unembed)
        modules[..., :length].index_add_(0, to, found.modules)
        embed[:, :length].index_add_(0, to, found.embed)
    return Slopes(values=values, modules=modules, embed=embed, unembed=unembed)


def _contracted(
    model, weighted: Sequence[Weighted], batch, update: Weights, places: Sequence[float]
) -> Slopes:
    """Return the slopes of one batch of rows, each at its own place of the path."""
    module, device = model.nn._module, model.device
    n, width = batch.ids.shape
    modules = torch.zeros(n, model.n_layers, len(MODULES), width, dtype=torch.float64, device=device)
    embed = torch.zeros(n, width, dtype=torch.float64, device=device)
    unembed = torch.zeros(n, dtype=torch.float64, device=device)
    head = module.get_submodule(model.architecture.unembed)

    def keep(one: Weighted, slope: torch.Tensor) -> None:
        """Add what a module gives, slope times what the update adds; dims as the module's output."""
        if one.module is head:
            unembed.index_add_(0, batch.row, slope.sum(-1).to(device, torch.float64))
            return
        if slope.shape[0] == n * width:  # OPT's MLP sees all rows' tokens as one list
            slope = slope.view(n, width, -1)
        # Norms of queries and keys see the heads before the tokens in some architectures.
        tokens = 1 if slope.shape[1] == width else 2
        by_token = slope.sum([d for d in range(1, slope.dim()) if d != tokens]).to(device, torch.float64)
        if one.part.module == "embed":
            embed.add_(by_token)
        elif one.part.module == "unembed":
            unembed.add_(by_token.sum(1))
        else:
            modules[:, one.part.layer, MODULES.index(one.part.module)].add_(by_token)

    shift = torch.tensor(places, dtype=torch.float64) - 1
    with torch.enable_grad(), Frozen(module), reading(head, batch), ExitStack() as hooks:
        wide = hooks.enter_context(widened(model))
        hooks.enter_context(made_again(update, wide))
        for one in weighted:
            own = shift[batch.row.cpu()] if one.module is head else shift
            hooks.enter_context(_moved(one, update, own, keep))
        scores = batch.scores(module(input_ids=batch.ids, use_cache=False).logits)
        scores.sum().backward()
    values = scores.detach().double()
    return Slopes(*(one.cpu() for one in (values, modules, embed, unembed)))


@contextmanager
def _moved(one: Weighted, update: Weights, shift: torch.Tensor, keep) -> Iterator[None]:
    """Let a module's output be as if its weights were moved by shift times the update; dims of shift: row of output."""

    def hook(module, inputs, output):
        added = added_by(module, {key: update[name] for key, name in one.names.items()}, inputs)
        # Positions are the same in all rows, and a list of all rows' tokens has more entries than there are rows.
        by_row = shift.repeat_interleave(max(1, added.shape[0] // len(shift))).to(added)
        moved = output + by_row.view(-1, *[1] * (added.dim() - 1)) * added
        if not moved.requires_grad:  # gradients begin at the embeddings
            moved = moved.detach().requires_grad_()
        added = added.detach()
        moved.register_hook(lambda slope: keep(one, slope * added))
        return moved

    handle = one.module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def added_by(module, update: Weights, inputs: tuple) -> torch.Tensor:
    """Return what an update of a module's weights adds to its output: exact, as the output is linear in the weights.

    >>> added_by(torch.nn.Linear(2, 1), {"weight": torch.ones(1, 2), "bias": torch.ones(1)}, (torch.ones(1, 2),))
    tensor([[3.]])

    A norm may scale by one plus its weight, so what it gives for a weight of zero is taken away.
    """
    added = _forward(module, update, inputs)
    if isinstance(module, torch.nn.Linear | torch.nn.Embedding) or "Norm" not in type(module).__name__:
        return added
    return added - _forward(module, {key: torch.zeros_like(value) for key, value in update.items()}, inputs)


def _forward(module, weights: Weights, inputs: tuple) -> torch.Tensor:
    """Return the output with other weights; no hook of the module is run."""
    before = dict(module._parameters)
    try:
        module._parameters.update(weights)
        return type(module).forward(module, *inputs)
    finally:
        module._parameters.update(before)
