"""Mean-ablate neurons of one MLP on text, and read how the next-token distribution changes.

*Total*: the ablated run as it is. *Direct*: the final norm keeps its scale from the unablated run, which leaves the
neurons' direct effect on the logits (Stolfo et al. 2024). A row of text begins with a beginning-of-text token (neither
ablated nor scored); each later token but the last is scored on predicting the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import nnsight
import torch

from posttrace.tracers import sites
from posttrace.tracers.batching.padding import right_padded
from posttrace.tracers.models.mlp_neurons import Neurons

MAX_VALUES = 2**25
"""Logits (tokens x vocabulary) held at once: 128 MiB in float32."""
CACHED_VALUES = 2**17
"""Logits that a CPU turns into entropy and loss at once: 512 KiB in float32."""


@dataclass(frozen=True)
class TextReading:
    """What the unablated run of some text gave (float32)."""

    activation: torch.Tensor
    """Sum over scored tokens of every neuron's activation (float64); dims neuron."""
    entropy: torch.Tensor
    """Mean over a row's scored tokens of the next-token distribution's entropy, nats; dims row."""
    loss: torch.Tensor
    """Mean over a row's scored tokens of -log P(next token), nats; dims row."""
    n_tokens: torch.Tensor
    """Scored tokens (int64); dims row."""


@dataclass(frozen=True)
class AblationEffects:
    """Mean over a row's scored tokens with neurons at their mean activation (float32, nats); dims ablation x row."""

    entropy_total: torch.Tensor
    loss_total: torch.Tensor
    entropy_direct: torch.Tensor
    loss_direct: torch.Tensor


def read_text(model, rows: Sequence[Sequence[int]], *, neurons: Neurons) -> TextReading:
    """Run text once: summed activations of one MLP's neurons, and each row's entropy and loss.

    >>> read_text(model, [[0, 17, 4, 90]], neurons=find_neurons(module)).n_tokens      # doctest: +SKIP
    tensor([2])
    """
    total = torch.zeros(neurons.n_neurons, dtype=torch.float64)
    entropy, loss, counts = [], [], []
    with torch.no_grad():
        for batch in text_batches(rows, neurons):
            hidden, scores = _trace_text(model.nn, batch.ids, batch.following, neurons)
            activation = hidden[batch.scored.to(hidden.device)]
            total += activation.double().sum(0).cpu()
            entropy.append(batch.mean(scores[0]))
            loss.append(batch.mean(scores[1]))
            counts.append(batch.scored.sum(1))
    return TextReading(total, torch.cat(entropy), torch.cat(loss), torch.cat(counts))


def ablate_neurons(
    model,
    rows: Sequence[Sequence[int]],
    *,
    neurons: Neurons,
    mean: torch.Tensor,
    ablations: Sequence[Sequence[int]],
) -> AblationEffects:
    """Entropy and loss of each row with each set of neurons held at their mean activation.

    >>> ablate_neurons(model, rows, neurons=n, mean=mean, ablations=[[3], [3, 8]]).loss_total.shape  # doctest: +SKIP
    torch.Size([2, 1])

    mean: activation to put in, dims neuron. ablations: sets of neurons, each held together. In the last block only
    the final norm and the unembedding are run again for each set; in an earlier one the blocks from there on, or all
    where the architecture's runs are whole passes.
    """
    results: list[list[torch.Tensor]] = [[] for _ in range(4)]
    last = neurons.layer == model.n_layers - 1 and model.architecture.whole is None
    with torch.no_grad():
        for batch in text_batches(rows, neurons):
            run = run_unablated(model.nn, batch.ids, neurons)
            again = _last_block if last else _later_blocks
            found = again(model, batch, run, neurons, mean, ablations)
            for result, values in zip(results, found, strict=True):
                result.append(values)
    return AblationEffects(*(torch.cat(values, dim=1) for values in results))


@dataclass(frozen=True)
class TextBatch:
    """Rows of text, padded on the right, where causal attention makes padding harmless."""

    ids: torch.Tensor
    following: torch.Tensor
    """Next token of every token; dims row x token."""
    scored: torch.Tensor
    """Which tokens count; dims row x token."""

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Mean over the scored tokens of each row; values: dims row x token."""
        values = values.double().cpu().masked_fill(~self.scored, 0.0)
        return (values.sum(1) / self.scored.sum(1)).float()


@dataclass(frozen=True)
class UnablatedRun:
    """The parts of the unablated run that ablated runs start from; dims row x token x ..."""

    hidden: torch.Tensor
    """Activations of the neurons."""
    added: torch.Tensor
    """What the MLP's last projection gives."""
    entered: torch.Tensor
    """The stream that enters the block."""
    left: torch.Tensor
    """The stream that leaves the block."""
    before_norm: torch.Tensor
    after_norm: torch.Tensor
    nothing: torch.Tensor
    """What the MLP's last projection gives for no activation; dims 1 x hidden."""
    gain: torch.Tensor
    """What the final norm multiplies by; dims hidden."""
    bias: torch.Tensor
    """What it adds; dims hidden."""


