"""Jobs that a server was given for units that are not done: what a run that was killed asks for when it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from posttrace.stores.canonical import as_json, hash_json, seal, unseal
from posttrace.stores.credentials import refuse_secrets
from posttrace.stores.location import Location
from posttrace.stores.markers import FOLDER

REQUESTS = f"{FOLDER}/requests/"


class Requests:
    """The notes of one store, one JSON document per unit and call; they go when their unit is done.

    >>> note = store.requests.note("demo/clean/0000", call=0)
    >>> note.keep({"job": "17"})
    >>> note.find()["job"]
    '17'
    """

    def __init__(self, location: Location) -> None:
        self.location = location

    def note(self, unit: str, call: int) -> Note:
        """The note about one of the requests that a unit makes, counted from 0."""
        return Note(self.location, f"{_prefix(unit)}{call}.json", unit)

    def drop(self, unit: str | None = None) -> None:
        """Forget what was noted about a unit, or about all of them."""
        prefix = REQUESTS if unit is None else _prefix(unit)
        self.location.delete([key for key, _, _ in self.location.list(REQUESTS) if key.startswith(prefix)])


@dataclass(frozen=True)
class Note:
    """One JSON document; a torn one counts as none."""

    location: Location
    key: str
    unit: str

    def find(self) -> dict[str, Any] | None:
        """What was kept last, or None."""
        body = unseal(self.location.get(self.key))
        return body if body and body.get("unit") == self.unit else None

    def keep(self, body: Mapping[str, Any]) -> None:
        """Keep a document instead of the last one; raises StoreError for what looks like a credential."""
        body = as_json({**body, "unit": self.unit}, self.key)
        refuse_secrets(body, self.key)
        self.location.put(self.key, seal(body))


def _prefix(unit: str) -> str:
    # The name of a unit has slashes: as folders, they would stay behind empty.
    return f"{REQUESTS}{hash_json(unit)}."
