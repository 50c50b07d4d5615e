"""The patch grid: put one activation of another run into a run, at every (layer, token), and read the answer.

`patch_grid` gives what `tracers.oracles.patching.patch_grid_naive` gives, for a fraction of the arithmetic:

1. the prefix is run once per distinct prefix, and its keys and values are used by every cell;
2. the blocks up to the patched one are skipped: the run's own stream, patched, is put in their place;
3. tokens before the patched one are not run: the unpatched run's keys and values stand in for them;
4. the cells of a layer, over tokens, prompts and sources, go through the model together (tracers.batching.packing);
5. in the last block the MLP sees the last token only, and of the unembedding only the two answers' rows are used;
6. a cell that cannot change the answer is not run: tokens at which source and target run are identical,
   and patches after the last attention at any token but the last.

Of these only 6 holds for an architecture whose runs are whole passes (see tracers.models.architecture); there a cell
is one row of a batch of whole prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import nnsight
import torch

from posttrace.tracers import sites
from posttrace.tracers.batching.memory import MAX_TOKENS, batches, in_halves, tokens_that_fit
from posttrace.tracers.batching.packing import Packed, pack, packed_in_halves
from posttrace.tracers.batching.prefix_cache import StatementBatch, whole_rows
from posttrace.tracers.engines.activations import answer_logits, difference, run_statements
from posttrace.tracers.engines.edits import Edit, apply_edits, check_layers, edited
from posttrace.tracers.errors import TracerError
from posttrace.tracers.models.architecture import site_shape
from posttrace.tracers.prompts import Prompt


@dataclass(frozen=True)
class PatchGrid:
    """Logit differences (float32, nats) after patching, and without."""

    patched: torch.Tensor
    """dims source x prompt x layer x token, as the source's; NaN after the end of a shorter statement."""
    unpatched: torch.Tensor
    """dims prompt"""


