"""Tables of the refusal study: the effect of each direction on each stage, and where directions were taken.

Source: Du et al. 2025 (arXiv 2504.02904), table on refusal; intervals, log-odds, text scores and random directions
are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from posttrace.figures import published
from posttrace.figures.group import kept, names_of
from posttrace.figures.measures.intervals import RESAMPLES, SEED, Estimate, bootstrap_mean, wilson_estimate
from posttrace.figures.studies.refusal.data import KINDS, SCORED, Refusal
from posttrace.figures.tables import Block, Cell, Row, Table, cell, number

SHOWN = 5
"""Instructions of each kind in the table, evenly spaced; the CSV has all."""


@dataclass(frozen=True)
class Measure:
    """One score of the answers."""

    array: str
    heading: str
    words: str
    unit: str
    digits: int
    arrows: bool
    """Whether ablation should lower it and addition raise it."""


MEASURES = (
    Measure("refused", "Refusal: share of answers that begin with a refusal phrase",
            "Share of answers that begin with a refusal phrase", "share", 2, True),
    Measure("log_odds", "Refusal without phrases: log-odds of the first token",
            "Mean log P(refusal) - log P(compliance) at the first new token, nats", "nats", 2, True),
    Measure("mean_nll", "Mean negative log-likelihood: is the text likely without steering?",
            "Mean negative log-likelihood of the answer in the same stage unsteered, from its second token on, "
            "nats per token", "nats a token", 2, False),
    Measure("repeated", "Repetition: does the text go round in circles?",
            "Mean share of adjacent token pairs that occurred in the answer before", "share", 3, False),
    Measure("reasoning_tokens", "Reasoning: how long before the answer?",
            "Mean length of the reasoning block before the answer, which is scored after it", "tokens", 1, False),
    Measure("reasoning_cut", "Reasoning: how often cut short?",
            "Share of answers whose reasoning block was cut short", "share", 2, False),
)  # fmt: skip


def scores(groups: Sequence[Refusal]) -> Iterator[Table]:
    """Yield `refusal_<measure>`: rows harmful and harmless, columns directions, a block for each stage."""
    for group in groups:
        others = group.stages if len(group.stages) > 1 else ()
        columns = ("baseline", "own", *others, *(["random"] if group.random else []))
        for measure in (one for one in MEASURES if one.array in group.data):
            blocks = tuple(_block(group, measure, target, others) for target in group.stages)
            yield Table(
                name=f"refusal_{measure.array}",
                heading=measure.heading,
                caption=_caption(group, measure),
                columns=columns,
                blocks=blocks,
                records=list(_tidy(group, measure)),
            )


def selection(groups: Sequence[Refusal]) -> Iterator[Table]:
    """Yield `refusal_selection`: where each stage's direction was taken, and its scores on validation prompts."""
    columns = (
        "layer",
        "position",
        "token",
        "chosen by",
        "qualifies",
        "distance",
        "added",
        "bypass",
        "induce",
        "KL",
    )
    for group in groups:
        rows, tidy = [], []
        for m, stage in enumerate(group.stages):
            one = group.data.isel(model=m)
            layer, position = int(one.selected_layer), int(one.selected_position)
            if layer < 0:
                continue  # not chosen yet: the fill value
            at = dict(layer=layer, position=group.positions.index(position))
            numbers = {
                "distance": float(one.class_distance.isel(at)),
                "added": float(one.coefficient),
                **{name: float(one[name].isel(at).mean()) for name in ("bypass", "induce", "kl")},
            }
            token = repr(str(one.position_token.values[at["position"]]))
            by, qualifies = str(one.selected_by.values), "yes" if bool(one.selected_qualifies) else "no"
            texts = [str(layer), str(position), token, by, qualifies if by == "sweep" else "–"]
            rows.append(
                Row(stage, tuple(Cell(text) for text in [*texts, *(number(v, 2) for v in numbers.values())]))
            )
            tidy.append({"study": "refusal", "family": group.family, "model": stage, "layer": layer,
                         "position": position, "token": token, "chosen_by": by, "qualifies": qualifies,
                         **numbers})  # fmt: skip
        if rows:
            sizes = group.data.attrs
            yield Table(
                name="refusal_selection",
                heading="Where the directions are taken",
                caption=(
                    f"{group.incomplete}{group.family}: input of block `layer` at token `position` from the prompt's "
                    f"end. Distance: between the class means of {_sizes(sizes['n_direction'])} prompts (length in the "
                    f"stream); added: length of the added vector. On {_sizes(sizes['n_validation'])} validation "
                    "prompts, means, nats: bypass (harmful, ablated), induce (harmless, distance times direction "
                    "added), KL (harmless, ablated). A place qualifies with induce > 0, KL at most "
                    f"{sizes['max_kl']:g} and layer below {sizes['max_depth']:g} of the depth; the lowest bypass among "
                    "these is chosen. If none qualifies, the condition on induce is dropped first, then that on KL."
                ),
                columns=columns,
                blocks=(Block("stage", tuple(rows)),),
                records=tidy,
            )


