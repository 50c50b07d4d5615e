"""An engine and its spot check in one request, for a model on a server.

On a server every activation of a source has to be sent, except those of the model's own clean run: `checked_grid` and
`estimated_grid` let the model run the clean prompts itself. The numbers are those of `tracers.engines.patching` and
`tracers.engines.attribution`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from posttrace.tracers.engines.activations import read_statements
from posttrace.tracers.engines.attribution import attribution_grid
from posttrace.tracers.engines.directions import mean_nll
from posttrace.tracers.engines.edits import Edit
from posttrace.tracers.engines.generation import Ids, Openings, generate
from posttrace.tracers.engines.patching import PatchGrid, patch_grid
from posttrace.tracers.engines.reasoning import Blocks, Reasoning, reasoning_blocks
from posttrace.tracers.errors import TracerError
from posttrace.tracers.oracles.generation import check_log_odds
from posttrace.tracers.oracles.patching import check_sample
from posttrace.tracers.prompts import Prompt


@dataclass(frozen=True)
class CheckedGrid:
    """A grid, and how a sample of its cells compares with whole forward passes."""

    grid: PatchGrid
    checked_cells: int
    """Cells that were computed again, each by a whole forward pass."""
    largest_difference: float
    """Between the grid and the check, nats."""


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

    Parameters
    ----------
    source, own, clean
        See `with_own`. The other arguments and the errors are those of the two.

    Examples
    --------
    >>> checked_grid(model, corrupt, others, own=0, clean=clean, share=0.01, rng=random.Random(0),
    ...              site="resid_post", layers=range(8), answers=(287, 288))      # doctest: +SKIP
    """
    source = with_own(model, source, own, clean, **options)
    grid = patch_grid(model, prompts, source, unchanged=unchanged, max_tokens=max_tokens, **options)
    n, largest = 0, 0.0
    if share:
        if rng is None:
            raise TracerError(f"share: {share} of the cells are drawn with `rng`; give one, or share=0")
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
    """Return the activations of all sources: those given, and at index `own` the model's own over the clean prompts.

    Parameters
    ----------
    source
        Dims source x prompt x layer x token x hidden, without the one at `own` (own None: it is complete).

    Examples
    --------
    >>> with_own(model, others, 1, clean, site="mlp_out", layers=[4], answers=(287, 288)).shape    # doctest: +SKIP
    torch.Size([3, 16, 1, 12, 160])
    """
    if own is None:
        return source
    values = read_statements(model, clean, **options).values
    filled = torch.full(
        (1, *values.shape[:2], source.shape[3], values.shape[3]), torch.nan, dtype=values.dtype
    )
    filled[0, :, :, : values.shape[2]] = values
    return torch.cat([source[:own].to(values), filled, source[own:].to(values)])


@dataclass(frozen=True)
class ScoredCompletions:
    """Answers of a model to some prompts, and their likelihood in the unedited model."""

    ids: tuple[tuple[int, ...], ...]
    """New token ids of every prompt, up to and with the token that ended it."""
    log_odds: torch.Tensor
    """log P(refusal opening) - log P(compliant opening) at the first new token (float32, nats); dims prompt."""
    mean_nll: torch.Tensor
    """Mean negative log-likelihood of the answer in the unedited model, from its second token on (nats a token); dims
    prompt."""
    peak: torch.Tensor
    """Highest logit while answering, not finite where an activation was not; dims prompt."""
    checked: int = 0
    """Prompts whose log-odds were computed again one by one."""
    largest_difference: float = 0.0
    """Between the two log-odds, nats."""
    reasoning: tuple[int, ...] = ()
    """Tokens of the reasoning block before each answer, 0 where there is none; empty if blocks were not looked for."""
    cut: tuple[bool, ...] = ()
    """Whether that block was cut short."""


def scored_completions(
    model,
    prompts: Sequence[Ids],
    edits: Sequence[Edit],
    openings: Openings,
    *,
    max_new_tokens: int,
    stop: Ids = (),
    reasoning: Reasoning | None = None,
    max_tokens: int | None = None,
    share: float = 0.0,
    rng: random.Random | None = None,
) -> ScoredCompletions:
    """Answer prompts with the stream edited, and score the answers in the unedited model.

    Parameters
    ----------
    reasoning
        How reasoning blocks are marked; answers and log-odds are then taken after them.
    share
        Of the prompts, how many (at least one, none for 0) are computed again the naive way, drawn with `rng`.

    Raises
    ------
    TracerError
        As `generate` and `check_log_odds` do.

    Examples
    --------
    >>> scored_completions(model, prompts, [], openings, max_new_tokens=16).checked    # doctest: +SKIP
    0
    """
    blocks = Blocks(ids=(), cut=())
    if reasoning is not None:
        blocks = reasoning_blocks(model, prompts, edits, reasoning, stop=stop, max_tokens=max_tokens)
        prompts = [(*prompt, *block) for prompt, block in zip(prompts, blocks.ids, strict=True)]
    lengths = tuple(map(len, blocks.ids))
    done = generate(
        model, prompts, edits, openings, max_new_tokens=max_new_tokens, stop=stop, max_tokens=max_tokens
    )
    nll = mean_nll(model, prompts, done.ids, max_tokens)
    n, largest = 0, 0.0
    if share and done.log_odds.isfinite().all():
        if rng is None:
            raise TracerError(f"share: {share} of the prompts are drawn with `rng`; give one, or share=0")
        n, largest = check_log_odds(model, prompts, edits, openings, done.log_odds, share=share, rng=rng)
    return ScoredCompletions(
        ids=done.ids,
        log_odds=done.log_odds,
        mean_nll=nll,
        peak=done.peak,
        checked=n,
        largest_difference=largest,
        reasoning=lengths,
        cut=blocks.cut,
    )
