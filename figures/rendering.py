"""Render stores: write the figures and tables of their groups, and the report page."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from posttrace.figures.errors import FigureError
from posttrace.figures.files import contained, default_folder, output_folder, write_whole
from posttrace.figures.registry import STUDIES, chosen, study
from posttrace.figures.store_reader import Source, open_source, open_sources
from posttrace.figures.study import Figure

if TYPE_CHECKING:
    from posttrace.figures.drawing import Drawing
    from posttrace.figures.group import Group
    from posttrace.figures.tables import Table

PAGE = "report.html"


@dataclass(frozen=True)
class Product:
    """A drawing or table, and what it was made of."""

    study: str
    groups: Sequence[Group]
    """All groups of the study that have something finished."""
    figure: Figure
    """The kind that it is of."""
    content: Drawing | Table


def render(
    url: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
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
        The output folder, created if missing; by default `<store>-figures` next to the store.
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
    folder = output_folder(default_folder([url], "figures") if out is None else out)
    html = Page([source]) if page else None
    written = []

    def keep(relative: str, content: bytes) -> None:
        written.append(write_whole(contained(folder, relative), content))
        if progress is not None:
            progress(relative)

    for product in products(source, wanted):
        files = encoded(product.content)
        for relative, content in files.items():
            keep(relative, content)
        if html is not None:
            html.add(source, product, files)
    if html is not None:
        keep(PAGE, html.content())
    return written


def report(
    urls: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
) -> Path:
    """Write `OUT/report.html`: one self-contained page about one store or several.

    It begins with what was compared, a sentence and a figure for each study; then every figure, table and caption
    follow, and the runs' records. `render(..., page=True)` writes the same page of one store together with the files.

    Parameters
    ----------
    urls
        A store or several, in the order of the page: folders, `file://` or `s3://bucket/prefix`.
    out
        The output folder, created if missing; by default next to the stores, with their names: `runs/knowledge-report`.

    Raises
    ------
    FigureError
        Nothing is finished yet in one of the stores, a store is named twice, or `out` cannot be written.
    stores.StoreError
        There is no store at a URL.

    Examples
    --------
    >>> report("runs/knowledge", "runs/figures")
    PosixPath('runs/figures/report.html')
    """
    from posttrace.figures.page import Page

    stores = [urls] if isinstance(urls, str | os.PathLike) else list(urls)
    sources = open_sources(stores)
    folder = output_folder(default_folder(stores, "report") if out is None else out)
    html = Page(sources)
    for source in sources:
        for product in products(source, chosen()):
            html.add(source, product, encoded(product.content, formats=("png",)))
    return write_whole(folder / PAGE, html.content())


def products(source: Source, wanted: Sequence[Figure]) -> Iterator[Product]:
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
                for content in map(_legible, resolve_name(figure.function)(groups)):
                    yield Product(name, groups, figure, content)
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
