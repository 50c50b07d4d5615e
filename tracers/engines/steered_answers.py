"""Steer the stream at a few tokens of a prompt along a direction, over a range of blocks, and read the answer.

`steered_answers` gives what `steered_answers_naive` gives, for a fraction of the arithmetic:

1. the prefix is run once per distinct prefix, the unsteered statement once per prompt;
2. tokens before the first steered one are not run again: the unsteered run's keys and values stand in for them;
3. blocks below the first steered one are skipped: the unsteered run's stream is put in their place;
4. the variants (directions, coefficients) of all prompts go through the model together;
5. in a last block that is not steered the MLP sees the last token only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import nnsight
import torch

from posttrace.tracers import sites
from posttrace.tracers.batching.memory import MAX_TOKENS, in_halves, tokens_that_fit
from posttrace.tracers.batching.packing import Packed, pack, packed_in_halves, whole
from posttrace.tracers.batching.prefix_cache import StatementBatch, whole_rows
from posttrace.tracers.cost import Cost, Shape
from posttrace.tracers.engines.activations import difference, logits_at
from posttrace.tracers.engines.edits import Edit, check_edits, edited
from posttrace.tracers.engines.patching import first_block, trace_cells
from posttrace.tracers.errors import TracerError
from posttrace.tracers.prompts import Prompt

KEYS_PER_TOKEN = 4
"""Cached keys that may be held at once, per token that may be run at once."""


def steered_answers(
    model,
    prompts: Sequence[Prompt],
    variants: Sequence[Sequence[Edit | None]],
    *,
    answers: tuple[int, int],
    max_tokens: int | None = None,
) -> torch.Tensor:
    """P(first answer) - P(second answer) at the last token of each prompt for each edit; dims prompt x variant.

    Parameters
    ----------
    variants
        Per prompt its edits, equally many, one for each run; columns are counted from the prompt's end, None leaves
        the run alone.
    answers
        Token ids; probabilities are of the whole vocabulary (float32).
    max_tokens
        Tokens in one forward pass, by default what fits, halved when memory runs out; the result does not depend on
        it beyond rounding.

    Raises
    ------
    TracerError
        An edit that does not fit.

    Examples
    --------
    >>> steered_answers(model, prompts, [[None, edit]] * len(prompts), answers=(287, 288))      # doctest: +SKIP
    """
    check_variants(model, prompts, variants)
    if model.architecture.whole:
        with torch.no_grad():
            return _whole_answers(model, prompts, variants, answers, max_tokens or tokens_that_fit(model))
    with torch.no_grad():
        batch = StatementBatch(model, prompts)
        cells = steered_cells(variants, batch.lengths)
        starts = sorted({first_block(layers[0], site) for site, layers in cells})
        streams, plain = _run_plain(batch, [start - 1 for start in starts if start], answers)
        result = plain[:, None].repeat(1, len(variants[0]))
        n_keys = batch.n_keys()
        for (site, layers), some in cells.items():
            run = partial(_run_packed, batch, streams, variants, site, layers, answers)
            for packed in steered_batches(some, batch.lengths, n_keys, max_tokens or tokens_that_fit(model)):
                for part, differences in packed_in_halves(run, packed, batch.lengths):
                    result[part.cells[:, 1], part.cells[:, 0]] = differences
    return result


def _whole_answers(model, prompts, variants, answers, max_tokens: int) -> torch.Tensor:
    """As `steered_answers` by whole forward passes, where nothing of a run can be used by another."""
    sizes = [len(prompt.ids) for prompt in prompts]
    result = torch.empty(len(prompts), len(variants[0]))
    kinds = {
        (None, ()): [(v, p, 0) for p, some in enumerate(variants) for v, edit in enumerate(some) if not edit]
    }
    for (site, layers), cells in steered_cells(variants, sizes).items():
        kinds[site, layers] = [(v, p, 0) for v, p, _ in cells]
    for (site, layers), cells in kinds.items():

        def some(cells, site=site, layers=layers):
            rows = whole_rows(model, [prompts[prompt] for _, prompt, _ in cells])
            edits = _packed_edits(sizes, variants, rows.row, cells, site, layers) if layers else []
            both = trace_cells(
                model.nn, rows.inputs, edits, rows.row, rows.last, answers, answer_probabilities
            )
            return difference(both)

        at_once = max(1, max_tokens // max(sizes))
        for begin in range(0, len(cells), at_once):
            for part, differences in in_halves(some, cells[begin : begin + at_once]):
                variant, prompt, _ = zip(*part, strict=True)
                result[list(prompt), list(variant)] = differences
    return result


def check_variants(model, prompts: Sequence[Prompt], variants: Sequence[Sequence[Edit | None]]) -> None:
    """Check that edits fit the prompts and the model.

    Raises
    ------
    TracerError
        Naming what does not fit.

    Examples
    --------
    >>> check_variants(model, prompts, [[None, edit]] * len(prompts))    # doctest: +SKIP
    """
    if len(variants) != len(prompts) or len({len(some) for some in variants}) != 1:
        raise TracerError("variants: give each prompt a list of edits, all lists of one length")
    for prompt, some in zip(prompts, variants, strict=True):
        edits = [edit for edit in some if edit is not None]
        check_edits(model, edits)
        for edit in edits:
            if edit.columns is None:
                raise TracerError(f"{edit.site}: edited at every token; give positions from the end")
            check_tokens([prompt], [int(column) for column in edit.columns])


def check_tokens(prompts: Sequence[Prompt], tokens: Sequence[int]) -> None:
    """Check that every prompt's statement has the tokens, which count from its end.

    Raises
    ------
    TracerError
        Naming the first prompt that has not.

    Examples
    --------
    >>> check_tokens(prompts, [-1, -6])                                # doctest: +SKIP
    """
    for prompt in prompts:
        for token in tokens:
            if not -len(prompt.statement) <= token <= -1:
                raise TracerError(
                    f"prompt {prompt.text[-60:]!r}: token {token} is not in -{len(prompt.statement)} to -1, its "
                    "statement's tokens counted from the end; edit tokens"
                )


def steered_cells(variants, lengths: Sequence[int]) -> dict[tuple, list[tuple[int, int, int]]]:
    """(site, layers) -> the cells (variant, prompt, first steered token) that are steered there.

    Examples
    --------
    >>> edit = Edit(site="resid_post", layers=(1,), mode="add", values=torch.ones(4), columns=(-3, -2))
    >>> steered_cells([[None, edit]], [9])
    {('resid_post', (1,)): [(1, 0, 6)]}
    """
    cells: dict[tuple, list[tuple[int, int, int]]] = defaultdict(list)
    for prompt, some in enumerate(variants):
        for variant, edit in enumerate(some):
            if edit is not None:
                cells[edit.site, edit.layers].append((variant, prompt, lengths[prompt] + min(edit.columns)))
    return dict(cells)


def steered_batches(cells, lengths: Sequence[int], n_keys: int, max_tokens: int) -> list[Packed]:
    """Return the cells in forward passes of at most `max_tokens` tokens, and cached keys in proportion.

    Parameters
    ----------
    n_keys
        Keys that a row holds in addition to its own. A row is one cell: from its first steered token to the end.

    Examples
    --------
    >>> [len(packed.prompt) for packed in steered_batches([(0, 0, 6), (1, 0, 6)], [9], n_keys=40, max_tokens=3)]
    [1, 1]
    """
    widest = max(lengths[prompt] - token for _, prompt, token in cells)
    return pack(cells, lengths, _rows_at_once(widest, n_keys, max_tokens) * widest)


def _rows_at_once(width: int, n_keys: int, max_tokens: int) -> int:
    """Rows of `width` tokens and `n_keys` cached keys in one forward pass."""
    return max(1, min(max_tokens // width, KEYS_PER_TOKEN * max_tokens // (n_keys + width)))


def _run_plain(batch: StatementBatch, layers: Sequence[int], answers):
    """Run the prompts unsteered: the stream after some blocks, and the answers' difference; keeps the run."""
    rows = batch.on_prefixes(whole(batch.lengths))
    row, last = rows.packed.row, rows.packed.last
    streams, both, cache = _trace_plain(batch.model.nn, rows.inputs(), layers, row, last, answers)
    batch.keep_run(cache)
    return dict(zip(layers, streams, strict=True)), difference(both)


