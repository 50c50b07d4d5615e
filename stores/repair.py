"""Repair what can be repaired without the job, and forget the units that only the job can recompute."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass

from posttrace.stores.checking import Problem, content, keys_of
from posttrace.stores.hashing import hash_bytes, seal
from posttrace.stores.location import Location
from posttrace.stores.markers import CLAIM, COMPLETE, FILES, GATHERED, LEASES, MARKERS, RECORD, SPARE
from posttrace.stores.record import pack, unpack
from posttrace.stores.store import Store
from posttrace.stores.verify import files_wrong, gathered, mendable, units_wrong


@dataclass(frozen=True)
class Repaired:
    """What was done to a store."""

    found: tuple[Problem, ...]
    """Faults found in units."""
    restored: tuple[str, ...]
    """Full paths of the files restored."""
    derived: tuple[str, ...]
    """Units whose markers were rebuilt from their data."""
    forgotten: tuple[str, ...]
    """Units to be recomputed by the next run of the job; their data is deleted."""
    left: tuple[Problem, ...]
    """Faults that only the next run of the job can repair."""


def repair(url: str | os.PathLike[str]) -> Repaired:
    """Verify a store and repair it: everything that a rerun could, and markers from the data.

    Records, metadata, coordinates and lists of units are restored from their spares. A finished unit whose marker is
    lost is marked again if all of its chunks exist and decode. Units whose chunks are lost or altered are forgotten,
    and leftovers of a stopped run are deleted. If killed at any point, it can be run again.

    Raises
    ------
    StoreBusy
        A run holds the store.
    StoreError
        There is no store at this URL, or its record and the record's spare are damaged.

    Examples
    --------
    >>> repair("runs/demo").forgotten
    ()
    """
    store = mendable(url)
    with ExitStack() as held:
        for name in _leases(store.location):
            held.enter_context(store.lease(name))
        restored = [*_records(store), *_files(store), *_lists(store)]
        files = list(files_wrong(store))
        damaged = {problem.path for problem in files}
        found = [p for p in units_wrong(store, unfinished=False, damaged=damaged) if p.unit]
        derived, forgotten, left = _units(store, found, damaged)
        _notes(store)
        restored += _complete(store)
    return Repaired(tuple(found), tuple(restored), tuple(derived), tuple(forgotten), (*files, *left))


def _leases(location: Location) -> list[str]:
    """Return the names under which a run may hold the store."""
    return sorted({"run", *(key.removeprefix(LEASES).split("/")[0] for key, _, _ in location.list(LEASES))})


def _put(location: Location, key: str, data: bytes) -> list[str]:
    """Write a file if it differs, and return its full path in a list."""
    if location.get(key) == data:
        return []
    location.put(key, data)
    return [location.at(key)]


def _records(store: Store) -> list[str]:
    return [path for key in (CLAIM, RECORD) for path in _put(store.location, key, seal(store.record))]


def _files(store: Store) -> list[str]:
    """Restore metadata and coordinates from their spare, or the spare from them."""
    digests, restored = store.record["files"], []
    spare = unpack(store.location, digests)
    files = {key: data for key, data in store.location.get_many(digests).items() if data is not None}
    for key, digest in digests.items():
        if hash_bytes(files.get(key, b"")) == digest:
            continue
        files.pop(key, None)
        if key in spare:
            files[key] = spare[key]
            restored += _put(store.location, key, spare[key])
    if len(files) == len(digests) and len(spare) < len(digests):
        restored += _put(store.location, FILES, pack({key: files[key] for key in digests}))
    return restored


def _lists(store: Store) -> list[str]:
    """Restore the list of finished units from its spare or vice versa; drop damaged and unplanned markers."""
    progress, location = store.progress, store.location
    singles = progress.singles()
    location.delete(
        [*progress.torn, *(f"{MARKERS}{unit}.json" for unit in singles.keys() - store.units.keys())]
    )
    before = {key: location.get(key) for key in (GATHERED, SPARE)}
    known, _ = gathered(store, singles, False)
    if known is None:
        location.delete([GATHERED, SPARE, COMPLETE])
        return []
    progress.gather({unit: marker for unit, marker in known.items() if unit in store.units})
    return [location.at(key) for key, data in before.items() if location.get(key) != data]


def _units(
    store: Store, problems: Iterable[Problem], damaged: set[str]
) -> tuple[list[str], list[str], list[Problem]]:
    """Mark units again or forget them; return both, and the problems left because metadata is damaged."""
    derived, forgotten, left = [], set(), []
    for problem in problems:
        unit = store.units[problem.unit]
        if problem.kind != "marker":
            forgotten.add(unit.id)
        elif any(store.location.at(f"{unit.group}/{name}/zarr.json") in damaged for name in unit.arrays):
            left.append(problem)
        elif _marked(store, unit.id, damaged):
            derived.append(unit.id)
        else:
            forgotten.add(unit.id)
    store.forget(sorted(forgotten))
    return derived, sorted(forgotten), left


def _marked(store: Store, name: str, damaged: Iterable[str]) -> bool:
    """Mark a unit from its data, if complete; tell whether it was."""
    unit = store.units[name]
    digests, sizes = {}, {}
    for array in unit.arrays:
        keys = keys_of(store.groups[unit.group], unit, array)
        have = store.location.sizes(keys)
        digest = content(store, unit, array, damaged)[0] if all(have.values()) else None
        if digest is None:
            return False
        digests[array], sizes[array] = digest, [have[key] or 0 for key in keys]
    store.progress.mark(unit.id, digests, sizes, {"marked": "from the data, by verify --repair"})
    return True


def _notes(store: Store) -> None:
    """Delete leftovers of stopped runs; marked units have just been compared."""
    notes, done = store.writing.notes(store.units), store.done()
    store.forget([unit for unit in notes if unit not in done])
    store.writing.drop((key for keys in notes.values() for key in keys), everybodys=True)


def _complete(store: Store) -> list[str]:
    before = store.location.get(COMPLETE)
    if not store.pending():
        store.finalise()
    elif before is not None:
        store.location.delete([COMPLETE])
    after = store.location.get(COMPLETE)
    return [store.location.at(COMPLETE)] if after not in (None, before) else []
