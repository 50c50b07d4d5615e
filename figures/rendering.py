"""Render a store: write every figure and table that its groups allow, and the report page."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
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
    """Draw every figure and table that the store's groups can give, and return the files, in the order of the report.

    The same store gives the same bytes each time. A figure is `OUT/knowledge/cities/heatmaps.png` and `.pdf`
    with its caption in `.txt`; a table is `OUT/tables/knowledge_storage.csv` (tidy), `.md` and `.tex`. An
    unfinished store is drawn with what it has; every caption, title and table then says so.

    Example
    -------
    >>> render("runs/knowledge", "runs/figures", only="heatmaps")
    [PosixPath('runs/figures/knowledge/cities/heatmaps.png'), ...]

    Arguments
    ---------
    url: the store: a folder, `file://` or `s3://bucket/prefix`.
    out: a folder; made if it is not there.
    only: names of figures, a study, or a kind that only one study has; everything when not given.
    progress: called with the path of each file, relative to `out`, once it is there.
    page: write `OUT/report.html` too, in the same pass.

    Raises
    ------
    FigureError: unknown name, nothing finished yet, `out` cannot be written, or a name that leads out of it.
    stores.StoreError: no store at `url`, or data in it that are lost or altered.
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
    """Write `OUT/report.html`: one page with every figure, table, caption and the run's record, nothing external.

    `render(..., page=True)` writes the same page along with the files, in one pass.

    Example
    -------
    >>> report("runs/knowledge", "runs/figures")
    PosixPath('runs/figures/report.html')

    Raises
    ------
    FigureError: nothing finished yet, or `out` cannot be written.
    stores.StoreError: no store at `url`.
    """
    from posttrace.figures.page import Page

    source = open_source(url)
    folder = output_folder(out)
    html = Page(source)
    for product in products(source, chosen()):
        html.add(product, encoded(product, formats=("png",)))
    return write_whole(folder / PAGE, html.content())


def products(source: Source, wanted: Sequence[Figure]) -> Iterator[Drawing | Table]:
    """Yield drawings and tables one by one, so that only one figure is held in memory.

    Raises
    ------
    FigureError: the store has no group of a wanted study, or nothing in it is finished.
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
                yield from resolve_name(figure.function)(groups)
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
