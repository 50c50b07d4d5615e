"""The report: one self-contained HTML page about one store or several."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from posttrace.figures import theme
from posttrace.figures.drawing import Drawing
from posttrace.figures.group import Group
from posttrace.figures.hover import Items, regions
from posttrace.figures.published import PAPER, PAPER_TITLE
from posttrace.figures.registry import study
from posttrace.figures.store_reader import Source
from posttrace.figures.studies.knowledge.data import ESTIMATE
from posttrace.figures.study import Study
from posttrace.figures.tables import Table
from posttrace.figures.verdict import Verdict

if TYPE_CHECKING:
    from posttrace.figures.rendering import Product

TEMPLATE = Path(__file__).with_name("report.html.jinja")
SCRIPT = Path(__file__).with_name("report.js")
CSS_PIXELS_PER_INCH = 125
"""Figures are shown slightly larger than on paper (96)."""


@dataclass(frozen=True)
class Picture:
    """A drawing as the page shows it."""

    drawing: Drawing
    png: str
    """The PNG file, base64."""
    width: int
    """CSS pixels."""
    height: int
    kind: str
    """Name of its `study.Figure`."""
    folded: bool
    regions: Sequence[Mapping[str, Any]]
    """What the mouse finds in it (see `hover.regions`)."""

    @property
    def place(self) -> str:
        """The set that it is of, or else its study."""
        return self.drawing.name.split("/", 1)[-1].rpartition("/")[0] or self.drawing.name.split("/")[0]


@dataclass(frozen=True)
class ShownTable:
    """A table as the page shows it."""

    table: Table
    kind: str
    folded: bool


@dataclass
class Part:
    """One study of one store: a section of the page."""

    name: str
    """The study."""
    anchor: str
    family: str
    declared: Study
    groups: Sequence[Group]
    tables: list[ShownTable] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    store: str = ""
    """Which store it is of, if several have this study."""

    @property
    def heading(self) -> str:
        """Study, family and, if need be, store."""
        return _joined([self.name, self.family, self.store])

    @cached_property
    def verdict(self) -> Verdict:
        """The study's result."""
        return resolve_name(self.declared.verdict)(self.groups)

    @cached_property
    def hero(self) -> Picture | None:
        """The figure under the verdict: of a set without doubts if there is one."""
        if any(table.kind == self.declared.hero for table in self.tables):
            return None  # it is a table
        shown = [picture for picture in self.pictures if picture.kind == self.declared.hero]
        shown = shown or [picture for picture in self.pictures if not picture.folded] or self.pictures
        sound = [picture for picture in shown if picture.place not in self.verdict.doubtful]
        return next(iter(sound or shown), None)

    @cached_property
    def hero_table(self) -> ShownTable | None:
        """The table under the verdict of a study that draws nothing."""
        if self.hero is not None:
            return None
        shown = [table for table in self.tables if table.kind == self.declared.hero]
        return next(iter(shown or self.tables), None)

    @property
    def numbers(self) -> list[ShownTable]:
        """All tables but the one under the verdict."""
        return [table for table in self.tables if table is not self.hero_table]

    def items(self) -> dict[str, dict[str, Any]]:
        """Return, by the id of the page's element, the single items that maps are means of; figures may share them."""
        found = dict.fromkeys(p.drawing.items for p in self.pictures if p.drawing.items is not None)
        return {self.items_id(items): items.packed() for items in found}

    def items_id(self, items: Items) -> str:
        """Return the id of the element with the items."""
        return f"{self.anchor}-items-{[p.drawing.items for p in self.pictures].index(items)}"

    def places(self) -> Iterator[tuple[str, list[Picture], list[Picture]]]:
        """Yield every set (or the study) with its open and its folded figures, without the hero."""
        for place in dict.fromkeys(picture.place for picture in self.pictures):
            rest = [p for p in self.pictures if p.place == place and p is not self.hero]
            if rest:
                yield place, [p for p in rest if not p.folded], [p for p in rest if p.folded]


