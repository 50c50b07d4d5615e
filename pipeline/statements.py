"""Read a statement set: a CSV file with the columns `statement` and `label`."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from posttrace.pipeline.errors import JobError, shown
from posttrace.pipeline.files import read_bytes
from posttrace.pipeline.rows import Row, read_rows
from posttrace.pipeline.spec import StatementSet

T = TypeVar("T")

MOST = 100_000
"""Statements of a set that are tokenised at most."""
DRAWN = 20_000
"""Statements that pairs are made from, where the set has more and the job wants some pairs only."""
CHARACTERS = 125
"""Of a statement, on average: sets of longer ones may have fewer."""

LABELS = {"1": True, "0": False, "true": True, "false": False}
"""How a file may write labels, in any case."""


class Statement(NamedTuple):
    """One row of a set."""

    text: str
    label: bool
    """Whether the statement is true."""
    pair: str
    """What the two rows of a free-form pair have in common; empty in a set whose pairs are made by template."""


def read_set(spec: StatementSet) -> list[Statement]:
    """Return the statements of a set, in the file's order, filtered by `where`.

    >>> read_set(StatementSet(name="mine", csv="mine.csv"))            # doctest: +SKIP
    [Statement(text='The city of Lyon is in France.', label=True, pair=''), ...]

    Raises JobError naming file, line and column of what is wrong.
    """
    # What ties the rows of a free-form pair is found among all rows.
    free = spec.pairs == "free"
    rows = read_rows(
        spec.csv,
        f"set {spec.name}",
        "edit sets",
        needed=("statement", "label", *(spec.where if free else ())),
        optional=("pair", "id"),
        where={} if free else spec.where,
        help="a set needs the columns statement,label (1 or true, 0 or false)",
    )
    ties = _ties(rows) if free else [""] * len(rows)
    wanted = tuple(spec.where.values()) if free else ()
    statements = [
        _statement(spec, row, tie)
        for row, tie in zip(rows, ties, strict=True)
        if row.cells[2 : 2 + len(wanted)] == wanted
    ]
    if not statements:
        raise JobError(f"set {spec.name}: no row of {shown(spec.csv)} has {spec.where}; edit where")
    return statements


def _ties(rows: list[Row]) -> list[str]:
    """Per row, what ties it to the other half of its pair, of which a row may have none.

    Halves follow each other, one true and one false, with one value in the column `pair` or `id`, unless that just
    numbers the rows.
    """
    same = [""] * len(rows)
    for column in (-2, -1):
        found = [cell for cell in (row.cells[column] for row in rows) if cell is not None]
        if found and len(set(found)) < len(rows):
            same = found
            break
    labels = [LABELS.get(row.text(1).strip().lower()) for row in rows]
    # Several pairs may come from one source and share its `id`: their rows are not all tied to each other.
    ties, line = [f"line {i}" for i in range(len(rows))], 0
    while line + 1 < len(rows):
        together = labels[line] != labels[line + 1] and same[line] == same[line + 1]
        if together:
            ties[line + 1] = ties[line]
        line += 1 + together
    return ties


def _statement(spec: StatementSet, row: Row, tie: str) -> Statement:
    text, label = row.text(0).strip(), row.text(1).strip()
    if label.lower() not in LABELS or not text:
        raise JobError(
            f"set {spec.name}: {shown(spec.csv)} line {row.line}: statement {shown(repr(text))} with label "
            f"{shown(repr(label))}; the statement must have a text and the label be 1 or true, 0 or false"
        )
    return Statement(text=text, label=LABELS[label.lower()], pair=tie)


def repeated_rows(spec: StatementSet) -> int:
    """How many rows of a set say what an earlier one says; of ready-made pairs, how many stand in a repeated pair.

    >>> repeated_rows(StatementSet(name="mine", csv="mine.csv"))       # doctest: +SKIP
    0
    """
    rows = read_rows(
        spec.csv, f"set {spec.name}", "edit sets", needed=("statement", "label"), where=spec.where, help=""
    )
    if spec.pairs == "free":
        cells = [(rows[i].cells, rows[i + 1].cells) for i in range(0, len(rows) - 1, 2)]
        return 2 * (len(cells) - len(set(cells)))
    return len(rows) - len({row.cells for row in rows})


def check_number(spec: StatementSet, statements: Sequence[Statement], key: str) -> None:
    """Raise JobError for more statements than can be tokenised; key: what the job may set to take fewer.

    >>> check_number(spec, statements, "max_statements")               # doctest: +SKIP
    """
    text = sum(len(s.text) for s in statements)
    if len(statements) > MOST or text > MOST * CHARACTERS:
        raise JobError(
            f"set {spec.name}: {len(statements):,} statements of {text:,} characters are more than the {MOST:,} of "
            f"{MOST * CHARACTERS:,} that are taken; set {key}, or choose rows with `where`"
        )


def drawn(spec: StatementSet, statements: list[Statement], seed: int) -> list[Statement]:
    """Of a large set, some statements to make pairs from, drawn with the seed and left in their order.

    >>> len(drawn(spec, statements, seed=0))                           # doctest: +SKIP
    20000

    Rows of a free-form pair stay together. A set of at most `DRAWN` statements is returned as it is.
    """
    text = sum(len(s.text) for s in statements)
    share = min(1, DRAWN / len(statements), DRAWN * CHARACTERS / text)
    if share == 1:
        return statements
    ties = [s.pair or i for i, s in enumerate(statements)]
    groups = list(dict.fromkeys(ties))
    taken = set(random.Random(f"{seed}/{spec.name}/drawn").sample(groups, max(1, int(share * len(groups)))))
    return [s for s, tie in zip(statements, ties, strict=True) if tie in taken]


def sampled(items: Sequence[T], n: int | None, seed: str) -> list[T]:
    """At most n of some items, drawn with the seed and left in their order; all of them for None.

    >>> sampled("abcde", 2, "0/cities/statements")
    ['a', 'd']
    """
    if n is None or n >= len(items):
        return list(items)
    return [items[i] for i in sorted(random.Random(seed).sample(range(len(items)), n))]


def file_hash(path: str) -> str:
    """SHA-256 of a set's file (hex), so that a changed file is noticed when a run goes on."""
    return hashlib.sha256(read_bytes(path, "job", "run it again when the file is there")).hexdigest()
