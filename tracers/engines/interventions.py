"""Run prompts with any operations at once: patches and steers act, reads see what they left.

The engine of free-form jobs (`study: trace`). The studies of the paper have engines of their own, which are faster
for what they do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nnsight
import torch

from posttrace.tracers.batching.padding import right_padded
from posttrace.tracers.operations import STREAM_SITES
from posttrace.tracers.sites import change, first, get, replaced, steered, with_first


@dataclass(frozen=True)
class Edit:
    """One change of one site of one block."""

    site: str
    layer: int
    rows: torch.Tensor
    """Prompt of each changed cell; dims cell."""
    columns: torch.Tensor
    """Token (from 0) of each changed cell; dims cell."""
    mode: str
    """`replace`, or what `tracers.sites.steered` knows: add, subtract, ablate."""
    values: torch.Tensor
    """`replace`: the new activations, dims cell x hidden; else the direction, dims hidden."""
    coefficient: float = 1.0


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

    >>> run_operations(model, [[1, 5, 9]], top=3).top.shape            # doctest: +SKIP
    torch.Size([1, 3])

    rows, columns: the cells that are read, dims cell. Edits of one site apply in the order given; a read sees the
    edited value. Prompts of unequal length are padded on the right.
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
            places=_by_place(edits),
            site=site,
            layers=layers,
            rows=rows,
            columns=columns,
        )
        logprobs = logits.float().log_softmax(-1)
        best = logprobs.topk(top, dim=-1)
        entropy = -(logprobs.exp() * logprobs.nan_to_num(neginf=0.0)).sum(-1)
    return Outcome([v.cpu() for v in values], best.indices.cpu(), best.values.cpu(), entropy.cpu())


def _by_place(edits: Sequence[Edit]) -> dict[int, dict[str, list[Edit]]]:
    """Layer -> site -> its edits, sites in forward order."""
    places: dict[int, dict[str, list[Edit]]] = {}
    for site in STREAM_SITES:
        for edit in edits:
            if edit.site == site:
                places.setdefault(edit.layer, {}).setdefault(site, []).append(edit)
    return places


def _trace(nn, n_layers, ids, mask, last, places, site, layers, rows, columns):
    with nn.trace(input_ids=ids, attention_mask=mask):
        values = nnsight.save([])
        for layer in range(n_layers):
            value = _visit(nn.layers[layer], places.get(layer, {}), site if layer in layers else None)
            if layer in layers:
                values.append(value[rows, columns])
        # the unembedding sees the last token of each prompt only
        nn.unembed.input = nn.unembed.input[torch.arange(len(last)), last][:, None]
        logits = nn.output.logits[:, 0].save()
    return values, logits


def _visit(block, edits: dict[str, list[Edit]], read: str | None):
    """Edit the sites of a block as the forward pass reaches them, and get the value at one of them."""
    value = entered = None
    if "resid_pre" in edits:
        block.input = _edited(block.input, edits["resid_pre"])
    if read == "resid_pre" or "resid_mid" in edits:
        value = entered = block.input
    if "attn_out" in edits or "resid_mid" in edits:
        out = block.attn_add.output
        added = value = _edited(first(out), edits.get("attn_out", ()))
        if "resid_mid" in edits:
            # no module's output: what attention adds is set to what makes the sum right
            added = _edited(entered + added, edits["resid_mid"]) - entered
        block.attn_add.output = with_first(out, added)
    elif read == "attn_out":
        value = get(block, "attn_out")
    if read == "resid_mid":
        value = get(block, "resid_mid")
    if "mlp_out" in edits:
        change(block, "mlp_out", lambda hidden: _edited(hidden, edits["mlp_out"]))
    if read == "mlp_out":
        value = get(block, "mlp_out")
    if "resid_post" in edits:
        change(block, "resid_post", lambda hidden: _edited(hidden, edits["resid_post"]))
    if read == "resid_post":
        value = get(block, "resid_post")
    return entered if read == "resid_pre" else value


def _edited(hidden, edits: Sequence[Edit]):
    for edit in edits:
        cells = hidden[edit.rows, edit.columns]
        new = edit.values
        if edit.mode != "replace":
            new = steered(cells, edit.values.to(cells), edit.mode, edit.coefficient)
        hidden = replaced(hidden, edit.rows, edit.columns, new)
    return hidden
