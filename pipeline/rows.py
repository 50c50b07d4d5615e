"""Rows of a user's CSV file: read once, in bounded memory, with everything that would be misread refused."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from posttrace.pipeline.errors import JobError, shown
from posttrace.pipeline.files import read_bytes

MOST_ROWS = 250_000
"""Rows that are kept of a file."""


class Row(NamedTuple):
    """Cells of one row, in the order of the columns asked for; None for an optional column that the file lacks."""

    line: int
    """Line of the file on which the row ends, from 1."""
    cells: tuple[str | None, ...]

    def text(self, column: int) -> str:
        """Return the cell of a column that was needed, which every row has."""
        cell = self.cells[column]
        assert cell is not None, f"column {column} is optional"
        return cell


def read_rows(
    path: str,
    place: str,
    fix: str,
    *,
    needed: Sequence[str],
    optional: Sequence[str] = (),
    where: Mapping[str, str] | None = None,
    help: str,
) -> list[Row]:
    """Return the rows of a CSV file (UTF-8, a header line first) with the values of `where`; blank lines are skipped.

    >>> read_rows("mine.csv", "set mine", "edit sets", needed=["statement"], help="")[0].cells     # doctest: +SKIP
    ('The city of Lyon is in France.',)

    needed, optional: columns whose cells are returned. place, fix: beginning and end of messages about the file; help:
    end of those about its columns. Raises JobError for a file that cannot be read (see pipeline.files), lacks a column
    or is not CSV.
    """
    where = where or {}
    content = read_bytes(path, place, fix)
    if b"\0" in content:
        raise JobError(
            f"{place}: {shown(path)} is not text: byte {content.index(0)} is NUL; save it as UTF-8 text"
        )
    stream = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline="")
    reader = csv.reader(stream, strict=True)
    try:
        header = next((row for row in reader if row), [])
        _check_header(header, [*needed, *where], path, place, help)
        wanted = [header.index(c) if c in header else None for c in (*needed, *optional)]
        kept = [(header.index(column), value) for column, value in where.items()]
        rows: list[Row] = []
        for row in reader:
            if len(row) != len(header):
                row = _fitted(row, len(header), f"{place}: {shown(path)} line {reader.line_num}")
            if row and all(row[i] == value for i, value in kept):
                if len(rows) == MOST_ROWS:
                    fitting = " that fit `where`" if where else ""
                    raise JobError(
                        f"{place}: {shown(path)} has more than {MOST_ROWS:,} rows{fitting}, the most that are taken; "
                        "give a part of the file"
                    )
                rows.append(Row(reader.line_num, tuple([None if i is None else row[i] for i in wanted])))
    except UnicodeDecodeError:
        raise JobError(
            f"{place}: {shown(path)} is not UTF-8 text (after line {reader.line_num}); convert it, e.g. with iconv"
        ) from None
    except csv.Error as error:
        raise JobError(
            f"{place}: {shown(path)} is not readable as CSV: line {reader.line_num}: {error}; quotes must be closed, "
            f"and doubled within a quoted text, which has at most {csv.field_size_limit():,} characters"
        ) from None
    if not rows and not kept:
        raise JobError(f"{place}: {shown(path)} has no rows under its header; {help}")
    return rows


def _check_header(header: list[str], columns: list[str], path: str, place: str, help: str) -> None:
    if len(header) == 1 and (other := next((d for d in ";\t" if d in header[0]), "")):
        word = "semicolons" if other == ";" else "tabs"
        raise JobError(
            f"{place}: {shown(path)} is separated by {word} (its header is {shown(repr(header[0]))}); save it with "
            f"commas; {help}"
        )
    for column in columns:
        if header.count(column) != 1:
            has = shown(", ".join(header)) if header else "no rows"
            found = "has no column" if column not in header else "has more than one column"
            raise JobError(f"{place}: {shown(path)} {found} {shown(repr(column))} (it has {has}); {help}")


def _fitted(row: list[str], width: int, where: str) -> list[str]:
    """Fill up a short row, and cut empty cells off the end of a longer one; an empty one is none."""
    if any(row[width:]):
        raise JobError(
            f"{where}: {len(row)} cells under a header of {width}; put texts that contain commas in double quotes"
        )
    return [*row, *[""] * (width - len(row))][:width] if row else []
