"""Read activations at chosen tokens of prompts, for all blocks in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nnsight
import torch

from posttrace.tracers import sites
from posttrace.tracers.batching.packing import whole
from posttrace.tracers.batching.padding import right_padded
from posttrace.tracers.batching.prefix_cache import StatementBatch, whole_rows
from posttrace.tracers.errors import TracerError
from posttrace.tracers.models.architecture import site_shape
from posttrace.tracers.operations import Tokens
from posttrace.tracers.prompts import Prompt

BLOCK_VALUES = 2**26
"""Weights of the unembedding that are widened at once: 256 MiB."""
WORTHWHILE = 0.75
"""Prefixes are run separately, once each, if at most this share of the tokens is then left to run: that takes a second
pass and explicit attention masks."""


@dataclass(frozen=True)
class Reading:
    """What one run of some prompts gave."""

    values: torch.Tensor
    """Activations at the site, in the model's dtype; dims prompt x layer x token x hidden, NaN where a prompt has
    fewer tokens than another. At `z` the layer axis runs over (layer, head), heads within layers, and hidden
    is the head size."""
    logit_diff: torch.Tensor
    """Logit of the first answer minus that of the second at the last token (float32, nats); dims prompt."""


def read_statements(
    model,
    prompts: Sequence[Prompt],
    *,
    site: str,
    layers: Sequence[int],
    answers: tuple[int, int] | None = None,
    tokens: Tokens = "statement",
) -> Reading:
    """Activations at `site` of `layers` at some tokens of each prompt, and the answer's logit difference (NaN if none).

    Parameters
    ----------
    tokens
        As in `tracers.operations.Read`; only those are copied off the model's device, while the next blocks run.
        Memory: prompts x layers x tokens x hidden values, so pass as many prompts as fit.

    Raises
    ------
    TracerError
        A position that a prompt does not have.

    Examples
    --------
    >>> read_statements(model, prompts, site="resid_post", layers=range(8), answers=(287, 288))  # doctest: +SKIP
    """
    columns = [columns_of(prompt, tokens) for prompt in prompts]
    shared = model.architecture.whole is None and not one_pass(prompts, tokens)
    wanted, _ = right_padded(columns)
    if shared:
        wanted = (wanted - torch.tensor([prompt.start for prompt in prompts])[:, None]).clamp(min=0)
        values, logit_diff = run_statements(
            StatementBatch(model, prompts), site, layers, answers, columns=wanted
        )
    else:
        values, logit_diff = _run_whole(model, prompts, site, layers, answers, wanted)
    stacked = _heads_apart(torch.stack(_wait_for_copies(values), dim=1), *site_shape(model.config, site))
    for row, some in enumerate(columns):
        stacked[row, :, len(some) :] = torch.nan
    return Reading(values=stacked, logit_diff=logit_diff)


def columns_of(prompt: Prompt, tokens: Tokens) -> list[int]:
    """Positions in the prompt (from 0) that a choice of tokens selects.

    Raises
    ------
    TracerError
        A position that the prompt does not have.

    Examples
    --------
    >>> columns_of(Prompt("", (1, 5, 9, 7), start=2, spans=((0, 1), (1, 2))), "statement")
    [2, 3]
    """
    n = len(prompt.ids)
    if isinstance(tokens, str):
        return list(range({"all": 0, "statement": prompt.start, "last": n - 1}[tokens], n))
    for token in tokens:
        if not -n <= token < n:
            raise TracerError(
                f"prompt {prompt.text[-60:]!r}: token {token} is not in {-n} to {n - 1}, it has {n} tokens; edit tokens"
            )
    return [token % n for token in tokens]


def one_pass(prompts: Sequence[Prompt], tokens: Tokens = "statement") -> bool:
    """Whether prompts are read in one plain pass: a prefix that few of them share is not worth a pass of its own.

    Examples
    --------
    >>> prompt = Prompt("", (1, 5, 9), start=1, spans=((0, 1), (1, 2)))
    >>> one_pass([prompt, prompt])
    True
    """
    if any(min(columns_of(p, tokens)) < p.start for p in prompts):
        return True
    prefixes = {p.prefix for p in prompts}
    apart = len(prefixes) * max(map(len, prefixes)) + len(prompts) * max(len(p.statement) for p in prompts)
    return apart > WORTHWHILE * len(prompts) * max(len(p.ids) for p in prompts)


def run_statements(
    batch: StatementBatch, site: str, layers: Sequence[int], answers, *, keep: bool = False, columns=None
):
    """Run the statements unpatched: a list over layers (prompt x token x hidden) and the logit differences.

    Parameters
    ----------
    keep
        Make `batch` keep the run's keys and values for later partial runs.
    columns
        Statement tokens to return, dims prompt x token, copied to the CPU (see `_wait_for_copies`); without it all
        stay on the device.
    """
    rows = batch.on_prefixes(whole(batch.lengths))
    row, last = rows.packed.row, rows.packed.last
    columns = columns if columns is None else columns.to(row.device)
    with torch.no_grad():
        values, logits, cache = _trace_read(
            batch.model.nn, rows.inputs(), site, layers, row, last, answers, columns, keep
        )
    if keep:
        batch.keep_run(cache)
    return values, difference(logits)


def _run_whole(model, prompts, site, layers, answers, columns):
    """As `run_statements`, columns counted from the prompts' beginning, in one plain pass without a cache."""
    rows = whole_rows(model, prompts)
    columns = columns.to(model.device)
    with torch.no_grad():
        values, logits, _ = _trace_read(
            model.nn, rows.inputs, site, layers, rows.row, rows.last, answers, columns, False
        )
    return values, difference(logits)


