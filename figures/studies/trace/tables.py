"""Tables of what each stage says next, with and without the operations of a free-form job."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from posttrace.figures.studies.trace.data import TraceGroup
from posttrace.figures.studies.trace.text import visible
from posttrace.figures.tables import Block, Cell, Row, Table, number

if TYPE_CHECKING:
    import xarray as xr


SHOWN = 5
"""Tokens per prompt in the table; the CSV has all."""


def next_tokens(groups: Sequence[TraceGroup]) -> Iterator[Table]:
    """Yield the table `trace_next_tokens`, a block per prompt.

    Parameters
    ----------
    groups
        `trace/output`, dims model x intervention x prompt x rank.
    """
    for group in groups:
        if group.name == "output":
            yield _table(group.data.load())


def completions(groups: Sequence[TraceGroup]) -> Iterator[Table]:
    """Yield the table `trace_completions`, a block per prompt, a column per stage.

    Parameters
    ----------
    groups
        `trace/completion`, dims model x intervention x prompt.
    """
    for group in groups:
        if group.name == "completion":
            yield _side_by_side(group.data.load())


def _side_by_side(data: xr.Dataset) -> Table:
    blocks = []
    for p, prompt in enumerate(data.prompt_text.values):
        rows = []
        for i, intervention in enumerate(data.intervention.values):
            texts = (" ".join(str(text).split()) for text in data.completion.values[:, i, p])
            rows.append(Row(str(intervention), tuple(Cell(text or "–") for text in texts)))
        blocks.append(Block(visible(str(prompt)), tuple(rows)))
    tidy = data.completion.to_dataframe().reset_index()
    rows = data.completion_id.values.reshape(len(tidy), -1)
    tidy["token_ids"] = [" ".join(str(i) for i in row if i >= 0) for row in rows]
    return Table(
        name="trace_completions",
        heading="Answers side by side",
        caption=(
            "Greedy continuations of every prompt without intervention (none) and with the job's patches and steers "
            f"applied (all); –: nothing, or not finished yet. Family: {data.attrs.get('family', '')}."
        ),
        columns=tuple(map(str, data.model.values)),
        blocks=tuple(blocks),
        records=tidy[["model", "intervention", "prompt", "prompt_text", "completion", "token_ids"]],
        prose=True,
    )


def _table(output: xr.Dataset) -> Table:
    import numpy as np

    blocks, tidy = [], []
    for p, prompt in enumerate(map(str, output.prompt_text.values)):
        rows = []
        for model in map(str, output.model.values):
            for intervention in map(str, output.intervention.values):
                one = output.sel(model=model, intervention=intervention).isel(prompt=p)
                entropy = float(one.entropy)
                if np.isnan(entropy):
                    continue  # this unit is not done yet
                tokens = [str(token) for token in one.next_token.values]
                ids = map(int, one.next_token_id.values)
                probabilities = np.exp(one.logprob.values.astype("float64"))
                shown = list(zip(tokens, ids, probabilities, strict=True))
                cells = [Cell(f"{visible(token)} {number(float(q), 3)}") for token, _, q in shown[:SHOWN]]
                rows.append(Row(f"{model}, {intervention}", (*cells, Cell(number(entropy, 3)))))
                tidy += [
                    {
                        "study": "trace",
                        "prompt": p,
                        "text": prompt,
                        "model": model,
                        "intervention": intervention,
                        "rank": rank,
                        "token": token,
                        "token_id": token_id,
                        "probability": q,
                        "entropy_nats": entropy,
                    }
                    for rank, (token, token_id, q) in enumerate(shown)
                ]
        blocks.append(Block(visible(prompt), tuple(rows)))
    count = min(SHOWN, output.sizes["rank"])
    return Table(
        name="trace_next_tokens",
        heading="Next tokens",
        caption=(
            f"The {count} most probable next tokens with their probabilities, and the entropy of the whole "
            "distribution in nats. One run of each prompt, so there is no interval; family "
            f"{output.attrs.get('family', '')}."
        ),
        columns=(*(f"rank {rank + 1}" for rank in range(count)), "entropy"),
        blocks=tuple(blocks),
        records=tidy,
    )