class Page:
    """Collects drawings and tables one by one, and renders them as HTML.

    Parameters
    ----------
    sources
        The opened stores, in the order of the page.

    Examples
    --------
    >>> from posttrace.figures.registry import chosen
    >>> from posttrace.figures.rendering import encoded, products
    >>> from posttrace.figures.store_reader import open_source
    >>> source = open_source("runs/knowledge")
    >>> page = Page([source])
    >>> for product in products(source, chosen("judgement")):
    ...     page.add(source, product, encoded(product.content))
    >>> page.content()[:15]
    b'<!doctype html>'
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self.parts: dict[tuple[int, str], Part] = {}
        """By index of the store and study."""

    def add(self, source: Source, product: Product, files: Mapping[str, bytes]) -> None:
        """Add a table, or a drawing whose PNG is among the files."""
        part = self._part(self.sources.index(source), product)
        kind, folded, content = product.figure.name, product.figure.folded, product.content
        if isinstance(content, Table):
            part.tables.append(ShownTable(content, kind, folded))
            return
        png = files[f"{content.name}.png"]
        width, height = (round(n / theme.DPI * CSS_PIXELS_PER_INCH) for n in struct.unpack(">II", png[16:24]))
        encoded = base64.b64encode(png).decode()
        found = regions(content.figure, content.items)
        part.pictures.append(Picture(content, encoded, width, height, kind, folded, found))

    def content(self) -> bytes:
        """Return the page, UTF-8; the same stores always give the same bytes."""
        from jinja2 import Environment, StrictUndefined

        parts = list(self.parts.values())
        for (index, name), part in self.parts.items():
            if sum(other.name == name for other in parts) > 1:
                part.store = self._label(index)
        environment = Environment(
            autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
        html = template.render(
            title=_joined(
                [", ".join(dict.fromkeys(part.name for part in parts)), ", ".join(self._families())]
            ),
            parts=parts,
            compared=self._compared(),
            gaps=[gap for i, source in enumerate(self.sources) if (gap := self._gaps(i, source))],
            guide=list(self._guide()),
            runs=[(self._label(i), list(_facts(s)), _records(s)) for i, s in enumerate(self.sources)],
            filters=self._filters(),
            script=SCRIPT.read_text(encoding="utf-8"),
            paper=PAPER,
            paper_title=PAPER_TITLE,
            version=", ".join(
                dict.fromkeys(str(v) for s in self.sources if (v := s.summary.get("posttrace")))
            ),
        )
        return html.encode()

    def _part(self, index: int, product: Product) -> Part:
        key = (index, product.study)
        if key not in self.parts:
            source, name = self.sources[index], product.study
            again = sum(part.name == name for part in self.parts.values())
            anchor = f"{name}-{again + 1}" if again else name
            family = ", ".join(_values(source, "family"))
            self.parts[key] = Part(name, anchor, family, study(name), product.groups)
        return self.parts[key]

    def _label(self, index: int) -> str:
        """Return which store it is if there are several: the last part of its URL, or all if others end alike."""
        urls = [source.url.rstrip("/") for source in self.sources]
        ends = [url.rsplit("/", 1)[-1] for url in urls]
        if len(urls) == 1:
            return ""
        return ends[index] if ends.count(ends[index]) == 1 else urls[index]

    def _families(self) -> list[str]:
        return list(dict.fromkeys(family for source in self.sources for family in _values(source, "family")))

    def _compared(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """Return every family with its stages and their models, as the jobs name them."""
        found: dict[str, dict[str, str]] = {}
        for source in self.sources:
            family = ", ".join(_values(source, "family"))
            found.setdefault(family, {}).update({s: _model(source, s) for s in source.stages()})
        return [(family, list(stages.items())) for family, stages in found.items()]

    def _filters(self) -> list[tuple[str, list[str]]]:
        """Return what tables and figures can be narrowed to: sets and stages, where there are several."""
        sets = dict.fromkeys(name for source in self.sources for name in _values(source, "set"))
        stages = dict.fromkeys(name for source in self.sources for name in source.stages())
        return [(label, list(names)) for label, names in (("Set", sets), ("Stage", stages)) if len(names) > 1]

    def _guide(self) -> Iterator[tuple[str, str]]:
        guides = []
        for (index, _), part in self.parts.items():
            guides.append(part.declared.guide)
            if part.declared.estimate_guide is not None and _estimated(self.sources[index]):
                guides.append(part.declared.estimate_guide)
        for guide in dict.fromkeys(guides):
            yield from resolve_name(guide)

    def _gaps(self, index: int, source: Source) -> list[str]:
        """Return what a store lacks; nothing if it is complete."""
        done, total = source.units
        where = f"{self._label(index)}: " if self._label(index) else ""
        if done >= total:
            parts = [part for (i, _), part in self.parts.items() if i == index]
            if all(picture.drawing.complete for part in parts for picture in part.pictures):
                return []
            return [
                "INCOMPLETE",
                f"{where}Every unit is done, but some pairs have values that are missing or not finite. They are left "
                "out, and the captions count the rest. Verify the store to tell lost data from overflow in the model.",
            ]
        lines = [
            "UNFINISHED",
            f"{where}{done} of {total} units are done. Figures and tables show only these, and say so.",
        ]
        for path, record in source.groups.items():
            units = record.get("units", {})
            if units.get("done", 0) < units.get("total", 0):
                lines.append(f"{path}: {units['done']} of {units['total']} units")
        return lines


def _joined(words: Sequence[str]) -> str:
    return " · ".join(filter(None, words))


def _values(source: Source, attribute: str) -> list[str]:
    found = [record.get("attrs", {}).get(attribute) for record in source.groups.values()]
    return list(dict.fromkeys(str(value) for value in found if value not in (None, "")))


def _model(source: Source, stage: str) -> str:
    """Return the model of a stage as the job names it, with its revision; empty if the record does not tell."""
    family = (source.summary.get("job") or {}).get("family")
    known = (family.get("stages") or {}) if isinstance(family, Mapping) else {}
    model = known.get(stage, "")
    if not isinstance(model, Mapping):
        return str(model)
    revision = f" @ {model['revision']}" if model.get("revision") else ""
    return f"{model.get('model') or ''}{revision}"


def _estimated(source: Source) -> list[str]:
    """Return the sets whose values are estimates."""
    return [
        str(record["attrs"].get("set", path))
        for path, record in source.groups.items()
        if record.get("attrs", {}).get("method") == "attribution"
    ]


def _facts(source: Source) -> Iterator[tuple[str, Any]]:
    """Yield what was run, in a few lines; the full record follows them."""
    summary = source.summary
    provenance = summary.get("provenance") or {}
    done, total = source.units
    yield "Study", ", ".join(dict.fromkeys(source.study_of(path) for path in source.groups))
    yield "Patched site", ", ".join(_values(source, "site"))
    yield "Sets", ", ".join(_values(source, "set"))
    if estimated := _estimated(source):
        yield "Method", f"{ESTIMATE} of {', '.join(estimated)}"
    yield (
        "Pairs",
        ", ".join(
            f"{record['attrs'].get('set', path)} {record['attrs']['n_pairs']}"
            for path, record in source.groups.items()
            if "n_pairs" in record.get("attrs", {})
        ),
    )
    yield "Seed", ", ".join(_values(source, "seed"))
    yield "Units done", f"{done} of {total}"
    yield "Started", str(summary.get("created", ""))
    for key in ("device", "python", "platform"):
        yield key.capitalize(), str(provenance.get(key) or "")
    versions = {name: value for name, value in (provenance.get("versions") or {}).items() if value}
    yield "Versions", ", ".join(f"{name} {value}" for name, value in sorted(versions.items()))
    dirty = " with uncommitted changes" if provenance.get("git_dirty") else ""
    yield "Commit", f"{provenance['git_commit']}{dirty}" if provenance.get("git_commit") else ""
    yield "Job fingerprint", str(summary.get("fingerprint", ""))


def _records(source: Source) -> list[tuple[str, str]]:
    """Return the job and the provenance as JSON text."""
    return [
        (heading, json.dumps(source.summary[key], indent=2, sort_keys=True, ensure_ascii=False, default=str))
        for heading, key in (("Job", "job"), ("Provenance", "provenance"))
        if source.summary.get(key)
    ]