def _run_packed(batch, streams, variants, site, layers, answers, packed: Packed) -> torch.Tensor:
    """Return the answers' differences of packed cells."""
    nn, n_layers = batch.model.nn, batch.model.n_layers
    edits = _packed_edits(batch.lengths, variants, packed.row, packed.cells.tolist(), site, layers)
    run = batch.on_run(packed)
    packed = run.packed
    start = first_block(layers[0], site)
    stream = None
    if start:
        stream = sites.at(streams[start - 1], packed.prompt[:, None], packed.token.clamp(min=0))
    if site == "resid_post":
        stream = edited(stream, edits)
        layers = layers[1:]
        edits = [replace(edit, layers=layers) for edit in edits]
    shortened = n_layers - 1 if start < n_layers and n_layers - 1 not in layers else None
    inputs, skipped = run.inputs(start), dict(start=start, stream=stream, shortened=shortened)
    both = trace_cells(nn, inputs, edits, packed.row, packed.last, answers, answer_probabilities, **skipped)
    return difference(both)


def _packed_edits(lengths, variants, places, cells, site, layers) -> list[Edit]:
    """Return the edits of cells (variant, prompt, first token) as one for each mode, with a vector per cell."""
    found = []
    modes: tuple[Literal["add", "ablate"], ...] = ("add", "ablate")
    for mode in modes:
        rows, columns, values = [], [], []
        for row, (variant, prompt, first) in zip(places.tolist(), cells, strict=True):
            edit = variants[prompt][variant]
            for token in edit.columns if edit.mode == mode else ():
                rows.append(row)
                columns.append(lengths[prompt] + token - first)
                values.append(edit.coefficient * edit.values if mode == "add" else edit.values)
        if rows:
            found.append(
                Edit(
                    site=site,
                    layers=layers,
                    mode=mode,
                    values=torch.stack(values),
                    rows=torch.tensor(rows),
                    columns=torch.tensor(columns),
                )
            )
    return found


