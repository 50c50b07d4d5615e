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
from dataclasses import dataclass

import nnsight
import torch

from posttrace.tracers import sites
from posttrace.tracers.batching.memory import MAX_TOKENS, out_of_memory, tokens_that_fit
from posttrace.tracers.batching.packing import Packed, pack, whole
from posttrace.tracers.batching.prefix_cache import StatementBatch
from posttrace.tracers.cost import Cost, Shape
from posttrace.tracers.engines.patching import first_block
from posttrace.tracers.errors import TracerError
from posttrace.tracers.operations import Steer
from posttrace.tracers.prompts import Prompt

KEYS_PER_TOKEN = 4
"""Cached keys that may be held at once, per token that may be run at once."""


@dataclass(frozen=True)
class TokenSteer:
    """A `Steer` made concrete for one prompt."""

    site: str
    layers: tuple[int, ...]
    tokens: tuple[int, ...]
    """Counted from the prompt's end (-1: last)."""
    vector: torch.Tensor
    """The direction, float32; dims hidden."""
    mode: str = "add"
    coefficient: float = 1.0


def token_steer(steer: Steer, vector: torch.Tensor, n_layers: int) -> TokenSteer:
    """What an operation asks for in a model of `n_layers` blocks, with its direction's vector.

    >>> token_steer(Steer(direction="truth", layers=(1, 2), tokens=(-6, -5)), torch.ones(4), n_layers=3).layers
    (1, 2)

    vector: dims hidden, model units. Raises TracerError for layers out of range and for tokens that are not
    positions counted from the end.
    """
    if isinstance(steer.tokens, str) or not steer.tokens or max(steer.tokens) >= 0:
        raise TracerError(
            f"steering {steer.direction}: tokens: {steer.tokens!r}; give positions from the end"
        )
    try:
        layers = steer.layers_of(n_layers)
    except ValueError as error:
        raise TracerError(f"steering {steer.direction}: {error}") from None
    return TokenSteer(steer.site, layers, tuple(steer.tokens), vector.float(), steer.mode, steer.coefficient)


def steered_answers(
    model,
    prompts: Sequence[Prompt],
    steers: Sequence[Sequence[TokenSteer | None]],
    *,
    answers: tuple[int, int],
    max_tokens: int | None = None,
) -> torch.Tensor:
    """P(first answer) - P(second answer) at the last token of each prompt for each steer; dims prompt x variant.

    >>> steered_answers(model, prompts, [[None, steer]] * len(prompts), answers=(287, 288))      # doctest: +SKIP

    steers: per prompt its variants, equally many; None leaves the run alone. answers: token ids; probabilities are of
    the whole vocabulary (float32). max_tokens: tokens in one forward pass, by default what fits, halved when memory
    runs out; the result does not depend on it beyond rounding. Raises TracerError for a steer that does not fit.
    """
    check_steers(model, prompts, steers)
    with torch.no_grad():
        batch = StatementBatch(model, prompts)
        cells = steered_cells(steers, batch.lengths)
        starts = sorted({first_block(layers[0], site) for site, layers in cells})
        streams, plain = _run_plain(batch, [start - 1 for start in starts if start], answers)
        result = plain[:, None].repeat(1, len(steers[0]))
        n_keys = batch.n_keys()
        for (site, layers), some in cells.items():
            for packed in batches(some, batch.lengths, n_keys, max_tokens or tokens_that_fit(model)):
                _fill(batch, streams, steers, packed, site, layers, answers, result)
    return result


def check_steers(model, prompts: Sequence[Prompt], steers: Sequence[Sequence[TokenSteer | None]]) -> None:
    """Check that steers fit the prompts and the model.

    >>> check_steers(model, prompts, [[None, steer]] * len(prompts))    # doctest: +SKIP

    Raises TracerError naming what does not fit.
    """
    if len(steers) != len(prompts) or len({len(variants) for variants in steers}) != 1:
        raise TracerError("steers: give each prompt a list of steers, all lists of one length")
    for prompt, variants in zip(prompts, steers, strict=True):
        for steer in filter(None, variants):
            check_tokens([prompt], steer.tokens)
            if list(steer.layers) != sorted(set(steer.layers)) or not set(steer.layers) <= set(
                range(model.n_layers)
            ):
                raise TracerError(
                    f"layers: {list(steer.layers)} are not numbers from 0 to {model.n_layers - 1} in increasing order"
                )
            if steer.site not in model.architecture.sites:
                raise TracerError(f"model {model.name}: site {steer.site} is none of this architecture's")
            vector = steer.vector
            if tuple(vector.shape) != (model.hidden_size,) or not vector.isfinite().all():
                raise TracerError(
                    f"a direction has shape {tuple(vector.shape)}, must be ({model.hidden_size},) and finite"
                )