def estimate(values: np.ndarray, share: bool) -> Estimate:
    """Return the mean of finite values with its interval over prompts: Wilson for a share, otherwise bootstrap.

    Examples
    --------
    >>> estimate(np.array([1.0, 1.0]), share=True).value
    1.0
    """
    values = values[np.isfinite(values)]
    return wilson_estimate(values) if share else bootstrap_mean(values)


@kept
def estimated(
    group: Refusal, array: str, direction: str, target: str, intervention: str, kind: str
) -> Estimate:
    """Return `estimate` of the scores of one cell (see `Refusal.scores`)."""
    return estimate(group.scores(array, direction, target, intervention, kind), array == "refused")


def random_range(group: Refusal, array: str, target: str, intervention: str, kind: str) -> Estimate | None:
    """Return mean, smallest and largest of the random directions' means; n counts directions. None without any."""
    found = [estimated(group, array, name, target, intervention, kind) for name in group.random]
    means = [one.value for one in found if one.n]
    return Estimate(float(np.mean(means)), min(means), max(means), len(means)) if means else None


def completions(groups: Sequence[Refusal]) -> Iterator[Table]:
    """Yield `refusal_completions`: a block for each instruction, a column for each stage."""
    for group in groups:
        blocks = [
            _answers(group, kind, prompt)
            for kind in KINDS
            for prompt in _spread(np.flatnonzero(group.of_kind(kind)))
        ]
        yield Table(
            name="refusal_completions",
            heading="Answers side by side",
            caption=(
                f"{group.incomplete}{group.family}: greedy answers of at most {group.data.attrs['new_tokens']} "
                f"tokens to {SHOWN} of {group.planned('harmful')} harmful and {SHOWN} of {group.planned('harmless')} "
                "harmless test prompts, evenly spaced, not selected. Harmful: direction ablated; harmless: direction "
                "added. × marks an answer that begins with a refusal phrase. The CSV has all prompts, both "
                "interventions and all directions."
            ),
            columns=group.stages,
            blocks=tuple(blocks),
            records=list(_tidy_answers(group)),
            prose=True,
        )


def _block(group: Refusal, measure: Measure, target: str, others: Sequence[str]) -> Block:
    rows = []
    for kind in KINDS:
        done = SCORED[kind]
        cells = [
            _cell(group, measure, target, target, "none", kind),
            _cell(group, measure, target, target, done, kind),
        ]
        cells += [
            Cell("own") if other == target else _cell(group, measure, other, target, done, kind)
            for other in others
        ]
        if group.random:
            cells.append(_random_cell(group, measure, target, done, kind))
        arrow = (" ↓" if done == "ablation" else " ↑") if measure.arrows else ""
        rows.append(Row(f"{kind}, {done}{arrow}", tuple(cells)))
        theirs = published.REFUSAL.get(target, {}).get(kind) if measure.array == "refused" else None
        if theirs and published.is_about(group.family):
            columns = ("baseline", "own", *others, *(["random"] if group.random else []))
            rows.append(
                Row(
                    published.PAPER,
                    tuple(Cell("–" if c not in theirs else number(theirs[c], 2)) for c in columns),
                    published=True,
                )
            )
    return Block(f"into {target}", tuple(rows))


def _cell(
    group: Refusal, measure: Measure, direction: str, target: str, intervention: str, kind: str
) -> Cell:
    found = estimated(group, measure.array, direction, target, intervention, kind)
    return cell(found.value, found.low, found.high, measure.digits)


def _random_cell(group: Refusal, measure: Measure, target: str, intervention: str, kind: str) -> Cell:
    found = random_range(group, measure.array, target, intervention, kind)
    return cell(found.value, found.low, found.high, measure.digits) if found else Cell("–")


