"""Run prompts with any operations at once: patches and steers act, reads see what they left.

The engine of free-form jobs (`study: trace`). The studies of the paper have engines of their own, which are faster
for what they do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nnsight
import torch

from posttrace.tracers import sites
from posttrace.tracers.batching.padding import right_padded
from posttrace.tracers.engines.activations import logits_at, widen_logits
from posttrace.tracers.engines.edits import Edit, by_layer, visit
from posttrace.tracers.errors import TracerError

MAX_CELLS = 256
"""Cells whose logits a lens holds at once: 150 MB of float32 for a vocabulary of 150,000."""


@dataclass(frozen=True)
class Outcome:
    """What a run of some prompts gave."""

    values: list[torch.Tensor]
    """Per layer asked for: activations at the cells asked for, in the model's dtype; dims cell x hidden."""
    top: torch.Tensor
    """Ids of the most probable next tokens, the first one first; dims prompt x rank."""
    logprob: torch.Tensor
    """Their log probabilities, nats (float32); dims prompt x rank."""
    entropy: torch.Tensor
    """Entropy of the next token's distribution, nats (float32); dims prompt."""


@dataclass(frozen=True)
class LensOutcome:
    """What the stream at some cells would say next."""

    top: torch.Tensor
    """Ids of the most probable tokens, the first one first; dims layer x cell x rank."""
    logprob: torch.Tensor
    """Their log probabilities, nats (float32); dims layer x cell x rank."""


def run_lens(
    model,
    prompts: Sequence[Sequence[int]],
    edits: Sequence[Edit] = (),
    *,
    site: str = "resid_post",
    layers: Sequence[int],
    rows: torch.Tensor,
    columns: torch.Tensor,
    top: int = 1,
) -> LensOutcome:
    """Apply final norm and unembedding to the stream at cells of an edited run: the logit lens.

    Parameters
    ----------
    rows, columns
        The cells, dims cell (see `run_operations`).

    Raises
    ------
    TracerError
        The blocks hand each other more than one stream.

    Examples
    --------
    >>> cell = dict(rows=torch.tensor([0]), columns=torch.tensor([1]))
    >>> run_lens(model, [[1, 5]], layers=[0], **cell).top.shape                      # doctest: +SKIP
    torch.Size([1, 1, 1])
    """
    if model.architecture.form.stream is not None:
        raise TracerError(
            f"model {model.name}: lens: its blocks hand each other several streams, none of which the unembedding "
            "sees alone; leave the lens out"
        )
    run = run_operations(model, prompts, edits, site=site, layers=layers, rows=rows, columns=columns)
    values = torch.stack(run.values)
    with torch.no_grad():
        cells = values.flatten(0, 1).split(MAX_CELLS)
        parts = [_trace_end(model.nn, model.n_layers, some, top) for some in cells]
    ids, logprob = (torch.cat(part).cpu().unflatten(0, values.shape[:2]) for part in zip(*parts, strict=True))
    return LensOutcome(ids, logprob)


def _trace_end(nn, n_layers, values, top):
    """Run the end of a pass on values of the stream (cell x hidden), each a row of one token."""
    with nn.trace(input_ids=torch.zeros(len(values), 1, dtype=torch.long), use_cache=False):
        stream = values[:, None].to(nn.layers[0].input)
        for block in range(n_layers):
            sites.skip(nn.layers[block], stream)
        widen_logits(nn)
        best = nn.output.logits[:, 0].float().log_softmax(-1).topk(top, dim=-1)
        ids, logprob = nnsight.save(best.indices), nnsight.save(best.values)
    return ids, logprob


def run_operations(
    model,
    prompts: Sequence[Sequence[int]],
    edits: Sequence[Edit] = (),
    *,
    site: str = "resid_post",
    layers: Sequence[int] = (),
    rows: torch.Tensor | None = None,
    columns: torch.Tensor | None = None,
    top: int = 1,
) -> Outcome:
    """One forward pass over prompts (token ids), edited, its activations read at `site` of `layers`.

    Parameters
    ----------
    rows, columns
        The cells that are read, dims cell. Edits of one site apply in the order given; a read sees the edited value.
        Prompts of unequal length are padded on the right.

    Examples
    --------
    >>> run_operations(model, [[1, 5, 9]], top=3).top.shape            # doctest: +SKIP
    torch.Size([1, 3])
    """
    ids, real = right_padded(prompts)
    last = real.sum(1) - 1
    with torch.no_grad():
        values, logits = _trace(
            model.nn,
            n_layers=model.n_layers,
            ids=ids,
            mask=real.long(),
            last=last,
            edits=by_layer(edits),
            site=site,
            layers=layers,
            rows=rows,
            columns=columns,
        )
        logprobs = logits.float().log_softmax(-1)
        best = logprobs.topk(top, dim=-1)
        entropy = -(logprobs.exp() * logprobs.nan_to_num(neginf=0.0)).sum(-1)
    return Outcome([v.cpu() for v in values], best.indices.cpu(), best.values.cpu(), entropy.cpu())


def _trace(nn, n_layers, ids, mask, last, edits, site, layers, rows, columns):
    with nn.trace(input_ids=ids, attention_mask=mask):
        values = nnsight.save([])
        for layer in range(n_layers):
            value = visit(nn.layers[layer], edits.get(layer, {}), site if layer in layers else None)
            if layer in layers:
                values.append(value[rows, columns])
        logits = nnsight.save(logits_at(nn, torch.arange(len(last)), last))
    return values, logits