def check_tokens(prompts: Sequence[Prompt], tokens: Sequence[int]) -> None:
    """Check that every prompt's statement has the tokens, which count from its end.

    >>> check_tokens(prompts, [-1, -6])                                # doctest: +SKIP

    Raises TracerError naming the first prompt that has not.
    """
    for prompt in prompts:
        for token in tokens:
            if not -len(prompt.statement) <= token <= -1:
                raise TracerError(
                    f"prompt {prompt.text[-60:]!r}: token {token} is not in -{len(prompt.statement)} to -1, its "
                    "statement's tokens counted from the end; edit tokens"
                )


def steered_cells(steers, lengths: Sequence[int]) -> dict[tuple, list[tuple[int, int, int]]]:
    """(site, layers) -> the cells (variant, prompt, first steered token) that are steered there.

    >>> steered_cells([[None, TokenSteer("resid_post", (1,), (-3, -2), torch.ones(4))]], [9])
    {('resid_post', (1,)): [(1, 0, 6)]}
    """
    cells: dict[tuple, list[tuple[int, int, int]]] = defaultdict(list)
    for prompt, variants in enumerate(steers):
        for variant, steer in enumerate(variants):
            if steer is not None:
                cells[steer.site, steer.layers].append((variant, prompt, lengths[prompt] + min(steer.tokens)))
    return dict(cells)


