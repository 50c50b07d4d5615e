"""Tables of the study `norms`."""

import pandas as pd

from posttrace.figures.tables import Block, Cell, Row, Table, number
from posttrace.figures.verdict import Verdict


def gap(groups):
    """Yield the table of gaps, a block for each set."""
    blocks, tidy = [], []
    for one in groups:
        rows = [
            Row(s, tuple(Cell(number(float(v), 3)) for v in gaps))
            for s, gaps in zip(one.stages, one.gap, strict=True)
        ]
        blocks.append(Block(f"{one.name}, n = {one.norm.shape[1]}", tuple(rows)))
        tidy.append(pd.DataFrame(one.gap, index=one.stages).assign(set=one.name))
    yield Table(
        name="norms_gap",
        heading="Length of the stream, true minus false",
        caption="Difference of the mean lengths of true and of false statements (model units), by layer.",
        columns=tuple(f"layer {k}" for k in range(groups[0].gap.shape[1])),
        blocks=tuple(blocks),
        records=pd.concat(tidy).reset_index(names="model"),
    )


def verdict(groups):
    """Say how far apart true and false statements are in the last layer of the last stage."""
    stage, gap, n = groups[0].stages[-1], float(groups[0].gap[-1, -1]), groups[0].norm.shape[1]
    return Verdict(sentence=f"Gap of {stage}: {gap:.3f} model units (n = {n} statements).")
