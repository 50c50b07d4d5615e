"""Tables of the study `norms`."""

import pandas as pd

from posttrace.figures.tables import Block, Cell, Row, Table, number


def gap(groups):
    """Yield the table of gaps, a block for each set."""
    blocks, tidy = [], []
    for one in groups:
        rows = [Row(s, tuple(Cell(number(float(v), 3)) for v in one.gap[i])) for i, s in enumerate(one.stages)]
        blocks.append(Block(f"{one.name}, n = {one.norm.shape[1]}", tuple(rows)))
        for i, s in enumerate(one.stages):
            tidy += [{"set": one.name, "model": s, "layer": k, "gap": float(v)} for k, v in enumerate(one.gap[i])]
    yield Table(
        name="norms_gap",
        heading="Length of the stream, true minus false",
        caption="Difference of the mean lengths of true and of false statements (model units), by layer.",
        columns=tuple(f"layer {k}" for k in range(groups[0].gap.shape[1])),
        blocks=tuple(blocks),
        tidy=pd.DataFrame(tidy),
    )
