"""The patch grid: put one activation of another run into a run, at every (layer, token), and read the answer.

`patch_grid` gives what `tracers.oracle.patch_grid_naive` gives, for a fraction of the arithmetic:

1. the prefix is run once per distinct prefix, and its keys and values are used by every cell;
2. the blocks up to the patched one are skipped: the run's own stream, patched, is put in their place;
3. tokens before the patched one are not run: the unpatched run's keys and values stand in for them;
4. the cells of a layer go through the model together, packed (tracers.packing), over tokens, prompts and sources;
5. in the last block the MLP sees the last token only, and of the unembedding only the two answers' rows are used;
6. a cell that cannot change the answer is not run: tokens at which source and target run are one and the same,
   and patches behind the last attention at any token but the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nnsight
import torch

from posttrace.tracers import sites
from posttrace.tracers.alignment import Prompt
from posttrace.tracers.architecture import site_shape
from posttrace.tracers.batch import Statements
from posttrace.tracers.errors import TracerError
from posttrace.tracers.packing import Packed, pack
from posttrace.tracers.reading import answer_logits, difference, run_statements

MAX_TOKENS = 4096
"""Tokens that go through a model on a CPU at once: more make its caches overflow, fewer leave its cores idle."""


@dataclass(frozen=True)
class PatchGrid:
    """Logit differences (float32, nats) after patching, and without."""

    patched: torch.Tensor
    """dims source x prompt x layer x token, as the source's; NaN behind the end of a shorter statement."""
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

    >>> patch_grid(model, prompts, source, site="resid_post", layers=range(8), answers=(287, 288))  # doctest: +SKIP

    prompts: the runs that are patched (the corrupt ones). source: activations to put in, dims source x prompt x
    layer x token x hidden, the layer axis as `places` gives it; several sources at once share the work.
    unchanged: per source and prompt, how many leading statement tokens have the target's own activations (the
    same model on the same tokens); those cells are the unpatched run. max_tokens: tokens in one forward pass,
    by default `tokens_that_fit`, halved when memory runs out; the result does not depend on it beyond rounding.
    Source of the method: Meng et al. 2022; Du et al. 2025, section 3. Raises TracerError when the shapes do not
    fit.
    """
    check_source(model, prompts, source, site, layers)
    source = source.to(model.device)
    statements = Statements(model, prompts)
    streams, unpatched = run_statements(statements, "resid_post", range(model.n_layers), answers, keep=True)
    patched = unpatched[None, :, None, None].repeat(source.shape[0], 1, *source.shape[2:4])
    for prompt, length in enumerate(statements.lengths):
        patched[:, prompt, :, length:] = torch.nan
    max_tokens = max_tokens or tokens_that_fit(model)
    where = places(model.config, site, layers)
    plan = grid_plan(
        *(statements.lengths, unchanged, source.shape[0], site, [layer for layer, _ in where]),
        *(model.n_layers, max_tokens),
    )
    with torch.no_grad():
        for packed, which in plan:
            _patch_cells(statements, streams, source, packed, which, site, where, answers, patched)
    return PatchGrid(patched=patched, unpatched=unpatched)


def places(config, site: str, layers: Sequence[int]) -> list[tuple[int, int]]:
    """What the layer axis of a grid runs over: (layer, head), heads within layers; one head 0 but at `head_out`.

    >>> places(model.config, "resid_post", [3, 4])                    # doctest: +SKIP
    [(3, 0), (4, 0)]
    """
    return [(layer, head) for layer in layers for head in range(site_shape(config, site)[0])]


def check_source(
    model, prompts: Sequence[Prompt], source: torch.Tensor, site: str, layers: Sequence[int]
) -> None:
    """Check that activations fit the prompts, the site and the layers that they are to be patched into.

    >>> check_source(model, prompts, source, "resid_post", range(8))   # doctest: +SKIP

    source: dims source x prompt x layer x token x hidden; its token axis may be longer than the statements.
    Raises TracerError naming what does not fit.
    """
    heads, width = site_shape(model.config, site)
    expected = (len(prompts), len(layers) * heads, max(len(p.statement) for p in prompts), width)
    given = tuple(source.shape[1:])
    if source.dim() != 5 or given[:2] != expected[:2] or given[2] < expected[2] or given[3] != expected[3]:
        raise TracerError(
            f"source activations: dims {given} (prompt, layer, token, hidden) do not fit the target's {expected}; "
            "a pair must have equal token lengths and both models equal sizes"
        )
    if list(layers) != sorted(set(layers)) or not set(layers) <= set(range(model.n_layers)):
        raise TracerError(
            f"layers: {list(layers)} are not numbers from 0 to {model.n_layers - 1} in increasing order, each once"
        )
    if site not in model.architecture.patchable:
        raise TracerError(
            f"model {model.name}: site {site} is none of this architecture's; choose one of "
            f"{', '.join(model.architecture.patchable)}"
        )


def grid_plan(
    lengths: Sequence[int],
    unchanged: Sequence[Sequence[int]] | None,
    n_sources: int,
    site: str,
    layers: Sequence[int],
    n_layers: int,
    max_tokens: int = MAX_TOKENS,
) -> list[tuple[Packed, list[int]]]:
    """What a grid runs: packed segments, and the places (as indices into `layers`) for which they are run.

    >>> [(len(p.cells), which) for p, which in grid_plan([3], None, 1, "resid_post", range(4), 4)]
    [(3, [0, 1, 2]), (1, [3])]

    lengths: statement tokens of each prompt. layers: that of each place (see `places`). The cells behind the
    last attention matter at the last token only.
    """
    cells = [
        (s, prompt, token)
        for s in range(n_sources)
        for prompt, length in enumerate(lengths)
        for token in range(unchanged[s][prompt] if unchanged else 0, length)
    ]
    at_the_end = [cell for cell in cells if cell[2] == lengths[cell[1]] - 1]
    behind_attention = [i for i, layer in enumerate(layers) if layer == n_layers - 1 and site != "resid_pre"]
    before = [i for i in range(len(layers)) if i not in behind_attention]
    return [
        (packed, which)
        for some, which in [(cells, before), (at_the_end, behind_attention)]
        if some and which
        for packed in pack(some, lengths, max_tokens)
    ]


def tokens_that_fit(model) -> int:
    """Tokens in one forward pass: `MAX_TOKENS` on a CPU; on a GPU what half of its free memory takes, 1k to 64k.

    >>> tokens_that_fit(model)                                        # doctest: +SKIP
    4096

    A token needs room for a block's working values and, in every block, for the keys and values of about four
    tokens: its row's share of the prefix and its own, and both again while the model puts them together.
    """
    if model.device.type != "cuda":
        return MAX_TOKENS
    config = model.config
    working = 12 * model.hidden_size + 4 * getattr(config, "intermediate_size", 4 * model.hidden_size)
    head = getattr(config, "head_dim", None) or model.hidden_size // config.num_attention_heads
    keys = head * (getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    needed = model.dtype.itemsize * (working + 4 * 2 * model.n_layers * keys)
    return max(1024, min(65536, free_memory(model) // 2 // needed))


def free_memory(model) -> int:
    """Bytes that the fullest of a model's GPUs still has, what PyTorch holds without using it included.

    >>> free_memory(model) // 2**30                                   # doctest: +SKIP
    57
    """
    devices = {parameter.device for parameter in model.nn._module.parameters() if parameter.is_cuda}
    return min(
        torch.cuda.mem_get_info(device)[0]
        + torch.cuda.memory_reserved(device)
        - torch.cuda.memory_allocated(device)
        for device in devices
    )


def first_block(layer: int, site: str) -> int:
    """The first block that a patch needs to run: of what leaves a block, the next one."""
    return layer + 1 if site == "resid_post" else layer


def _patch_cells(statements, streams, source, packed, which, site, where, answers, patched) -> None:
    """Fill `patched` for packed cells at the places with the indices `which`, in halves when memory runs out."""
    try:
        _patch_packed(statements, streams, source, packed, which, site, where, answers, patched)
        return
    except (MemoryError, RuntimeError) as error:
        if len(packed.prompt) == 1 or not out_of_memory(error):
            raise
    # Only here, where the error is gone, is the memory free that its traceback held.
    cells = [tuple(cell) for cell in packed.cells.tolist()]
    for half in pack(cells, statements.lengths, packed.token.numel() // 2):
        _patch_cells(statements, streams, source, half, which, site, where, answers, patched)


def _patch_packed(statements, streams, source, packed: Packed, which, site, where, answers, patched) -> None:
    nn, n_layers = statements.model.nn, statements.model.n_layers
    rows = statements.on_run(packed)
    here = rows.packed
    s, prompt, token = here.cells.T
    found = []
    for i in which:
        (layer, head), values = where[i], source[s, prompt, i, token]
        start = first_block(layer, site)
        stream = None
        if start:
            stream = sites.at(streams[start - 1], here.prompt[:, None], here.token.clamp(min=0))
        if site == "resid_post":
            stream = sites.replaced(stream, here.row, here.first, values)
        edit = None if site == "resid_post" else (layer, site, values, head)
        shortened = n_layers - 1 if start < n_layers and layer != n_layers - 1 else None
        inputs = rows.inputs(start)
        logits = _trace_cells(
            nn, inputs, start, stream, edit, here.row, here.first, here.last, shortened, answers
        )
        found.append(logits)
    # Asked for at the end only: a GPU goes on with one place while the next is prepared.
    s, prompt, token = packed.cells.T
    for i, differences in zip(which, difference(torch.stack(found)), strict=True):
        patched[s, prompt, i, token] = differences


def _trace_cells(nn, inputs, start, stream, edit, row, first, last, shortened, answers):
    with nn.trace(**inputs):
        for skipped in range(start):
            nn.layers[skipped].skip(stream)
        if edit is not None:
            layer, site, values, head = edit
            sites.put(nn.layers[layer], site, row, first, values, head)
        if shortened is not None:
            sites.run_mlp_at(nn.layers[shortened], row, last)
        logits = nnsight.save(answer_logits(nn, row, last, answers))
    return logits


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that the device's memory was not enough."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in str(error) for words in ("not enough memory", "can't allocate memory")
    )
