"""Render a store: write the figures and tables of its groups, and the report page."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from posttrace.figures.errors import FigureError
from posttrace.figures.files import contained, output_folder, write_whole
from posttrace.figures.registry import STUDIES, chosen, study
from posttrace.figures.store_reader import Source, open_source
from posttrace.figures.study import Figure

if TYPE_CHECKING:
    from posttrace.figures.drawing import Drawing
    from posttrace.figures.tables import Table

PAGE = "report.html"


def render(
    url: str | os.PathLike[str],
    out: str | os.PathLike[str],
    only: str | Sequence[str] | None = None,
    progress: Callable[[str], None] | None = None,
    page: bool = False,
) -> list[Path]:
    """Draw the figures and tables of a store, and return the files in the order of the report.

    The same store always gives the same bytes. A figure is `OUT/knowledge/cities/heatmaps.png` and `.pdf`, with its
    caption in `.txt`; a table is `OUT/tables/knowledge_storage.csv` (tidy), `.md` and `.tex`. An unfinished store is
    drawn as far as it goes, and every caption, title and table says so.

    Parameters
    ----------
    url
        The store: a folder, `file://` or `s3://bucket/prefix`.
    out
        The output folder; created if missing.
    only
        Names of figures, a study, or a kind that only one study has; everything by default.
    progress
        Called with the path of each file, relative to `out`, once it is written.
    page
        Write `OUT/report.html` too, in the same pass.

    Raises
    ------
    FigureError
        An unknown name, nothing finished yet, or `out` cannot be written.
    stores.StoreError
        There is no store at `url`, or its data is lost or altered.

    Examples
    --------
    >>> render("runs/knowledge", "runs/figures", only="heatmaps")
    [PosixPath('runs/figures/knowledge/cities/heatmaps.png'), ...]
    """
    from posttrace.figures.page import Page

    wanted = chosen(only)
    source = open_source(url)
    folder = output_folder(out)
    html = Page(source) if page else None
    written = []

    def keep(relative: str, content: bytes) -> None:
        written.append(write_whole(contained(folder, relative), content))
        if progress is not None:
            progress(relative)

    for product in products(source, wanted):
        files = encoded(product)
        for relative, content in files.items():
            keep(relative, content)
        if html is not None:
            html.add(product, files)
    if html is not None:
        keep(PAGE, html.content())
    return written


def report(url: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Write `OUT/report.html`: one self-contained page with every figure, table and caption, and the run's record.

    `render(..., page=True)` writes the same page together with the files.

    Raises
    ------
    FigureError
        Nothing is finished yet, or `out` cannot be written.
    stores.StoreError
        There is no store at `url`.

    Examples
    --------
    >>> report("runs/knowledge", "runs/figures")
    PosixPath('runs/figures/report.html')
    """
    from posttrace.figures.page import Page

    source = open_source(url)
    folder = output_folder(out)
    html = Page(source)
    for product in products(source, chosen()):
        html.add(product, encoded(product, formats=("png",)))
    return write_whole(folder / PAGE, html.content())


def products(source: Source, wanted: Sequence[Figure]) -> Iterator[Drawing | Table]:
    """Yield drawings and tables one by one, so that only one figure is in memory.

    Raises
    ------
    FigureError
        The store has no group of a wanted study, or nothing in it is finished.
    """
    from pkgutil import resolve_name

    planned: list[str] = []
    drawn = False
    for name in STUDIES:
        declared = study(name)
        figures = [figure for figure in declared.figures if figure in wanted]
        if not figures:
            continue
        read = resolve_name(declared.reader)
        groups = [read(dataset) for dataset in source.datasets(name)]
        planned += [f"{name}/{group.name}: {group.progress}" for group in groups]
        groups = [group for group in groups if group.any_finished]
        drawn = drawn or bool(groups)
        if groups:
            for figure in figures:
                yield from map(_legible, resolve_name(figure.function)(groups))
    if drawn:
        return
    if planned:
        raise FigureError(
            f"{source.url}: the store is unfinished, no pair is complete yet ({'; '.join(planned)}); "
            "run its job again to resume, then draw"
        )
    studies = dict.fromkeys(source.study_of(path) for path in source.groups)
    raise FigureError(
        f"{source.url}: no group to draw; it holds {', '.join(studies)}, wanted are figures of "
        f"{', '.join(dict.fromkeys(figure.name.split('/')[0] for figure in wanted))}"
    )


def _legible(product: Drawing | Table) -> Drawing | Table:
    """Return a drawing whose texts our font can show; where that took a change, its caption says so."""
    from posttrace.figures import theme
    from posttrace.figures.drawing import Drawing

    if isinstance(product, Drawing) and theme.spell_out(product.figure):
        said = "Characters that the font of figures lacks are written as their codes (U+4F4D)."
        return replace(product, caption=f"{product.caption} {said}")
    return product


def encoded(product: Drawing | Table, formats: Sequence[str] | None = None) -> dict[str, bytes]:
    """Return the files of a drawing or table: path relative to the output folder -> content."""
    from posttrace.figures import tables, theme
    from posttrace.figures.tables import Table

    if isinstance(product, Table):
        writers = {
            kind: write for kind, write in tables.WRITERS.items() if formats is None or kind in formats
        }
        return {f"tables/{product.name}.{kind}": write(product).encode() for kind, write in writers.items()}
    files = {
        f"{product.name}.{kind}": theme.encode(product.figure, kind) for kind in formats or theme.FORMATS
    }
    if formats is None:
        files[f"{product.name}.txt"] = f"{product.caption}\n".encode()
    return files
