"""Class means at the last tokens of prompts, effects on the first new token, likelihood of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nnsight
import torch

from posttrace.tracers import sites
from posttrace.tracers.batching.memory import in_batches
from posttrace.tracers.batching.padding import prompt_inputs
from posttrace.tracers.engines.edits import edit_of
from posttrace.tracers.engines.generation import (
    Ids,
    Openings,
    check_everywhere,
    last_logits,
    opening_log_odds,
)
from posttrace.tracers.engines.steering import ablation, necessary_edits
from posttrace.tracers.errors import TracerError
from posttrace.tracers.operations import Read, Steer


def mean_streams(model, prompts: Sequence[Ids], read: Read, max_tokens: int | None = None) -> torch.Tensor:
    """Mean over prompts of the activations that are read (float32; dims layer x position x hidden).

    Parameters
    ----------
    prompts
        Token ids, of unequal length as they are.
    read
        Its tokens are positions counted from the end.

    Raises
    ------
    TracerError
        If a position is not in every prompt, or a layer not in the model.

    Examples
    --------
    >>> mean_streams(model, [[1, 7, 9], [1, 8]], Read(site="resid_pre", tokens=(-2, -1))).shape    # doctest: +SKIP
    torch.Size([8, 2, 160])
    """
    shortest = min(map(len, prompts))
    if not isinstance(read.tokens, tuple) or not all(-shortest <= t < 0 for t in read.tokens):
        raise TracerError(
            f"tokens: {read.tokens!r} are not positions from -{shortest} (the shortest prompt's first token) to -1"
        )
    try:
        layers = read.layers_of(model.n_layers)
    except ValueError as error:
        raise TracerError(f"model {model.name}: {error}") from None
    total = torch.zeros(len(layers), len(read.tokens), model.hidden_size, dtype=torch.float64)

    def some(rows):
        inputs = prompt_inputs(model, [prompts[r] for r in rows])
        with torch.no_grad():
            sums = _position_sums(model.nn, inputs, read.site, layers, list(read.tokens))
        return torch.stack([s.double().cpu() for s in sums])

    whole = bool(model.architecture.whole)
    for _, sums in in_batches(model, some, [len(p) for p in prompts], max_tokens, one_length=whole):
        total += sums
    return (total / len(prompts)).float()


@dataclass(frozen=True)
class Effects:
    """What directions at one layer do to the first new token; float32, dims direction x prompt."""

    bypass: torch.Tensor
    """Log-odds of refusal on harmful prompts with the direction ablated (nats)."""
    induce: torch.Tensor
    """Log-odds of refusal on harmless prompts with the direction added (nats)."""
    kl: torch.Tensor
    """KL(plain || ablated) of the first new token on harmless prompts (nats)."""


def direction_effects(
    model,
    harmful: Sequence[Ids],
    harmless: Sequence[Ids],
    *,
    layer: int,
    directions: torch.Tensor,
    coefficients: Sequence[float],
    openings: Openings,
    max_tokens: int | None = None,
) -> Effects:
    """Ablate each direction everywhere, add each at the input of block `layer`, and look at the first new token.

    Parameters
    ----------
    directions
        Dims direction x hidden, any length above 0.
    coefficients
        Factor of each unit direction when added. Source of the method: Arditi et al. 2024, section 2.3.

    Raises
    ------
    TracerError
        A direction or layer that does not fit the model.

    Examples
    --------
    >>> direction_effects(model, harmful, harmless, layer=5, directions=directions, coefficients=[2.0, 2.1],
    ...                   openings=openings).kl.shape                 # doctest: +SKIP
    torch.Size([2, 48])
    """
    ablations, additions = [], []
    for vector, coefficient in zip(directions, coefficients, strict=True):
        unit = vector / vector.norm()
        add = Steer(
            site="resid_pre", layers=(layer,), tokens="all", direction="r", coefficient=float(coefficient)
        )
        ablate = ablation(unit, model.architecture.sites, model.n_layers)
        addition = edit_of(add, unit, model.n_layers)
        check_everywhere(model, [*ablate, addition])
        ablations.append(necessary_edits(ablate))
        additions.append([addition])
    bypass = torch.full((len(directions), len(harmful)), torch.nan)
    induce = torch.full((len(directions), len(harmless)), torch.nan)
    kl = torch.full((len(directions), len(harmless)), torch.nan)

    def harmful_rows(rows):
        inputs = _inputs(model, [harmful[r] for r in rows])
        return [opening_log_odds(last_logits(model.nn, inputs, edits), openings).cpu() for edits in ablations]

    def harmless_rows(rows):
        inputs = _inputs(model, [harmless[r] for r in rows])
        plain = last_logits(model.nn, inputs, []).float().log_softmax(-1)
        found = []
        for without, added in zip(ablations, additions, strict=True):
            ablated = last_logits(model.nn, inputs, without).float().log_softmax(-1)
            divergence = (plain.exp() * (plain - ablated)).sum(-1)
            odds = opening_log_odds(last_logits(model.nn, inputs, added), openings)
            found.append((odds.cpu(), divergence.cpu()))
        return found

    whole = bool(model.architecture.whole)
    with torch.no_grad():
        for part, values in in_batches(model, harmful_rows, [len(p) for p in harmful], max_tokens, whole):
            bypass[:, part] = torch.stack(values)
        for part, values in in_batches(model, harmless_rows, [len(p) for p in harmless], max_tokens, whole):
            induce[:, part] = torch.stack([odds for odds, _ in values])
            kl[:, part] = torch.stack([divergence for _, divergence in values])
    return Effects(bypass=bypass, induce=induce, kl=kl)


def mean_nll(
    model, prompts: Sequence[Ids], completions: Sequence[Ids], max_tokens: int | None = None
) -> torch.Tensor:
    """Mean negative log-likelihood of texts that follow prompts, unsteered (float32, nats a token; dims prompt).

    The first token of a text is left out: it is what steering is meant to change. NaN for texts of fewer than two
    tokens. The texts may come from a steered run; here nothing is steered.

    Examples
    --------
    >>> mean_nll(model, [[1, 7, 9]], [(12, 5, 2)])                 # doctest: +SKIP
    tensor([0.8312])
    """
    found = torch.full((len(prompts),), torch.nan)
    usable = [row for row, text in enumerate(completions) if len(text) > 1]

    def some(places):
        rows = [usable[i] for i in places]
        with torch.no_grad():
            return _text_nats(model, [prompts[r] for r in rows], [completions[r] for r in rows])

    lengths, whole = [len(prompts[r]) + len(completions[r]) for r in usable], bool(model.architecture.whole)
    for places, values in in_batches(model, some, lengths, max_tokens, one_length=whole):
        found[[usable[i] for i in places]] = values
    return found


def _text_nats(model, prompts, texts) -> torch.Tensor:
    longest = max(map(len, texts))
    inputs = _inputs(model, [[*prompt, *text] for prompt, text in zip(prompts, texts, strict=True)])
    logits = _logits_of_last(model.nn, inputs, longest + 1)
    nats = []
    for row, text in enumerate(texts):
        # Row by row: probabilities of a large vocabulary for all rows at once would be larger than the model.
        rest = torch.tensor(list(text[1:]), device=logits.device)
        before = logits[row, -len(rest) - 1 : -1].float().log_softmax(-1)
        nats.append(-before.gather(1, rest[:, None]).mean())
    return torch.stack(nats).cpu()


def _inputs(model, prompts: Sequence[Ids]) -> dict:
    return prompt_inputs(model, prompts) | {"use_cache": False}


def _logits_of_last(nn, inputs: dict, n: int):
    with nn.trace(**inputs, logits_to_keep=n):
        logits = nnsight.save(nn.output.logits)
    return logits


def _position_sums(nn, inputs: dict, site: str, layers, positions: list[int]):
    with nn.trace(**inputs, use_cache=False, logits_to_keep=1):
        sums = nnsight.save([])
        for layer in layers:
            sums.append(sites.get(nn.layers[layer], site)[:, positions].double().sum(0))
    return sums
