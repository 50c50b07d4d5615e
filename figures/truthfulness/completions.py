"""Table of the truthfulness study: how a few prompts go on before and after a push."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from posttrace.figures.tables import Block, Cell, Row, Table
from posttrace.figures.truthfulness.source import StatementSet, Summary, parted


def completions(groups: Sequence[Summary | StatementSet]) -> Iterator[Table]:
    """Yield the table `truthfulness_completions`: how a few prompts go on before and after a push.

    Example
    -------
    >>> [table.name for table in completions(groups)]
    ['truthfulness_completions']
    """
    import pandas as pd

    summary, sets = parted(groups)
    shown = [one for one in sets.values() if "completion" in one.data and one.pushed]
    if summary is None or not shown:
        return
    names = tuple(map(str, shown[0].data["shown"].values))
    blocks, tidy = [], []
    for one in shown:
        texts, numbers = one.values("completion"), one.data["sample_statement"].values
        for t, stage in enumerate(one.stages):
            rows = []
            for s, statement in enumerate(numbers):
                p = one.values("p_diff")[:, t, statement]
                label = "true" if one.truth[statement] else "false"
                cells = []
                for v, name in enumerate(names):
                    text, answer = str(texts[v, t, s]), float(p[one.directions.index(name)])
                    cells.append(Cell(_one_line(text), f"({answer:+.2f})"))
                    tidy.append(
                        {
                            "study": "truthfulness",
                            "set": one.name,
                            "family": one.family,
                            "target": stage,
                            "statement": str(one.data["text"].values[statement]),
                            "label": label,
                            "direction": name,
                            "completion": text,
                            "p_diff": answer,
                        }
                    )
                rows.append(Row(f"{one.data['text'].values[statement]} ({label})", tuple(cells)))
            blocks.append(Block(f"{one.name}, {stage}", tuple(rows)))
    yield Table(
        "truthfulness_completions",
        "Sample completions before and after",
        "Greedy continuation of the prompt as it is (none) and with the push on its two tokens; / is a line break. "
        f"In brackets P({shown[0].answers[0]}) − P({shown[0].answers[1]}) at the prompt's end. False statements are "
        "pushed towards true, true ones towards false. Drawn with the job's seed, not chosen.",
        names,
        tuple(blocks),
        pd.DataFrame(tidy),
    )


def _one_line(text: str) -> str:
    return text.strip("\n").replace("\n", " / ").strip() or "(nothing)"
