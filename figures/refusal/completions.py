"""Answers side by side: what every stage says when a direction is ablated or added."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from posttrace.figures.refusal.results import KINDS, SCORED, Refusal
from posttrace.figures.tables import Block, Cell, Row, Table

SHOWN = 5
"""Instructions of each kind in the table as read, spread over the test prompts; the CSV has all."""


def completions(groups: Sequence[Refusal]) -> Iterator[Table]:
    """Yield answers side by side, a block for each instruction, a column for each stage.

    Example
    -------
    >>> [table.name for table in completions([refusal])]
    ['refusal_completions']
    """
    import pandas as pd

    for group in groups:
        blocks = [
            _block(group, kind, prompt)
            for kind in KINDS
            for prompt in _spread(np.flatnonzero(group.of_kind(kind)))
        ]
        yield Table(
            "refusal_completions",
            "Answers side by side",
            f"{group.incomplete}{group.family}: greedy answers of at most {group.data.attrs['new_tokens']} tokens to "
            f"{SHOWN} of {group.planned('harmful')} harmful and {SHOWN} of {group.planned('harmless')} harmless test "
            f"prompts, evenly spaced, not picked. Harmful: direction ablated; harmless: direction added. An answer "
            f"that "
            f"begins with a refusal phrase is marked with ×. The CSV has all prompts, both interventions and all "
            f"directions.",
            group.stages,
            tuple(blocks),
            pd.DataFrame(list(_tidy(group))),
            prose=True,
        )


def _spread(prompts: np.ndarray) -> np.ndarray:
    return prompts[np.unique(np.linspace(0, len(prompts) - 1, SHOWN).round().astype(int))]


def _block(group: Refusal, kind: str, prompt: int) -> Block:
    done = SCORED[kind]
    verb = {"ablation": "without", "addition": "with"}[done]
    rows = [Row("as it is", tuple(_cell(group, target, target, "none", prompt) for target in group.stages))]
    for direction in [*group.stages, *group.random[:1]]:
        cells = tuple(_cell(group, direction, target, done, prompt) for target in group.stages)
        rows.append(Row(f"{verb} {direction}", cells))
    instruction = _plain(str(group.data["instruction"].values[prompt]))
    return Block(f"{kind}: {instruction}", tuple(rows))


def _cell(group: Refusal, direction: str, target: str, intervention: str, prompt: int) -> Cell:
    at = dict(
        direction=group.directions.index(direction),
        target=group.stages.index(target),
        intervention=[str(i) for i in group.data["intervention"].values].index(intervention),
        prompt=prompt,
    )
    if not np.isfinite(float(group.data["log_odds"].isel(at))):
        return Cell("–")
    text = _plain(str(group.data["completion"].isel(at).item()))
    return Cell(f"× {text}" if bool(group.data["refused"].isel(at)) else text)


def _plain(text: str) -> str:
    """One line of text that can be seen."""
    return " ".join(text.split()) or "(nothing)"


def _tidy(group: Refusal) -> Iterator[dict]:
    data = group.data
    interventions = [str(i) for i in data["intervention"].values]
    arrays = {
        name: data[name].values
        for name in ("log_odds", "refused", "phrase", "completion", "unlikelihood", "repeated")
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