def answer_probabilities(nn, row, last, answers):
    """Probabilities of the answers among the whole vocabulary (float32), inside a trace; dims cell x answer.

    The unembedding is applied at the last slots only.
    """
    return torch.softmax(logits_at(nn, row, last).float(), dim=-1)[..., list(answers)]


def _trace_plain(nn, inputs, layers, row, last, answers):
    with nn.trace(**inputs):
        streams = nnsight.save([])
        for layer in layers:
            streams.append(sites.get(nn.layers[layer], "resid_post"))
        both = nnsight.save(answer_probabilities(nn, row, last, answers))
        cache = nnsight.save(nn.output.past_key_values)
    return streams, both, cache


def steered_cost(
    shape: Shape, *, rows: int, width: int, n_keys: int, first: int, max_tokens: int | None = None
) -> Cost:
    """Cost of running steered rows of `width` tokens on `n_keys` cached keys each, from block `first` on.

    An upper bound: tokens before the first steered one are not run. Where runs are whole passes, all tokens are run.

    Examples
    --------
    >>> steered_cost(Shape(4, 10, 6, 2), rows=8, width=6, n_keys=20, first=2)
    Cost(forwards=1, multiply_adds=5952)
    """
    tokens = max_tokens or MAX_TOKENS
    if shape.whole:
        width, first = n_keys, 0
        n_keys = 0
    at_once = _rows_at_once(width, n_keys, tokens)
    each = width * (shape.block + (n_keys + width) * shape.attention)
    return Cost(-(-rows // at_once), rows * (shape.n_layers - first) * each)