def difference(both: torch.Tensor) -> torch.Tensor:
    """First answer minus second, of logits or probabilities (float32 on the CPU); the last dim is dropped."""
    both = both.float().cpu()
    return both[..., 0] - both[..., 1]


def answer_logits(nn, row, last, answers):
    """Logits of the two answers only, at the last slot of each segment, inside a trace; dims cell x 2.

    The unembedding is skipped and two of its rows are applied instead, in float32, as a logit of 20 has steps of 1/8
    in bfloat16; what the model does to logits afterwards (a soft cap, a scale) still applies to the two.
    """
    hidden, two = sites.at(nn.unembed.input, row, last), list(answers)
    if has_weights(nn.unembed):
        weight, bias = nn.unembed._module.weight, nn.unembed._module.bias
        weight, bias = (
            part if part is None else part[two].to(hidden.device, torch.float32) for part in (weight, bias)
        )
        two = torch.nn.functional.linear(hidden.float(), weight, bias)
    else:
        # A server may hide its weights and let modules be called only: there all rows are applied.
        two = nn.unembed(hidden)[:, two]
    nn.unembed.skip(two)
    return nn.output.logits


def logits_at(nn, row, column):
    """Logits at some slots only (see `unembedded`), inside a trace; dims slot x vocabulary."""
    nn.unembed.skip(unembedded(nn, sites.at(nn.unembed.input, row, column)))
    return nn.output.logits


def unembedded(nn, hidden):
    """Logits of a few hidden states inside a trace, in float32 if the weights can be read; dims ... x vocabulary.

    bfloat16 rounds a logit of 20 to 1/8 nat. The weights are widened block by block, so that no copy of all exists.
    """
    if not in_16_bits(nn):
        return nn.unembed(hidden)
    weight, bias = nn.unembed._module.weight, nn.unembed._module.bias
    wide = hidden.to(weight.device, torch.float32)
    step = max(1, BLOCK_VALUES // weight.shape[1])
    parts = [wide @ rows.float().T for rows in weight.split(step)]
    logits = torch.cat(parts, dim=-1) if bias is None else torch.cat(parts, dim=-1) + bias.float()
    return logits.to(hidden.device)


def widen_logits(nn) -> None:
    """Have a run in 16 bits, whose logits are read at few tokens, compute them in float32 (see `unembedded`)."""
    if in_16_bits(nn):
        nn.unembed.skip(unembedded(nn, nn.unembed.input))


def in_16_bits(nn) -> bool:
    """Whether the unembedding can be read and is in bfloat16 or float16."""
    return has_weights(nn.unembed) and nn.unembed._module.weight.dtype in (torch.bfloat16, torch.float16)


def has_weights(module) -> bool:
    """Whether the weights of a module of the model can be read here.

    A server runs untrusted code without them: modules have no values, or there are no modules at all. There
    `linear(values, weight)` raises no error; it returns uninitialised memory.
    """
    inner = module._module
    return inner is not None and not any(weight.is_meta for weight in inner.parameters())


def _trace_read(nn, inputs, site, layers, row, last, answers, columns, keep):
    with nn.trace(**inputs):
        values = nnsight.save([])
        for layer in layers:
            value = sites.get(nn.layers[layer], site)
            values.append(
                value if columns is None else _copy_to_cpu_async(sites.at(value, row[:, None], columns))
            )
        if answers is None:
            logits = nnsight.save(torch.full((len(last), 2), torch.nan))
        else:
            logits = nnsight.save(answer_logits(nn, row, last, answers))
        # As the run gives it: where arguments travel to the model as copies, the one that was passed stays empty.
        cache = nnsight.save(nn.output.past_key_values if keep else [])
    return values, logits, cache


def _copy_to_cpu_async(value):
    """Start an asynchronous copy to the CPU; call `_wait_for_copies` before reading it."""
    if value.device.type != "cuda":
        return value
    stream = torch.cuda.Stream(value.device)
    stream.wait_stream(torch.cuda.current_stream(value.device))
    host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    with torch.cuda.stream(stream):
        host.copy_(value, non_blocking=True)
    value.record_stream(stream)  # keeps its memory from being reused before the copy is done
    return host


def _wait_for_copies(values: list[torch.Tensor]) -> list[torch.Tensor]:
    """Wait until the copies that `_copy_to_cpu_async` started have arrived, and return them."""
    if any(value.is_pinned() for value in values if torch.cuda.is_available()):
        for device in range(torch.cuda.device_count()):
            torch.cuda.synchronize(device)
    return values


def _heads_apart(values: torch.Tensor, heads: int, width: int) -> torch.Tensor:
    """Values of heads side by side (prompt x layer x token x ...) as prompt x (layer, head) x token x width."""
    if heads == 1:
        return values
    return values.unflatten(-1, (heads, width)).transpose(2, 3).flatten(1, 2).contiguous()