def _tidy(group: Refusal, measure: Measure) -> Iterator[dict]:
    for target in group.stages:
        for intervention in ("none", "ablation", "addition"):
            for direction in [target] if intervention == "none" else group.directions:
                for kind in KINDS:
                    found = estimated(group, measure.array, direction, target, intervention, kind)
                    yield {
                        "study": "refusal",
                        "family": group.family,
                        "target": target,
                        "intervention": intervention,
                        "direction": "" if intervention == "none" else direction,
                        "own": direction == target and intervention != "none",
                        "kind": kind,
                        "measure": measure.array,
                        "unit": measure.unit,
                        "estimate": found.value,
                        "low": found.low,
                        "high": found.high,
                        "n_prompts": found.n,
                        "n_prompts_planned": group.planned(kind),
                        "interval": "wilson" if measure.array == "refused" else "bootstrap",
                        "confidence": 0.95,
                    }


def _caption(group: Refusal, measure: Measure) -> str:
    how = (
        "95% Wilson interval over prompts"
        if measure.array == "refused"
        else f"95% percentile bootstrap interval over prompts, {RESAMPLES} resamples, seed {SEED}"
    )
    random = (
        f" Random: mean of {len(group.random)} random directions, in brackets the smallest and the largest."
        if group.random
        else ""
    )
    return (
        f"{group.incomplete}{group.family}: {measure.words}; greedy answers of {group.data.attrs['new_tokens']} "
        f"tokens to n = {group.planned('harmful')} harmful and {group.planned('harmless')} harmless test prompts. "
        "Columns: unsteered, the target's own direction, the other stages' directions; ablated for harmful, added for "
        "harmless prompts, all added in the same block and with the same length. "
        f"Brackets: {how}.{random} The CSV has ablation and addition for both kinds and every direction."
    )


def _sizes(both: Sequence[int]) -> str:
    return f"{both[0]} harmful and {both[1]} harmless"


def _spread(prompts: np.ndarray) -> np.ndarray:
    return prompts[np.unique(np.linspace(0, len(prompts) - 1, SHOWN).round().astype(int))]


def _answers(group: Refusal, kind: str, prompt: int) -> Block:
    done = SCORED[kind]
    verb = {"ablation": "without", "addition": "with"}[done]
    rows = [
        Row("unsteered", tuple(_answer(group, target, target, "none", prompt) for target in group.stages))
    ]
    for direction in [*group.stages, *group.random[:1]]:
        cells = tuple(_answer(group, direction, target, done, prompt) for target in group.stages)
        rows.append(Row(f"{verb} {direction}", cells))
    instruction = _plain(str(group.data["instruction"].values[prompt]))
    return Block(f"{kind}: {instruction}", tuple(rows))


def _answer(group: Refusal, direction: str, target: str, intervention: str, prompt: int) -> Cell:
    at = dict(
        direction=group.directions.index(direction),
        target=group.stages.index(target),
        intervention=names_of(group.data, "intervention").index(intervention),
        prompt=prompt,
    )
    if not np.isfinite(float(group.data["log_odds"].isel(at))):
        return Cell("–")
    text = _plain(str(group.data["completion"].isel(at).item()))
    return Cell(f"× {text}" if bool(group.data["refused"].isel(at)) else text)


def _plain(text: str) -> str:
    """Return text on one line; never empty."""
    return " ".join(text.split()) or "(nothing)"


def _tidy_answers(group: Refusal) -> Iterator[dict]:
    data = group.data
    interventions = names_of(data, "intervention")
    arrays = {
        name: data[name].values
        for name in ("log_odds", "refused", "phrase", "completion", "mean_nll", "repeated")
    }
    for t, target in enumerate(group.stages):
        for i, intervention in enumerate(interventions):
            for d, direction in enumerate(group.directions if intervention != "none" else [""]):
                for p, (kind, instruction) in enumerate(
                    zip(data["kind"].values, data["instruction"].values, strict=True)
                ):
                    at = (d, t, i, p)
                    if not np.isfinite(arrays["log_odds"][at]):
                        continue
                    yield {
                        "study": "refusal",
                        "family": group.family,
                        "target": target,
                        "intervention": intervention,
                        "direction": direction,
                        "kind": str(kind),
                        "instruction": str(instruction),
                        **{name: values[at] for name, values in arrays.items()},
                    }
