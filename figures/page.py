"""The report: one self-contained HTML page."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrace.figures.drawing import Drawing
from posttrace.figures.published import PAPER, PAPER_TITLE
from posttrace.figures.registry import STUDIES, study
from posttrace.figures.store_reader import Source
from posttrace.figures.studies.knowledge.data import ESTIMATE
from posttrace.figures.tables import Table
from posttrace.figures.theme import DPI

TEMPLATE = Path(__file__).with_name("report.html.jinja")
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


class Page:
    """Collects drawings and tables one by one, and renders them as HTML.

    Examples
    --------
    >>> from posttrace.figures.store_reader import open_source
    >>> page = Page(open_source("runs/knowledge"))
    >>> page.add(table, {})
    >>> page.content()[:15]
    b'<!doctype html>'
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.tables: list[Table] = []
        self.pictures: dict[str, list[Picture]] = {}
        """By `study/set`."""

    def add(self, product: Drawing | Table, files: Mapping[str, bytes]) -> None:
        """Add a table, or a drawing whose PNG is among the files."""
        if isinstance(product, Table):
            self.tables.append(product)
            return
        png = files[f"{product.name}.png"]
        width, height = (round(n / DPI * CSS_PIXELS_PER_INCH) for n in struct.unpack(">II", png[16:24]))
        picture = Picture(product, base64.b64encode(png).decode(), width, height)
        self.pictures.setdefault(product.name.rsplit("/", 1)[0], []).append(picture)

    def content(self) -> bytes:
        """Return the page, UTF-8; the same store always gives the same bytes."""
        from pkgutil import resolve_name

        from jinja2 import Environment, StrictUndefined

        studies = dict.fromkeys(self.source.study_of(path) for path in self.source.groups)
        environment = Environment(
            autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
        html = template.render(
            title=self._title(studies),
            facts=list(self._facts(studies)),
            gaps=self._gaps(),
            guide=[entry for guide in self._guides(studies) for entry in resolve_name(guide)],
            tables=self.tables,
            pictures=self.pictures,
            records=self._records(),
            paper=PAPER,
            paper_title=PAPER_TITLE,
            version=str(self.source.summary.get("posttrace", "")),
            anchor=_anchor,
        )
        return html.encode()

    def _title(self, studies: Mapping[str, Any]) -> str:
        return " · ".join(filter(None, [", ".join(studies), ", ".join(self._values("family"))]))

    def _guides(self, studies: Mapping[str, Any]) -> Iterator[str]:
        for name in studies:
            if name in STUDIES:
                declared = study(name)
                yield declared.guide
                if declared.estimate_guide is not None and self._estimated():
                    yield declared.estimate_guide

    def _estimated(self) -> list[str]:
        """Return the sets whose values are estimates."""
        records = self.source.groups.items()
        return [
            str(r["attrs"].get("set", path))
            for path, r in records
            if r.get("attrs", {}).get("method") == "attribution"
        ]

    def _values(self, attribute: str) -> list[str]:
        found = [record.get("attrs", {}).get(attribute) for record in self.source.groups.values()]
        return list(dict.fromkeys(str(value) for value in found if value not in (None, "")))

    def _facts(self, studies: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield what was run, in a few lines; the full record is at the end of the page."""
        summary = self.source.summary
        provenance = summary.get("provenance") or {}
        done, total = self.source.units
        yield "Study", ", ".join(studies)
        yield "Family", ", ".join(self._values("family"))
        yield "Stages", ", ".join(self.source.stages())
        yield "Patched site", ", ".join(self._values("site"))
        yield "Sets", ", ".join(self._values("set"))
        if estimated := self._estimated():
            yield "Method", f"{ESTIMATE} of {', '.join(estimated)}"
        yield (
            "Pairs",
            ", ".join(
                f"{record['attrs'].get('set', path)} {record['attrs']['n_pairs']}"
                for path, record in self.source.groups.items()
                if "n_pairs" in record.get("attrs", {})
            ),
        )
        yield "Seed", ", ".join(self._values("seed"))
        yield "Units done", f"{done} of {total}"
        yield "Started", str(summary.get("created", ""))
        for key in ("device", "python", "platform"):
            yield key.capitalize(), str(provenance.get(key) or "")
        versions = {name: value for name, value in (provenance.get("versions") or {}).items() if value}
        yield "Versions", ", ".join(f"{name} {value}" for name, value in sorted(versions.items()))
        dirty = " with uncommitted changes" if provenance.get("git_dirty") else ""
        yield "Commit", f"{provenance['git_commit']}{dirty}" if provenance.get("git_commit") else ""
        yield "Job fingerprint", str(summary.get("fingerprint", ""))

    def _gaps(self) -> list[str]:
        """Return what the store lacks; nothing if it is complete."""
        done, total = self.source.units
        if done >= total:
            shown = [picture.drawing for pictures in self.pictures.values() for picture in pictures]
            if all(drawing.complete for drawing in shown):
                return []
            return [
                "INCOMPLETE",
                "Every unit is done, but some pairs have values that are missing or not finite. They are left out, "
                "and the captions count the rest. Verify the store to tell lost data from overflow in the model.",
            ]
        lines = [
            "UNFINISHED",
            f"{done} of {total} units are done. Figures and tables show only these, and say so.",
        ]
        for path, record in self.source.groups.items():
            units = record.get("units", {})
            if units.get("done", 0) < units.get("total", 0):
                lines.append(f"{path}: {units['done']} of {units['total']} units")
        return lines

    def _records(self) -> list[tuple[str, str]]:
        """Return the job and the provenance as JSON text."""
        summary = self.source.summary
        return [
            (heading, json.dumps(summary[key], indent=2, sort_keys=True, ensure_ascii=False, default=str))
            for heading, key in (("Job", "job"), ("Provenance", "provenance"))
            if summary.get(key)
        ]


def _anchor(name: str) -> str:
    return name.replace("/", "-")
