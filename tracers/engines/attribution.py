"""Attribution patching: a first-order *estimate* of every cell of the patch grid, for one backward pass.

The effect of a patch is approximated by the slope of the logit difference in the unpatched run, times the change of the
activation. Cost: the unpatched run and one backward pass for all cells of a prompt, where the exact grid
(tracers.engines.patching) runs a part of the model for each cell.

The estimate has known failures: large changes through a norm or a saturated softmax (the slope is
flat where the step is not), and paths whose effects cancel in the unpatched run but not in the patched one. Early
blocks, where activations of the two runs differ most, are worst. Compare a sample with the exact grid before relying on
it.

Source: Nanda 2023, "Attribution patching" (https://www.neelnanda.io/mechanistic-interpretability/attribution-patching);
Syed et al. 2023 (arXiv 2310.10348); failures: Kramár et al. 2024, "AtP*" (arXiv 2403.00745).
"""

from __future__ import annotations

from collections.abc import Sequence

import nnsight
import torch

from posttrace.tracers import sites
from posttrace.tracers.batching.memory import in_halves, tokens_that_fit
from posttrace.tracers.batching.prefix_cache import statement_rows
from posttrace.tracers.engines.activations import answer_logits, difference, has_weights
from posttrace.tracers.engines.patching import PatchGrid, check_source
from posttrace.tracers.errors import WholeJob
from posttrace.tracers.models.architecture import site_shape
from posttrace.tracers.prompts import Prompt


def attribution_grid(
    model,
    prompts: Sequence[Prompt],
    source: torch.Tensor,
    *,
    site: str,
    layers: Sequence[int],
    answers: tuple[int, int],
    unchanged: Sequence[Sequence[int]] | None = None,
    max_tokens: int | None = None,
) -> PatchGrid:
    """Estimate each cell of `tracers.engines.patching.patch_grid`: unpatched + (source - own activation) . slope.

    >>> attribution_grid(model, prompts, source, site="mlp_out", layers=range(8), answers=(287, 288))  # doctest: +SKIP

    Arguments, dims (source x prompt x layer x token), unit (nats) and the NaN padding are those of `patch_grid`;
    more sources cost no further pass. max_tokens: statement tokens in one forward and backward pass (their activations
    are kept for it), halved when memory runs out. The products are summed in float32 at least; in a 16-bit model the
    slopes themselves have 16 bits. Source of the method: Nanda 2023; Syed et al. 2023. Raises TracerError when the
    shapes do not fit, when `layers` are not in increasing order, for a site that the architecture lacks, and where
    gradients do not reach: on a server that keeps its weights from this key.
    """
    if not has_weights(model.nn.unembed):
        raise WholeJob(
            f"model {model.name}: method: attribution needs gradients, which this server gives to keys tagged "
            "`trusted` only; set method=exact, or ask for a key that is trusted"
        )
    lengths = [len(p.statement) for p in prompts]
    check_source(model, prompts, source, site, layers)
    effects = torch.full(source.shape[:4], torch.nan)
    unpatched = torch.empty(len(prompts))
    n = max(1, (max_tokens or tokens_that_fit(model)) // max(lengths))

    def some(rows):
        return _estimate(model, [prompts[r] for r in rows], source[:, rows], site, layers, answers)

    for begin in range(0, len(prompts), n):
        for rows, (changes, plain) in in_halves(some, list(range(begin, min(begin + n, len(prompts))))):
            unpatched[rows] = plain
            effects[:, rows, :, : changes.shape[3]] = changes
    for prompt, length in enumerate(lengths):
        for s, same in enumerate(unchanged or ()):
            # Two runs of the same tokens differ by rounding, which is no effect.
            effects[s, prompt, :, : same[prompt]] = 0
        effects[:, prompt, :, length:] = torch.nan
    return PatchGrid(patched=unpatched[None, :, None, None] + effects, unpatched=unpatched)


def _estimate(model, prompts, source, site, layers, answers) -> tuple[torch.Tensor, torch.Tensor]:
    """Estimated change (source x prompt x layer x token) and unpatched logit difference (prompt) of some prompts."""
    rows = statement_rows(model, prompts)
    with torch.enable_grad(), Frozen(model.nn._module):
        own, slopes, logits = _trace_slopes(model.nn, rows.inputs, site, layers, rows.row, rows.last, answers)
    if model.architecture.whole:
        width = max(len(p.statement) for p in prompts)
        columns = rows.first[:, None] + torch.arange(width, device=rows.first.device)
        columns = columns.clamp(max=own[0].shape[1] - 1)  # a shorter statement's end is not looked at
        own, slopes = ([sites.at(v, rows.row[:, None], columns) for v in some] for some in (own, slopes))
    heads, width = site_shape(model.config, site)
    changes = []
    for i, (value, slope) in enumerate(zip(own, slopes, strict=True)):
        wide = torch.promote_types(value.dtype, torch.float32)
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            change = source[:, :, i * heads + head, : value.shape[1]].to(value.device, wide)
            # Subtract before the product: the two dot products are large, and nearly equal.
            change = change - value[..., part].to(wide)
            changes.append((change * slope[..., part].to(wide)).sum(-1).float().cpu())
    return torch.stack(changes, dim=2), difference(logits)


def _trace_slopes(nn, inputs, site, layers, row, last, answers):
    """Activations at the site, their slopes (d logit difference / d activation; prompt x token x hidden), logits."""
    with nn.trace(**inputs):
        # Gradients begin here: nothing before the first wanted block is recorded.
        begin = nn.layers[layers[0]].input.detach().requires_grad_()
        nn.layers[layers[0]].input = begin
        values = [sites.get_on_path(nn.layers[layer], site) for layer in layers]
        logits = answer_logits(nn, row, last, answers)
        # Rows do not see each other, so one backward pass of the sum gives each prompt's own slopes.
        slopes = nnsight.save(torch.autograd.grad((logits[:, 0] - logits[:, 1]).sum(), values))
        values = nnsight.save([value.detach() for value in values])
        logits = nnsight.save(logits.detach())
    return values, slopes, logits


class Frozen:
    """No parameter takes a gradient in this context: otherwise every layer would keep its input for theirs."""

    def __init__(self, module):
        self.wanted = [parameter for parameter in module.parameters() if parameter.requires_grad]

    def __enter__(self) -> None:
        for parameter in self.wanted:
            parameter.requires_grad_(False)

    def __exit__(self, *_) -> None:
        for parameter in self.wanted:
            parameter.requires_grad_(True)