def patch_grid(
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
    """Patch each cell (layer, statement token) of each prompt by the source's activation there.

    Parameters
    ----------
    prompts
        The runs that are patched (the corrupt ones).
    source
        Activations to put in, dims source x prompt x layer x token x hidden, the layer axis as `places` gives it;
        several sources at once share the work.
    unchanged
        Per source and prompt, how many leading statement tokens have the target's own activations (the same model on
        the same tokens); those cells are the unpatched run.
    max_tokens
        Tokens in one forward pass, by default `tokens_that_fit`, halved when memory runs out; the result does not
        depend on it beyond rounding. Source of the method: Meng et al. 2022; Du et al. 2025, section 3.

    Raises
    ------
    TracerError
        If the shapes do not fit.

    Examples
    --------
    >>> patch_grid(model, prompts, source, site="resid_post", layers=range(8), answers=(287, 288))  # doctest: +SKIP
    """
    check_source(model, prompts, source, site, layers)
    source = source.to(model.device)
    if model.architecture.whole:
        return _whole_grid(model, prompts, source, unchanged, site, layers, answers, max_tokens)
    batch = StatementBatch(model, prompts)
    streams, unpatched = run_statements(batch, "resid_post", range(model.n_layers), answers, keep=True)
    patched = _unpatched_grid(unpatched, source, batch.lengths)
    max_tokens = max_tokens or tokens_that_fit(model)
    where = places(model.config, site, layers)
    plan = grid_plan(
        batch.lengths,
        unchanged,
        n_sources=source.shape[0],
        site=site,
        layers=[place.layer for place in where],
        n_layers=model.n_layers,
        max_tokens=max_tokens,
    )
    grid = _Grid(batch, streams, source, site, where, answers, patched)
    with torch.no_grad():
        for packed, which in plan:
            packed_in_halves(partial(_patch_packed, grid, which), packed, batch.lengths)
    return PatchGrid(patched=patched, unpatched=unpatched)


@dataclass(frozen=True)
class Place:
    """Where in the blocks a grid patches."""

    layer: int
    head: int = 0
    """0 at a site that is not per head."""


@dataclass(frozen=True)
class _Grid:
    """What all cells of a grid have in common."""

    batch: StatementBatch
    streams: list[torch.Tensor]
    """The unpatched run's stream after every block."""
    source: torch.Tensor
    site: str
    places: list[Place]
    answers: tuple[int, int]
    patched: torch.Tensor
    """The result, filled in as cells are run."""


def places(config, site: str, layers: Sequence[int]) -> list[Place]:
    """Return what the layer axis of a grid runs over: heads within layers, one head 0 except at `z`.

    Examples
    --------
    >>> places(model.config, "resid_post", [3, 4])                    # doctest: +SKIP
    [Place(layer=3, head=0), Place(layer=4, head=0)]
    """
    return [Place(layer, head) for layer in layers for head in range(site_shape(config, site)[0])]


def check_source(
    model, prompts: Sequence[Prompt], source: torch.Tensor, site: str, layers: Sequence[int]
) -> None:
    """Check that activations fit the prompts, the site and the layers that they are to be patched into.

    Parameters
    ----------
    source
        Dims source x prompt x layer x token x hidden; its token axis may be longer than the statements.

    Raises
    ------
    TracerError
        Naming what does not fit.

    Examples
    --------
    >>> check_source(model, prompts, source, "resid_post", range(8))   # doctest: +SKIP
    """
    heads, width = site_shape(model.config, site)
    expected = (len(prompts), len(layers) * heads, max(len(p.statement) for p in prompts), width)
    given = tuple(source.shape[1:])
    if source.dim() != 5 or given[:2] != expected[:2] or given[2] < expected[2] or given[3] != expected[3]:
        raise TracerError(
            f"source activations: dims {given} (prompt, layer, token, hidden) do not fit the target's {expected}; "
            "a pair must have equal token lengths and both models equal sizes"
        )
    check_layers(model, layers)
    if site not in model.architecture.patchable:
        raise TracerError(
            f"model {model.name}: site {site} is none of this architecture's; choose one of "
            f"{', '.join(model.architecture.patchable)}"
        )


def grid_plan(
    lengths: Sequence[int],
    unchanged: Sequence[Sequence[int]] | None,
    *,
    n_sources: int,
    site: str,
    layers: Sequence[int],
    n_layers: int,
    max_tokens: int = MAX_TOKENS,
) -> list[tuple[Packed, list[int]]]:
    """Plan a grid: packed segments, and the places (as indices into `layers`) for which they are run.

    Parameters
    ----------
    lengths
        Statement tokens of each prompt.
    layers
        That of each place (see `places`). The cells after the last attention matter at the last token only.

    Examples
    --------
    >>> plan = grid_plan([3], None, n_sources=1, site="resid_post", layers=range(4), n_layers=4)
    >>> [(len(packed.cells), which) for packed, which in plan]
    [(3, [0, 1, 2]), (1, [3])]
    """
    wanted = _wanted_cells(lengths, unchanged, n_sources, site, layers, n_layers)
    return [(packed, which) for cells, which in wanted for packed in pack(cells, lengths, max_tokens)]


def whole_plan(
    lengths: Sequence[int],
    sizes: Sequence[int],
    unchanged: Sequence[Sequence[int]] | None,
    n_sources: int,
    site: str,
    layers: Sequence[int],
    n_layers: int,
    max_tokens: int = MAX_TOKENS,
) -> list[list[tuple[int, int, int, int]]]:
    """Plan a grid of whole passes: batches of (place, source, prompt, token), a row of a whole prompt each.

    Parameters
    ----------
    sizes
        Tokens of each whole prompt, which bound a batch. The other arguments are those of `grid_plan`.

    Examples
    --------
    >>> [len(batch) for batch in whole_plan([3], [9], None, 1, "resid_post", range(4), 4, max_tokens=45)]
    [5, 5]
    """
    wanted = _wanted_cells(lengths, unchanged, n_sources, site, layers, n_layers)
    rows = [(i, *cell) for cells, which in wanted for i in which for cell in cells]
    return [[rows[i] for i in some] for some in batches([sizes[row[2]] for row in rows], max_tokens)]


def _wanted_cells(lengths, unchanged, n_sources, site, layers, n_layers):
    """(cells (source, prompt, token), places that they are patched at), without those that change nothing."""
    cells = [
        (s, prompt, token)
        for s in range(n_sources)
        for prompt, length in enumerate(lengths)
        for token in range(unchanged[s][prompt] if unchanged else 0, length)
    ]
    at_the_end = [cell for cell in cells if cell[2] == lengths[cell[1]] - 1]
    past = sites.is_past_attention(site)
    after_attention = [i for i, layer in enumerate(layers) if past and layer == n_layers - 1]
    before = [i for i in range(len(layers)) if i not in after_attention]
    return [
        (some, which) for some, which in [(cells, before), (at_the_end, after_attention)] if some and which
    ]


def _whole_grid(model, prompts, source, unchanged, site, layers, answers, max_tokens) -> PatchGrid:
    """Return the grid by whole forward passes, a row for each cell: where nothing of a run can be used by another."""
    where, lengths = places(model.config, site, layers), [len(p.statement) for p in prompts]
    rows = whole_rows(model, prompts)
    with torch.no_grad():
        logits = trace_cells(model.nn, rows.inputs, [], rows.row, rows.last, answers, answer_logits)
    unpatched = difference(logits)
    patched = _unpatched_grid(unpatched, source, lengths)
    plan = whole_plan(
        lengths,
        [len(p.ids) for p in prompts],
        unchanged,
        source.shape[0],
        site,
        [place.layer for place in where],
        model.n_layers,
        max_tokens or tokens_that_fit(model),
    )

    def some(cells):
        i, s, prompt, token = torch.tensor(cells).T
        here = whole_rows(model, [prompts[p] for p in prompt.tolist()])
        values, columns = source[s, prompt, i, token], here.first.cpu() + token
        edits = []
        for layer in sorted({where[place].layer for place in i.tolist()}):
            cell = [n for n, place in enumerate(i.tolist()) if where[place].layer == layer]
            heads = torch.tensor([where[place].head for place in i[cell].tolist()])
            edits.append(
                Edit(
                    site=site,
                    layers=(layer,),
                    mode="replace",
                    values=values[cell],
                    rows=torch.tensor(cell),
                    columns=columns[cell],
                    head=heads,
                )
            )
        with torch.no_grad():
            logits = trace_cells(model.nn, here.inputs, edits, here.row, here.last, answers, answer_logits)
        return (s, prompt, i, token), difference(logits)

    for batch in plan:
        for _, (cells, differences) in in_halves(some, batch):
            patched[cells] = differences
    return PatchGrid(patched=patched, unpatched=unpatched)


def _unpatched_grid(unpatched, source, lengths: Sequence[int]) -> torch.Tensor:
    """Return the grid before any cell is run: every cell as the unpatched run, NaN past the prompts' ends."""
    grid = unpatched[None, :, None, None].repeat(source.shape[0], 1, *source.shape[2:4])
    for prompt, length in enumerate(lengths):
        grid[:, prompt, :, length:] = torch.nan
    return grid


def first_block(layer: int, site: str) -> int:
    """Return the first block that a patch needs to run: the next one if it patches what leaves a block."""
    return layer + 1 if site == "resid_post" else layer


def _patch_packed(grid: _Grid, which: list[int], packed: Packed) -> None:
    """Fill in packed cells at the places with the indices `which`."""
    nn, n_layers = grid.batch.model.nn, grid.batch.model.n_layers
    rows = grid.batch.on_run(packed)
    here = rows.packed
    s, prompt, token = here.cells.T
    found = []
    for i in which:
        place = grid.places[i]
        edit = Edit(
            site=grid.site,
            layers=(place.layer,),
            mode="replace",
            values=grid.source[s, prompt, i, token],
            rows=here.row,
            columns=here.first,
            head=place.head,
        )
        start = first_block(place.layer, grid.site)
        stream, edits = None, [edit]
        if start:
            stream = sites.at(grid.streams[start - 1], here.prompt[:, None], here.token.clamp(min=0))
        if grid.site == "resid_post":
            stream, edits = edited(stream, edits), []
        shortened = n_layers - 1 if start < n_layers and place.layer != n_layers - 1 else None
        inputs, skipped = rows.inputs(start), dict(start=start, stream=stream, shortened=shortened)
        found.append(
            trace_cells(nn, inputs, edits, here.row, here.last, grid.answers, answer_logits, **skipped)
        )
    # Copied to the CPU at the end only: a GPU goes on with one place while the next is prepared.
    s, prompt, token = packed.cells.T
    for i, differences in zip(which, difference(torch.stack(found)), strict=True):
        grid.patched[s, prompt, i, token] = differences


def trace_cells(nn, inputs, edits, row, last, answers, read, *, start=0, stream=None, shortened=None):
    """Trace the cells: what `read` (answer_logits, or another reading of the answers) gives at their last slots.

    Blocks before `start` are skipped, `stream` in their place; in the block `shortened`, if there is one, the MLP sees
    the last slots only.
    """
    with nn.trace(**inputs):
        for skipped in range(start):
            sites.skip(nn.layers[skipped], stream)
        apply_edits(nn, edits)
        if shortened is not None:
            sites.run_mlp_at(nn.layers[shortened], row, last)
        found = nnsight.save(read(nn, row, last, answers))
    return found
