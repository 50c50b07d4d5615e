"""The patch grid as the reference code computes it: one whole forward pass per cell.

Slow and simple on purpose: `tracers.engines.patching.patch_grid` is compared with it, in the tests and, on a sample of
cells, during every run.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import nnsight
import torch

from posttrace.tracers import sites
from posttrace.tracers.batching.memory import batches, tokens_that_fit
from posttrace.tracers.engines.activations import answer_logits, difference
from posttrace.tracers.engines.edits import Edit, apply_edits
from posttrace.tracers.engines.patching import PatchGrid, Place, places
from posttrace.tracers.oracles.compare import CHECKED, compared, sample, tolerance
from posttrace.tracers.prompts import Prompt


def patch_grid_naive(
    model,
    prompts: Sequence[Prompt],
    source: torch.Tensor,
    *,
    site: str,
    layers: Sequence[int],
    answers: tuple[int, int],
) -> PatchGrid:
    """As `tracers.engines.patching.patch_grid`: no cache, no batch, no skipped block.

    Examples
    --------
    >>> patch_grid_naive(model, prompts, source, site="mlp_out", layers=[4], answers=(287, 288))  # doctest: +SKIP
    """
    patched = torch.full(source.shape[:4], torch.nan)
    for s in range(source.shape[0]):
        for b, prompt in enumerate(prompts):
            for i, place in enumerate(places(model.config, site, layers)):
                for token in range(len(prompt.statement)):
                    edit = patch(prompt, token, source[s, b, i, token], site, place)
                    (patched[s, b, i, token],) = naive_rows(model, [prompt], [edit], answers)
    return PatchGrid(patched=patched, unpatched=torch.stack([naive_run(model, p, answers) for p in prompts]))


def naive_run(model, prompt: Prompt, answers: tuple[int, int]) -> torch.Tensor:
    """Logit difference of one prompt (float32 scalar, nats), without a patch."""
    return _logit_diffs(model, [prompt], [], answers)[0]


def naive_cell(
    model, prompt: Prompt, token: int, value: torch.Tensor, *, site: str, layer: int, answers, head: int = 0
) -> torch.Tensor:
    """Logit difference of one prompt (float32 scalar, nats), one statement token patched by `value` (dims hidden)."""
    return naive_rows(model, [prompt], [patch(prompt, token, value, site, Place(layer, head))], answers)[0]


def patch(prompt: Prompt, token: int, value: torch.Tensor, site: str, place: Place) -> Edit:
    """Return the edit that puts `value` (dims hidden, or head size) in at one statement token of a prompt."""
    return Edit(
        site=site,
        layers=(place.layer,),
        mode="replace",
        values=value[None],
        columns=[prompt.start + token],
        head=place.head,
    )


def naive_rows(
    model, prompts: Sequence[Prompt], edits: Sequence[Edit], answers: tuple[int, int]
) -> torch.Tensor:
    """Logit differences (float32, nats) of prompts of one length, each with its own edit, in one pass; dims prompt.

    An ordinary batch of whole prompts: no cache, no padding, no mask, no block skipped.

    Examples
    --------
    >>> naive_rows(model, [prompt], [patch(prompt, 3, value, "z", Place(0, 2))], answers)   # doctest: +SKIP
    """
    return _logit_diffs(model, prompts, [replace(edit, rows=row) for row, edit in enumerate(edits)], answers)


def _logit_diffs(model, prompts, edits, answers) -> torch.Tensor:
    with torch.no_grad():
        return difference(_trace_edited(model.nn, torch.tensor([p.ids for p in prompts]), edits, answers))


def check_sample(
    model,
    prompts: Sequence[Prompt],
    source: torch.Tensor,
    grid: PatchGrid,
    *,
    share: float,
    at_most: int = CHECKED,
    rng: random.Random,
    site: str,
    layers: Sequence[int],
    answers: tuple[int, int],
) -> tuple[int, float]:
    """Compute some of a grid's cells the naive way, drawn at random: how many, and the largest difference.

    Parameters
    ----------
    share
        Of all cells, at least one and not more than `at_most`.

    Raises
    ------
    TracerError
        If a cell differs by more than rounding: 1e-4 of the grid's largest value in float32, 5 % of it in 16 bits,
        where sums are rounded to three digits and other batches add in another order. Cells of prompts of equal
        length share a pass (see `naive_rows`).

    Examples
    --------
    >>> check_sample(model, prompts, source, grid, share=0.01, rng=random.Random(0), **options)  # doctest: +SKIP
    (19, 2.4e-06)
    """
    where = places(model.config, site, layers)
    cells = [
        (s, b, i, token)
        for s in range(source.shape[0])
        for b, prompt in enumerate(prompts)
        for i in range(len(where))
        for token in range(len(prompt.statement))
    ]
    chosen = sample(cells, share, rng, at_most)
    allowed = tolerance(model.dtype) * float(grid.patched.nan_to_num().abs().max().clamp(min=1))
    largest = 0.0
    lengths = [len(prompts[b].ids) for _, b, _, _ in chosen]
    for rows in batches(lengths, tokens_that_fit(model), one_length=True):
        some = [chosen[row] for row in rows]
        edits = [patch(prompts[b], token, source[s, b, i, token], site, where[i]) for s, b, i, token in some]
        values = naive_rows(model, [prompts[b] for _, b, _, _ in some], edits, answers)
        for (s, b, i, token), naive in zip(some, values.tolist(), strict=True):
            head = f", head {where[i].head}" if sites.is_per_head(site) else ""
            cell = f"{site}, layer {where[i].layer}{head}, token {token}"
            what = f"model {model.name}: {cell} of {prompts[b].text[-60:]!r}"
            largest = max(largest, compared(float(grid.patched[s, b, i, token]), naive, allowed, what))
    return len(chosen), largest


def _trace_edited(nn, ids, edits, answers):
    with nn.trace(input_ids=ids, use_cache=False, logits_to_keep=1):
        apply_edits(nn, edits)
        logits = nnsight.save(answer_logits(nn, slice(None), -1, answers))
    return logits
