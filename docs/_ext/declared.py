"""Directives that write what the package declares: keys of jobs, stored arrays, figures, commands.

    ```{job-keys} knowledge
    ```

`job-keys` without a study lists the keys that the jobs of all studies have.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from io import StringIO

from docutils import nodes
from rich.console import Console
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from posttrace.figures.registry import figures
from posttrace.pipeline.cli import app
from posttrace.pipeline.describe import Key, keys
from posttrace.pipeline.job import load_job
from posttrace.pipeline.plan import prepare
from posttrace.pipeline.studies import STUDIES
from posttrace.stores.schema import Array, Group


def shared_keys() -> list[Key]:
    """Return the keys that all studies have alike, or all but one that narrows them."""
    listed = [keys(study) for study in STUDIES]
    return [key for key in listed[0] if sum(key in one for one in listed) >= len(listed) - 1]


def own_keys(study: str) -> list[Key]:
    """Return the keys of a study's jobs beyond those that every study has."""
    shared = shared_keys()
    return [key for key in keys(study) if key not in shared and key.place != "study"]


ALSO = {"stages": ["recipe=embedded"]}
"""Keys without which a built-in job leaves arrays out."""


@cache
def groups(study: str) -> list[Group]:
    """Return what the built-in job of a study stores."""
    return list(prepare(load_job(study, ALSO.get(study, []))).groups)


class Declared(SphinxDirective):
    """A directive whose content is Markdown made from a declaration."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Parse what `lines` yields."""
        lines = self.lines(self.arguments[0] if self.arguments else "")
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)

    def lines(self, study: str) -> Iterator[str]:
        """Yield Markdown."""
        raise NotImplementedError


class JobKeys(Declared):
    """A definition for each key."""

    def lines(self, study: str) -> Iterator[str]:
        """Yield a definition list."""
        for key in own_keys(study) if study else shared_keys():
            facts = [
                key.type,
                "required" if key.default == "required" else f"default `{key.default}`",
                key.range,
            ]
            yield f"`{key.place}`"
            yield f": *{_plain(', '.join(fact for fact in facts if fact))}*"
            yield ""
            yield f"  {key.doc}"
            yield ""


class StoredArrays(Declared):
    """A table for each group of the built-in job; sets, which have the same arrays, share one."""

    def lines(self, study: str) -> Iterator[str]:
        """Yield tables."""
        alike: dict[tuple, list[str]] = {}
        arrays: dict[tuple, tuple[Array, ...]] = {}
        for group in groups(study):
            what = tuple((array.name, array.dims) for array in group.arrays)
            alike.setdefault(what, []).append(group.path)
            arrays[what] = group.arrays
        for what, paths in alike.items():
            yield f"Group {', '.join(f'`{path}`' for path in paths)}"
            yield ""
            yield "| array | dims | type, unit | |"
            yield "|---|---|---|---|"
            for array in arrays[what]:
                cells = [", ".join(array.dims), f"{array.dtype}; {array.unit}", array.description]
                yield f"| `{array.name}` | {' | '.join(_plain(cell) for cell in cells)} |"
            yield ""


class FigureList(Declared):
    """A row for each figure and table of a study."""

    def lines(self, study: str) -> Iterator[str]:
        """Yield a table."""
        yield "| name | what it shows |"
        yield "|---|---|"
        for figure in figures():
            if figure.name.startswith(f"{study}/"):
                yield f"| `{figure.name}` | {_plain(figure.description)} |"


class CommandHelp(Declared):
    """What `posttrace COMMAND --help` prints, for each command."""

    def lines(self, _: str) -> Iterator[str]:
        """Yield a section for each command."""
        for name in app:
            if not name.startswith("-"):
                console = Console(file=StringIO(), width=88)
                app.help_print([name], console=console)
                yield f"## {name}"
                yield "```text"
                yield console.file.getvalue().strip()
                yield "```"


def _plain(text: str) -> str:
    """Return text that Markdown leaves as it is, within a table too; code stays code."""
    parts = text.split("`")
    for i, part in enumerate(parts):
        for mark in "|" if i % 2 else "\\|<>~_*":
            part = part.replace(mark, f"\\{mark}")
        parts[i] = part
    return "`".join(parts)


def setup(sphinx: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    sphinx.add_directive("job-keys", JobKeys)
    sphinx.add_directive("stored-arrays", StoredArrays)
    sphinx.add_directive("figure-list", FigureList)
    sphinx.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True}
