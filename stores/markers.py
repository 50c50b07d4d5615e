"""Which units are done: one sealed marker per unit, written after its data, later gathered in one file with a spare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from shlex import quote
from typing import Any

from posttrace.stores.errors import Damaged
from posttrace.stores.hashing import seal, unseal
from posttrace.stores.location import Location

FOLDER = ".posttrace"
RECORD = f"{FOLDER}/store.json"  # written last when a store is created
CLAIM = f"{FOLDER}/claim.json"  # the same, written first to claim the location; later the record's spare
FILES = f"{FOLDER}/files.json"  # a spare of all metadata and coordinate files
MARKERS = f"{FOLDER}/units/"
GATHERED = f"{FOLDER}/units.json"
SPARE = f"{FOLDER}/units.spare.json"
COMPLETE = f"{FOLDER}/complete.json"
LEASES = f"{FOLDER}/leases/"

Marker = dict[str, Any]
"""unit, fingerprint, time, arrays (name -> hash of the content), sizes (name -> bytes of every chunk), record."""


class Progress:
    """The markers of one store.

    ``.posttrace/`` holds ``claim.json`` and ``store.json`` (what was declared), ``units/<id>.json`` (one marker
    per finished unit), ``units.json``, ``units.spare.json`` and ``complete.json`` (after finalise), and ``leases/``.

    Single markers are read before gathered ones. `finalise` in another process gathers in that direction, so none is
    missed.
    """

    def __init__(self, location: Location, fingerprint: str) -> None:
        self.location = location
        self.fingerprint = fingerprint
        self._seen: dict[str, Marker] = {}  # key -> body; a valid marker never changes
        self._list: tuple[str, dict[str, Marker]] | None = None
        """Tag and content of the gathered file as last read."""
        self.torn: list[str] = []
        """Keys of the markers last found truncated, altered or of another job."""

    def _valid(self, body: Any, unit: str) -> bool:
        return (
            isinstance(body, dict)
            and (body.get("unit"), body.get("fingerprint")) == (unit, self.fingerprint)
            and isinstance(body.get("arrays"), dict)
            and isinstance(body.get("sizes"), dict)
        )

    def markers(self) -> dict[str, Marker]:
        """Return unit id -> marker, for every valid marker in the store.

        Raises
        ------
        Damaged
            The gathered markers and their spare are both lost.
        """
        singles = self.singles()
        return {**self.gathered(), **singles}

    def singles(self) -> dict[str, Marker]:
        """Return unit id -> marker for units not yet gathered, and note the truncated ones in `torn`."""
        keys = [key for key, _, _ in self.location.list(MARKERS) if key.endswith(".json")]
        self._seen = {key: body for key, body in self._seen.items() if key in set(keys)}
        found = self.location.get_many(key for key in keys if key not in self._seen)
        self.torn = []
        for key, data in found.items():
            body = unseal(data)
            if self._valid(body, key.removeprefix(MARKERS).removesuffix(".json")):
                self._seen[key] = body  # type: ignore[assignment]
            elif data is not None:  # if gone, it was gathered in the meantime
                self.torn.append(key)
        return {body["unit"]: body for body in self._seen.values()}

    def gathered(self) -> dict[str, Marker]:
        """Return unit id -> marker from the gathered file, or from its spare."""
        for _ in range(2):  # twice: another process may finalise the store in between
            same = self._list
            new = self.location.get_unless(GATHERED, same[0] if same else None)
            if new is None and same is not None:
                return same[1]
            data, tag = new or (None, None)
            units = self.listed(data)
            self._list = None if units is None or tag is None else (tag, units)
            if units is not None:
                return units
            spare = self.location.get(SPARE)
            units = self.listed(spare)
            if units is not None:
                return units
            if data is None and spare is None and self.location.size(COMPLETE) is None:
                return {}
        raise Damaged(
            f"{self.location.at(GATHERED)}: the list of finished units and its spare are torn, altered or gone; "
            f"`posttrace verify {quote(self.location.url)} --repair` finds from the data which units are done"
        )

    def listed(self, data: bytes | None) -> dict[str, Marker] | None:
        """Return unit id -> marker from the content of a gathered file; None if it is damaged or of another job."""
        body = unseal(data)
        if (
            body is None
            or body.get("fingerprint") != self.fingerprint
            or not isinstance(body.get("units"), dict)
        ):
            return None
        units: Mapping[str, Any] = body["units"]
        return {unit: marker for unit, marker in units.items() if self._valid(marker, unit)}

    def find(self, unit: str) -> Marker | None:
        """Return the marker of one unit; remove a damaged one so that the unit can be marked again."""
        key = f"{MARKERS}{unit}.json"
        data = self.location.get(key)
        body = unseal(data)
        if self._valid(body, unit):
            return body
        if data is not None:
            self.location.delete([key])
        return self.gathered().get(unit)

    def mark(
        self, unit: str, arrays: Mapping[str, str], sizes: Mapping[str, list[int]], record: Mapping[str, Any]
    ) -> bool:
        """Declare a unit done; return False if another process did so first."""
        body = {
            "unit": unit,
            "fingerprint": self.fingerprint,
            "time": _now(),
            "arrays": dict(arrays),
            "sizes": dict(sizes),
            "record": record,
        }
        return self.location.put(f"{MARKERS}{unit}.json", seal(body), exclusive=True)

    def gather(self, markers: Mapping[str, Marker] | None = None) -> list[str]:
        """Gather all markers in one file and its spare, and return the keys of the single markers.

        Parameters
        ----------
        markers
            What to write; by default, the markers in the store.
        """
        known = self.markers() if markers is None else markers
        data = seal({"fingerprint": self.fingerprint, "units": dict(sorted(known.items()))})
        for key in (GATHERED, SPARE):
            if self.location.get(key) != data:
                self.location.put(key, data)
        return [*self._seen, *self.torn]

    def forget(self, units: Iterable[str]) -> None:
        """Remove the markers of units, so that a rerun computes them again."""
        units = set(units)
        self.location.delete([COMPLETE])
        known = self.gathered()
        if units & set(known):
            kept = {unit: marker for unit, marker in known.items() if unit not in units}
            data = seal({"fingerprint": self.fingerprint, "units": kept})
            for key in (GATHERED, SPARE):
                self.location.put(key, data)
        self.location.delete(f"{MARKERS}{unit}.json" for unit in sorted(units))

    def finish(self, units: int) -> None:
        """Mark the store complete, unless it already is."""
        if not self.complete(units):
            self.location.put(
                COMPLETE, seal({"fingerprint": self.fingerprint, "units": units, "time": _now()})
            )

    def complete(self, units: int) -> bool:
        """Tell whether the store was finalised with this number of units."""
        body = unseal(self.location.get(COMPLETE))
        return body is not None and (body.get("fingerprint"), body.get("units")) == (self.fingerprint, units)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