def text_batches(rows: Sequence[Sequence[int]], neurons: Neurons) -> Iterator[TextBatch]:
    """Rows in batches whose log probabilities fit into memory; all tokens but a row's ends are scored."""
    size = max(1, MAX_VALUES // (neurons.vocabulary * max(map(len, rows))))
    for begin in range(0, len(rows), size):
        some = rows[begin : begin + size]
        ids, real = right_padded(some)
        place = torch.arange(ids.shape[1])
        scored = (place > 0) & (place < real.sum(1, keepdim=True) - 1)
        yield TextBatch(ids, ids.roll(-1, 1), scored)


def _trace_text(nn, ids, following, neurons: Neurons):
    with nn.trace(input_ids=ids, use_cache=False):
        hidden = nnsight.save(_child(nn.layers[neurons.layer], neurons.down).input)
        scores = nnsight.save(token_scores(nn.output.logits, following))
    return hidden, scores


def run_unablated(nn, ids, neurons: Neurons) -> UnablatedRun:
    # Modules are called within the trace, and no weight is read: a server may hide them.
    block = nn.layers[neurons.layer]
    down, norm = _child(block, neurons.down), _child(nn, neurons.norm)
    with nn.trace(input_ids=ids, use_cache=False):
        entered = nnsight.save(block.input)
        hidden = nnsight.save(down.input)
        nothing = nnsight.save(down(torch.zeros_like(hidden[0, :1])))
        added = nnsight.save(down.output)
        left = nnsight.save(sites.first(block.output))
        before = nnsight.save(norm.input)
        after = nnsight.save(norm.output)
        gain, bias = linear_part(norm, neurons.form.centres, after)
        gain, bias = nnsight.save(gain), nnsight.save(bias)
    return UnablatedRun(hidden, added, entered, left, before, after, nothing, gain, bias)


def _last_block(model, batch: TextBatch, run: UnablatedRun, neurons: Neurons, mean, ablations):
    """Effects of neurons of the last block: their change of the stream is known, only norm and unembedding run."""
    scored = batch.scored.to(run.left.device)
    tokens = [values[scored] for values in (run.hidden, run.added, run.left, run.before_norm, run.after_norm)]
    hidden, following = tokens[0], batch.following[batch.scored]
    size = max(1, MAX_VALUES // (2 * neurons.vocabulary))
    results = [torch.empty(len(ablations), len(batch.ids)) for _ in range(4)]
    for a, chosen in enumerate(ablations):
        which = torch.tensor(list(chosen), device=hidden.device)
        shift = torch.zeros_like(hidden)
        shift[:, which] = (mean[list(chosen)].to(hidden.device).float() - hidden[:, which].float()).to(hidden)
        parts = []
        for begin in range(0, len(hidden), size):
            part = slice(begin, begin + size)
            some = [values[part] for values in tokens]
            parts.append(_trace_end(model, run, shift[part], some, following[part], neurons))
        values = torch.cat(parts, dim=1).double().cpu()
        for result, value in zip(results, values, strict=True):
            spread = torch.zeros(batch.scored.shape, dtype=torch.float64)
            spread[batch.scored] = value
            result[a] = batch.mean(spread)
    return results


def _trace_end(model, run: UnablatedRun, shift, tokens, following, neurons: Neurons):
    """Apply final norm and unembedding alone, on tokens as rows of one token each: total and direct, dims 4 x token.

    shift: change of each neuron's activation. tokens: those parts of the unablated run that `_last_block` lists.
    """
    nn, half = model.nn, len(shift)
    with nn.trace(input_ids=torch.zeros(2 * half, 1, dtype=torch.long), use_cache=False):
        both = torch.cat(_ends(model, run, shift, tokens, neurons))[:, None]
        for block in range(model.n_layers):
            sites.skip(nn.layers[block], both)
        norm = _child(nn, neurons.norm)
        norm.output = torch.cat([norm.output[:half], both[half:].to(norm.output)])
        scores = nnsight.save(
            token_scores(nn.output.logits, torch.cat([following, following])[:, None])[:, :, 0]
        )
    return torch.cat([scores[:, :half], scores[:, half:]])


def _ends(model, run: UnablatedRun, shift, tokens, neurons: Neurons):
    """Return the stream after the last block, and the final norm's output with its scale frozen, inside a trace."""
    block, (_, added, left, before, after) = model.nn.layers[neurons.layer], tokens
    change = _child(block, neurons.down)(shift).float() - run.nothing.float()
    if model.architecture.mlp_norm:
        # A norm after the MLP (Gemma 2, OLMo 2) sees the projection's output before it joins the stream.
        norm = block.mlp_add
        change = norm((added.float() + change).to(added)).float() - norm(added).float()
    change = sites.form_of(block).factor * change
    after_change = (before.float() + change).to(before)
    frozen = frozen_norm(run.gain, run.bias, neurons.form.centres, before, after, after_change)
    return (left.float() + change).to(left), frozen


def _later_blocks(model, batch: TextBatch, run: UnablatedRun, neurons: Neurons, mean, ablations):
    """Effects of neurons of an earlier block: the blocks from there on run again, once for each kind of effect."""
    results = [torch.empty(len(ablations), len(batch.ids)) for _ in range(4)]
    for a, chosen in enumerate(ablations):
        for kind in (0, 1):
            whole = model.architecture.whole is not None
            scores = trace_ablated(model.nn, batch, run, neurons, mean, list(chosen), bool(kind), whole)
            results[2 * kind][a], results[2 * kind + 1][a] = batch.mean(scores[0]), batch.mean(scores[1])
    return results


def trace_ablated(
    nn, batch: TextBatch, run: UnablatedRun, neurons: Neurons, mean, chosen, direct: bool, whole=False
):
    with nn.trace(input_ids=batch.ids, use_cache=False):
        for earlier in range(0 if whole else neurons.layer):
            sites.skip(nn.layers[earlier], run.entered)
        down = _child(nn.layers[neurons.layer], neurons.down)
        down.input = held(down.input, batch.scored, chosen, mean)
        if direct:
            norm = _child(nn, neurons.norm)
            norm.output = frozen_norm(
                run.gain, run.bias, neurons.form.centres, run.before_norm, run.after_norm, norm.input
            )
        scores = nnsight.save(token_scores(nn.output.logits, batch.following))
    return scores


def held(
    hidden: torch.Tensor, scored: torch.Tensor, chosen: Sequence[int], mean: torch.Tensor
) -> torch.Tensor:
    """Activations (dims row x token x neuron) with some neurons at their mean where tokens are scored."""
    hidden = hidden.clone()
    values = hidden[..., chosen]
    hidden[..., chosen] = torch.where(scored[..., None].to(hidden.device), mean[chosen].to(hidden), values)
    return hidden


def linear_part(norm, centres: bool, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a norm multiplies by and adds (float32, dims hidden), from what it gives for two opposite vectors.

    >>> gain, bias = linear_part(torch.nn.LayerNorm(4), True, torch.zeros(4))
    >>> torch.allclose(gain, torch.ones(4), atol=1e-4), torch.allclose(bias, torch.zeros(4), atol=1e-4)
    (True, True)

    like: any value that the norm gave, for its size, dtype and device. The vectors are long, so that the norm's
    epsilon is negligible.
    """
    signs = 1 - 2 * (torch.arange(like.shape[-1], device=like.device) % 2)
    vector = 64 * signs.float()
    plus, minus = (norm(v.to(like)[None, None])[0, 0].float() for v in (vector, -vector))
    if centres:
        vector = vector - vector.mean()
    return (plus - minus) / 2 * vector.square().mean().sqrt() / vector, (plus + minus) / 2


def frozen_norm(gain, bias, centres: bool, before, after, changed) -> torch.Tensor:
    """Return what the final norm would give for `changed` with the scale it had for `before`, which gave `after`.

    >>> norm, x = torch.nn.LayerNorm(4), torch.tensor([[1.0, 2.0, 3.0, 5.0]])
    >>> y = norm(x)
    >>> frozen = frozen_norm(torch.ones(4), torch.zeros(4), True, x, y, 2 * x)
    >>> torch.allclose(frozen, 2 * y)
    True

    dims ... x hidden. A norm is linear but for its scale, which is found from what goes in and comes out.
    """
    plain, change = before.float(), changed.float() - before.float()
    if centres:
        plain = plain - plain.mean(-1, keepdim=True)
        change = change - change.mean(-1, keepdim=True)
    inverse = (after.float() - bias).norm(dim=-1, keepdim=True) / (plain * gain).norm(dim=-1, keepdim=True)
    return (after.float() + change * gain * inverse).to(after)


def token_scores(logits, following):
    """Entropy and loss of every token, nats, float32; dims 2 x row x token.

    On a CPU a few tokens at a time, so that intermediate values stay in its caches.
    """
    wanted = following.to(logits.device).flatten()
    size = len(wanted) if logits.is_cuda else max(1, CACHED_VALUES // logits.shape[-1])
    parts = []
    for some, successors in zip(logits.flatten(0, 1).split(size), wanted.split(size), strict=True):
        log_p = torch.log_softmax(some.float(), dim=-1)
        loss = -log_p.gather(-1, successors[:, None])[:, 0]
        parts.append(torch.stack([-(log_p.exp() * log_p).sum(-1), loss]))
    return torch.cat(parts, dim=1).unflatten(1, following.shape)


def _child(module, path: str):
    """Return the module at a dotted path below another."""
    return reduce(getattr, path.split("."), module)
