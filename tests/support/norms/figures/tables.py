"""Tables of the study `norms`."""

import pandas as pd

from posttrace.figures.tables import Block, Cell, Row, Table, number


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
        tidy=pd.concat(tidy).reset_index(names="model"),
    )