def batches(cells, lengths: Sequence[int], n_keys: int, max_tokens: int) -> list[Packed]:
    """The cells in forward passes of at most `max_tokens` tokens, and cached keys in proportion.

    >>> [len(packed.prompt) for packed in batches([(0, 0, 6), (1, 0, 6)], [9], n_keys=40, max_tokens=3)]
    [1, 1]

    n_keys: keys that a row holds in addition to its own. A row is one cell: from its first steered token to the end.
    """
    widest = max(lengths[prompt] - token for _, prompt, token in cells)
    rows = min(max_tokens // widest, KEYS_PER_TOKEN * max_tokens // (n_keys + widest))
    return pack(cells, lengths, max(1, rows) * widest)


def _run_plain(batch: StatementBatch, layers: Sequence[int], answers):
    """Run the prompts unsteered: the stream after some blocks, and the answers' difference; keeps the run."""
    rows = batch.on_prefixes(whole(batch.lengths))
    row, last = rows.packed.row, rows.packed.last
    streams, both, cache = _trace_plain(batch.model.nn, rows.inputs(), layers, row, last, answers)
    batch.keep_run(cache)
    return dict(zip(layers, streams, strict=True)), _difference(both)


def _fill(batch, streams, steers, packed: Packed, site, layers, answers, result) -> None:
    """Run packed cells, in halves when memory runs out."""
    try:
        both = _run_packed(batch, streams, steers, packed, site, layers, answers)
        result[packed.cells[:, 1], packed.cells[:, 0]] = _difference(both)
        return
    except (MemoryError, RuntimeError) as error:
        if len(packed.prompt) == 1 or not out_of_memory(error):
            raise
    # Only here, where the error is gone, is the memory free that its traceback held.
    cells = [tuple(cell) for cell in packed.cells.tolist()]
    for half in (cells[: len(cells) // 2], cells[len(cells) // 2 :]):
        (again,) = pack(half, batch.lengths, packed.token.numel())
        _fill(batch, streams, steers, again, site, layers, answers, result)


def _run_packed(batch, streams, steers, packed: Packed, site, layers, answers):
    nn, n_layers = batch.model.nn, batch.model.n_layers
    rows, columns, added, out = _places(batch.lengths, steers, packed)
    run = batch.on_run(packed)
    packed = run.packed
    start = first_block(layers[0], site)
    stream = None
    if start:
        stream = sites.at(streams[start - 1], packed.prompt[:, None], packed.token.clamp(min=0))
    if site == "resid_post":
        stream = with_steering(stream, rows, columns, added, out)
        layers = layers[1:]
    shortened = n_layers - 1 if start < n_layers and n_layers - 1 not in layers else None
    edit = (site, layers, rows, columns, added, out)
    return _trace_steered(
        nn, run.inputs(start), start, stream, edit, packed.row, packed.last, shortened, answers
    )


def _places(lengths, steers, packed: Packed):
    """Steered cells of packed rows: their rows and slots, what each gets added, the unit vector taken out of it."""
    rows, columns, added, out = [], [], [], []
    for row, (variant, prompt, first) in enumerate(packed.cells.tolist()):
        steer = steers[prompt][variant]
        nothing = torch.zeros_like(steer.vector)
        sign = {"add": 1.0, "subtract": -1.0, "ablate": 0.0}[steer.mode]
        for token in steer.tokens:
            rows.append(int(packed.row[row]))
            columns.append(lengths[prompt] + token - first)
            added.append(sign * steer.coefficient * steer.vector if sign else nothing)
            out.append(nothing if sign else steer.vector / steer.vector.norm())
    return torch.tensor(rows), torch.tensor(columns), torch.stack(added), torch.stack(out)


def with_steering(hidden, rows, columns, added, out):
    """`hidden` with `added[i]` added, and its component along `out[i]` (unit or zero) removed, at cell i."""
    some = sites.at(hidden, rows, columns)
    added, out = added.to(some), out.to(some)
    some = some + added - (some * out).sum(-1, keepdim=True) * out
    return sites.replaced(hidden, rows, columns, some)


def steer_block(block, edit) -> None:
    """Steer the cells of one block, inside a trace."""
    site, _, rows, columns, added, out = edit
    sites.change(block, site, lambda hidden: with_steering(hidden, rows, columns, added, out))


def answer_probabilities(nn, row, last, answers):
    """Probabilities of the answers among the whole vocabulary (float32), inside a trace; dims cell x answer.

    The unembedding is applied at the last slots only.
    """
    hidden = sites.at(nn.unembed.input, row, last)
    nn.unembed.skip(nn.unembed(hidden))
    return torch.softmax(nn.output.logits.float(), dim=-1)[..., list(answers)]


def _difference(both: torch.Tensor) -> torch.Tensor:
    both = both.cpu()
    return both[..., 0] - both[..., 1]


def _trace_plain(nn, inputs, layers, row, last, answers):
    with nn.trace(**inputs):
        streams = nnsight.save([])
        for layer in layers:
            streams.append(sites.get(nn.layers[layer], "resid_post"))
        both = nnsight.save(answer_probabilities(nn, row, last, answers))
        cache = nnsight.save(nn.output.past_key_values)
    return streams, both, cache


def _trace_steered(nn, inputs, start, stream, edit, row, last, shortened, answers):
    with nn.trace(**inputs):
        for skipped in range(start):
            nn.layers[skipped].skip(stream)
        for layer in edit[1]:
            steer_block(nn.layers[layer], edit)
        if shortened is not None:
            sites.run_mlp_at(nn.layers[shortened], row, last)
        both = nnsight.save(answer_probabilities(nn, row, last, answers))
    return both


def steered_cost(
    shape: Shape, rows: int, width: int, n_keys: int, first: int, max_tokens: int | None = None
) -> Cost:
    """Cost of running steered rows of `width` tokens on `n_keys` cached keys each, from block `first` on.

    >>> steered_cost(Shape(4, 10, 6, 2), rows=8, width=6, n_keys=20, first=2)
    Cost(forwards=1, multiply_adds=5952)

    An upper bound: tokens before the first steered one are not run.
    """
    tokens = max_tokens or MAX_TOKENS
    at_once = max(1, min(tokens // width, KEYS_PER_TOKEN * tokens // (n_keys + width)))
    each = width * (shape.block + (n_keys + width) * shape.attention)
    return Cost(-(-rows // at_once), rows * (shape.n_layers - first) * each)
