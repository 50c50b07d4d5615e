"""Tables in four forms: tidy CSV, Markdown, LaTeX (booktabs), and cells for the HTML page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Cell:
    """A number as shown, with its interval."""

    text: str
    interval: str = ""

    def __str__(self) -> str:
        return f"{self.text} {self.interval}" if self.interval else self.text


@dataclass(frozen=True)
class Row:
    """A label and a cell for each column."""

    label: str
    cells: tuple[Cell, ...]
    published: bool = False
    """Published numbers of another model, for reference: shown only on the HTML page, in italics."""


@dataclass(frozen=True)
class Block:
    """Rows under one heading ("base and instruct, storage")."""

    heading: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table for reading (blocks) and for computing (tidy)."""

    name: str
    """File name without ending, under `tables/`: "knowledge_storage"."""
    heading: str
    caption: str
    columns: tuple[str, ...]
    """Column headings, without that of the labels."""
    blocks: tuple[Block, ...]
    records: Sequence[Mapping[str, Any]] | pd.DataFrame
    """The rows of the CSV file, one number per row."""
    prose: bool = False
    """Whether cells hold text rather than numbers: set flush left and wrapped."""

    @cached_property
    def tidy(self) -> pd.DataFrame:
        """The records as a table for computing."""
        import pandas as pd

        return pd.DataFrame(self.records)


def number(value: float, digits: int) -> str:
    """Format a number with fixed digits; a dash if it is undefined.

    Examples
    --------
    >>> number(0.99234, 3), number(float("nan"), 3)
    ('0.992', '–')
    """
    # Adding 0 turns a rounded -0.0 into 0.0.
    return "–" if math.isnan(value) else f"{round(value, digits) + 0.0:.{digits}f}"


def cell(value: float, low: float, high: float, digits: int) -> Cell:
    """Format a number with its interval in brackets.

    Examples
    --------
    >>> str(cell(0.9923, 0.9801, 0.9964, digits=3))
    '0.992 [0.980, 0.996]'
    """
    if math.isnan(low) or math.isnan(high):
        return Cell(number(value, digits))
    return Cell(number(value, digits), f"[{number(low, digits)}, {number(high, digits)}]")


def as_csv(table: Table) -> str:
    """Return the tidy table as CSV with six significant digits; text that a spreadsheet would run is escaped by `'`.

    Examples
    --------
    >>> as_csv(table).splitlines()[0].startswith("study,set")
    True
    """
    tidy = table.tidy.map(lambda value: _inert(value) if isinstance(value, str) else value)
    return tidy.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def as_markdown(table: Table) -> str:
    """Return the table as Markdown, a section for each block."""
    lines = [f"# {_markdown(table.heading)}", "", _wrapped_for_markdown(table.caption), ""]
    for block in table.blocks:
        rows = [[row.label, *map(str, row.cells)] for row in _ours(block)]
        rows = [[_markdown(text) for text in row] for row in ([block.heading, *table.columns], *rows)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        head, *body = (
            " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows
        )
        rule = " | ".join(
            "-" * width if i == 0 or table.prose else "-" * (width - 1) + ":"
            for i, width in enumerate(widths)
        )
        lines += [f"| {line} |" for line in (head, rule, *body)] + [""]
    return "\n".join(lines)


def as_latex(table: Table) -> str:
    r"""Return the table as a LaTeX `table*`; it needs `\usepackage{booktabs}`."""
    count = len(table.columns)
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table*}",
        r"\centering\scriptsize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{_latex(table.caption)}}}",
        rf"\label{{tab:{table.name.replace('_', '-')}}}",
        rf"\begin{{tabular}}{{l{_column(table) * count}}}",
        r"\toprule",
        " & ".join(["", *map(_latex, table.columns)]) + r" \\",
    ]
    for block in table.blocks:
        lines += [r"\midrule", rf"\multicolumn{{{count + 1}}}{{l}}{{\textit{{{_latex(block.heading)}}}}} \\"]
        for row in _ours(block):
            lines.append(" & ".join([_latex(row.label), *(_latex(c.text) for c in row.cells)]) + r" \\")
            if any(c.interval for c in row.cells):
                intervals = (rf"{{\tiny {_latex(c.interval)}}}" if c.interval else "" for c in row.cells)
                lines.append(" & ".join(["", *intervals]) + r" \\[2pt]")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table*}", ""])


WRITERS = {"csv": as_csv, "md": as_markdown, "tex": as_latex}
"""File ending -> the function that writes it."""


def _column(table: Table) -> str:
    return rf"p{{{0.8 / len(table.columns):.3f}\textwidth}}" if table.prose else "c"


def _ours(block: Block) -> Sequence[Row]:
    return [row for row in block.rows if not row.published]


FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Beginnings of a cell that spreadsheets take for a formula (OWASP, CSV injection)."""
MARKDOWN = {
    "\\": "\\\\",
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    "|": "\\|",
    "_": "\\_",
    "`": "\\`",
    "](": "]\\(",
}


def _inert(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA) else text


def _markdown(text: str) -> str:
    """Escape text for one line of Markdown: no HTML, links, code or tables of its own."""
    text = " ".join(text.splitlines())
    for special, escaped in MARKDOWN.items():
        text = text.replace(special, escaped)
    return text


def _wrapped_for_markdown(text: str) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(_markdown(text), 110))


LATEX = {
    "\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "→": r"$\rightarrow$", "−": "$-$", "–": "--",
    "<": "$<$", ">": "$>$", "|": r"$|$", "↓": r"$\downarrow$", "↑": r"$\uparrow$", "×": r"$\times$", "±": r"$\pm$",
    "Δ": r"$\Delta$",
}  # fmt: skip


def _latex(text: str) -> str:
    # An interval at the start of a row would be taken for the optional argument of the preceding \\.
    escaped = "".join(LATEX.get(character, character) for character in text)
    return f"{{{escaped}}}" if escaped.startswith("[") else escaped
