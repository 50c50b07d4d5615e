"""Jobs submitted to a server for unfinished units, so that a resumed run can ask for their results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from posttrace.stores.credentials import refuse_secrets
from posttrace.stores.hashing import as_json, hash_json, seal, unseal
from posttrace.stores.location import Location
from posttrace.stores.markers import FOLDER

REQUESTS = f"{FOLDER}/requests/"


class Requests:
    """The notes of one store: one JSON document per unit and call, deleted when the unit is done.

    Examples
    --------
    >>> note = store.requests.note("demo/clean/0000", call=0)
    >>> note.keep({"job": "17"})
    >>> note.find()["job"]
    '17'
    """

    def __init__(self, location: Location) -> None:
        self.location = location

    def note(self, unit: str, call: int) -> Note:
        """Return the note about one request of a unit; requests are counted from 0."""
        return Note(self.location, f"{_prefix(unit)}{call}.json", unit)

    def drop(self, unit: str | None = None) -> None:
        """Delete the notes about one unit, or about all units."""
        prefix = REQUESTS if unit is None else _prefix(unit)
        self.location.delete([key for key, _, _ in self.location.list(REQUESTS) if key.startswith(prefix)])


@dataclass(frozen=True)
class Note:
    """One JSON document; a damaged one counts as missing."""

    location: Location
    key: str
    unit: str

    def find(self) -> dict[str, Any] | None:
        """Return the document kept last, or None."""
        body = unseal(self.location.get(self.key))
        return body if body and body.get("unit") == self.unit else None

    def keep(self, body: Mapping[str, Any]) -> None:
        """Replace the document; raise StoreError if it contains what looks like a credential."""
        body = as_json({**body, "unit": self.unit}, self.key)
        refuse_secrets(body, self.key)
        self.location.put(self.key, seal(body))


def _prefix(unit: str) -> str:
    # Hashed, because a slash in a unit's name would leave an empty folder.
    return f"{REQUESTS}{hash_json(unit)}."
