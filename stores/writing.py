"""Notes about units being written: a unit's content is certain only once its note is gone."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from posttrace.stores.hashing import hash_json, seal, unseal
from posttrace.stores.lease import gone, this_process
from posttrace.stores.location import Location
from posttrace.stores.markers import FOLDER

WRITING = f"{FOLDER}/writing/"


class Writing:
    """One note per unit and writer, written before the data and deleted after the marker.

    Two writers of one unit have a note each. A writer that is killed, or finds the unit marked by the other with
    different content, leaves its note, and the next reader compares the data with the marker instead of trusting it.
    Data with neither marker nor note was finished once: its marker is lost.

    Examples
    --------
    >>> store.writing.begin("demo/clean/0000")
    >>> list(store.writing.notes(store.units))
    ['demo/clean/0000']
    """

    def __init__(self, location: Location) -> None:
        self.location = location
        self._owner = uuid.uuid4().hex

    def begin(self, unit: str) -> None:
        """Note that the data of a unit is about to change."""
        self.location.put(self._key(unit), seal({"unit": unit, **this_process()}))

    def end(self, unit: str) -> None:
        """Delete the note: this writer has marked the unit."""
        self.location.delete([self._key(unit)])

    def notes(self, units: Iterable[str]) -> dict[str, list[str]]:
        """Return unit -> keys of its notes. Only the key counts, so a damaged note is one too."""
        found = [key for key, _, _ in self.location.list(WRITING)]
        names = {hash_json(unit): unit for unit in units} if found else {}
        by_unit: dict[str, list[str]] = {}
        for key in found:
            unit = names.get(key.removeprefix(WRITING).split(".")[0])
            if unit is not None:
                by_unit.setdefault(unit, []).append(key)
        return by_unit

    def drop(self, keys: Iterable[str], everybodys: bool = False) -> None:
        """Delete notes about units that were compared: those of this writer and of dead ones, or all."""
        keys = list(keys)
        if not everybodys:
            owners = {key: unseal(data) for key, data in self.location.get_many(keys).items()}
            keys = [key for key in keys if f".{self._owner}." in key or gone(owners[key] or {})]
        self.location.delete(keys)

    def _key(self, unit: str) -> str:
        # Hashed, because a slash in a unit's name would leave an empty folder.
        return f"{WRITING}{hash_json(unit)}.{self._owner}.json"
