"""Grids of a batch in one call, the model's own clean run included, for a model that is elsewhere.

To a server every activation of a source would have to be sent. Those of the model's own clean run need not be: it
can run the clean prompts itself. What is computed is what `tracers.patching` and `tracers.attribution` compute.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from posttrace.tracers.alignment import Prompt
from posttrace.tracers.attribution import attribution_grid
from posttrace.tracers.oracle import check_sample
from posttrace.tracers.patching import PatchGrid, patch_grid
from posttrace.tracers.reading import read_statements


@dataclass(frozen=True)
class CheckedGrid:
    """A grid, and what a sample of whole forward passes said of it."""

    grid: PatchGrid
    checked_cells: int
    """Cells that were computed again by a whole forward pass each."""
    largest_difference: float
    """Between the two, nats."""


def checked_grid(
    model,
    prompts: Sequence[Prompt],
    source: torch.Tensor,
    *,
    own: int | None = None,
    clean: Sequence[Prompt] = (),
    share: float = 0.0,
    rng: random.Random | None = None,
    max_tokens: int | None = None,
    unchanged: Sequence[Sequence[int]] | None = None,
    **options,
) -> CheckedGrid:
    """`patch_grid`, then `check_sample` on a share of its cells (none for 0).

    >>> checked_grid(model, corrupt, others, own=0, clean=clean, share=0.01, rng=random.Random(0),
    ...              site="resid_post", layers=range(8), answers=(287, 288))      # doctest: +SKIP

    source, own, clean: see `with_own`. The other arguments and the errors are those of the two.
    """
    source = with_own(model, source, own, clean, **options)
    grid = patch_grid(model, prompts, source, unchanged=unchanged, max_tokens=max_tokens, **options)
    n, largest = 0, 0.0
    if share:
        n, largest = check_sample(model, prompts, source, grid, share=share, rng=rng, **options)
    return CheckedGrid(grid=grid, checked_cells=n, largest_difference=largest)


def estimated_grid(
    model,
    prompts: Sequence[Prompt],
    source: torch.Tensor,
    *,
    own: int | None = None,
    clean: Sequence[Prompt] = (),
    max_tokens: int | None = None,
    unchanged: Sequence[Sequence[int]] | None = None,
    **options,
) -> PatchGrid:
    """`attribution_grid` with sources as `checked_grid` takes them."""
    source = with_own(model, source, own, clean, **options)
    return attribution_grid(model, prompts, source, unchanged=unchanged, max_tokens=max_tokens, **options)


def with_own(
    model, source: torch.Tensor, own: int | None, clean: Sequence[Prompt], **options
) -> torch.Tensor:
    """The activations of all sources: those given, and at index `own` the model's own over the clean prompts.

    >>> with_own(model, others, 1, clean, site="mlp_out", layers=[4], answers=(287, 288)).shape    # doctest: +SKIP
    torch.Size([3, 16, 1, 12, 160])

    source: dims source x prompt x layer x token x hidden, without the one at `own` (own None: it is complete).
    """
    if own is None:
        return source
    values = read_statements(model, clean, **options).values
    padded = torch.full(
        (1, *values.shape[:2], source.shape[3], values.shape[3]), torch.nan, dtype=values.dtype
    )
    padded[0, :, :, : values.shape[2]] = values
    return torch.cat([source[:own].to(values), padded, source[own:].to(values)])
