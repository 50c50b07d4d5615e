"""Re-read everything that a store claims to hold, and report what is not as it was written."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from shlex import quote
from typing import Any

import numpy as np

from posttrace.stores.checking import Problem, altered, changed_files, keys_of, lost
from posttrace.stores.hashing import seal
from posttrace.stores.location import Location
from posttrace.stores.markers import CLAIM, COMPLETE, FILES, GATHERED, MARKERS, RECORD, SPARE
from posttrace.stores.plan import aligned
from posttrace.stores.record import opened, settled, started, unpack
from posttrace.stores.schema import DTYPES, Unit
from posttrace.stores.store import Store

READERS = 4  # units read concurrently, to hide latency
LARGE = 2**26  # bytes; larger units are read one at a time, since two copies of each are in memory


def verify(url: str | os.PathLike[str], unfinished: bool = False) -> list[Problem]:
    """Check every chunk of every finished unit, every marker, and all metadata and coordinates.

    A chunk must exist, have its size, decode (codec checksum), and hash to the value in its marker. zarr silently reads
    a missing or empty chunk as fill values, hence this check. Data with neither a marker nor a note of an interrupted
    write is a fault too: its marker was lost.

    Parameters
    ----------
    url
        The store.
    unfinished
        Also list chunks without a marker (left by a killed run; a rerun replaces them).

    Raises
    ------
    StoreError
        There is no store at this URL, or its record and the record's spare are damaged.

    Examples
    --------
    >>> verify("runs/demo")
    []
    """
    store = mendable(url)
    files = list(files_wrong(store))
    return [*files, *units_wrong(store, unfinished, {problem.path for problem in files})]


def mendable(url: str | os.PathLike[str]) -> Store:
    """Open the store, with the spare of its record if need be."""
    location = Location(url)
    record = settled(location)
    if record is None or (location.size(RECORD) is None and not started(location)):
        record = opened(location)  # raises, saying why
    return Store(location, record)


def files_wrong(store: Store) -> Iterator[Problem]:
    """Yield the faults of record, metadata, coordinates and their spares, which never change after creation."""
    place = store.location
    fix = f"`posttrace verify {quote(store.url)} --repair` restores this file"
    for key, text in ((RECORD, "the record of the store"), (CLAIM, "the spare of the record")):
        if place.get(key) != seal(store.record):
            yield Problem("metadata", place.at(key), f"{text} is gone, torn or altered", fix)
    yield from changed_files(store, store.record["files"])
    if len(unpack(place, store.record["files"])) < len(store.record["files"]):
        yield Problem("metadata", place.at(FILES), "the spare of the metadata is gone, torn or altered", fix)


def units_wrong(store: Store, unfinished: bool, damaged: set[str]) -> Iterator[Problem]:
    """Yield the faults of markers and chunks.

    Things are listed in an order that keeps a concurrent run from looking like a fault: a unit's data is written after
    its note and before its marker, and the note is deleted last.

    Parameters
    ----------
    damaged
        Full paths of metadata known to be damaged.
    """
    at, progress = store.location.at, store.progress
    early = _sizes(store)
    notes = store.writing.notes(store.units)
    complete = store.location.get(COMPLETE)
    singles = progress.singles()
    torn = {key.removeprefix(MARKERS).removesuffix(".json"): key for key in progress.torn}
    known, lists = gathered(store, singles, complete is not None)
    yield from lists
    markers = {**(known or {}), **singles}
    fix = f"`posttrace verify {quote(store.url)} --repair` rebuilds it from the data"
    for name, key in torn.items():
        what = "the marker is torn, altered or of another job"
        yield Problem("marker", at(key), what, fix, unit=name if name in store.units else "")
    for name in markers.keys() - store.units.keys():
        where = at(f"{MARKERS}{name}.json")
        yield Problem(
            "marker",
            where,
            f"names {name!r}, which is not planned",
            f"{fix.split(' rebuilds')[0]} deletes it",
        )
    for unit in store.units.values():
        if unit.id in markers or unit.id in torn or unit.id in notes:
            continue
        if any(
            key in early for array in unit.arrays for key in keys_of(store.groups[unit.group], unit, array)
        ):
            what = "the data is there, but its marker is gone"
            yield Problem("marker", at(f"{MARKERS}{unit.id}.json"), what, fix, unit.group, "", unit.id)
    yield from _complete(store, complete, markers, singles)
    late = _sizes(store)  # after the markers: a unit finished meanwhile has its data before its marker
    done = [unit for unit in store.units.values() if unit.id in markers]
    gone = list(lost(store, done, markers, late))
    yield from gone
    skip = damaged | {problem.path for problem in gone}
    yield from _contents(store, done, markers, skip)
    if unfinished:
        yield from _unfinished(store, markers, late)


def _sizes(store: Store) -> dict[str, int]:
    return {key: size for path in store.groups for key, size, _ in store.location.list(path)}


def gathered(
    store: Store, singles: Mapping[str, Any], complete: bool
) -> tuple[dict[str, Any] | None, list[Problem]]:
    """Return the gathered markers (None if both files are lost) and the faults of the two files that hold them.

    If both are intact and differ about a unit, the one that matches the data is right.
    """
    data = {key: store.location.get(key) for key in (GATHERED, SPARE)}
    units = {key: store.progress.listed(one) for key, one in data.items()}
    whole = [found for found in units.values() if found is not None]
    known = dict(whole[0]) if whole else None
    if len(whole) == 2:
        for unit in whole[0].keys() & whole[1].keys() & store.units.keys() - singles.keys():
            if whole[0][unit] != whole[1][unit] and not _agrees(store, unit, whole[0][unit]):
                known[unit] = whole[1][unit]  # type: ignore[index]
    problems = []
    fix = f"`posttrace verify {quote(store.url)} --repair` restores it"
    for key, text in (
        (GATHERED, "the list of finished units"),
        (SPARE, "the spare of the list of finished units"),
    ):
        if units[key] is None and data[key] is not None:
            what = f"{text} is torn, altered or of another job"
        elif units[key] is None and (complete or (key == GATHERED and data[SPARE] is not None)):
            what = f"{text} is gone"
        elif {**(units[key] or {}), **singles} != {**(known or {}), **singles}:
            # A run stopped between the two files leaves them different, but it also leaves the single markers.
            what = f"{text} does not match the single markers"
        else:
            continue
        problems.append(Problem("marker", store.location.at(key), what, fix))
    return known, problems


def _agrees(store: Store, unit: str, marker: Mapping[str, Any]) -> bool:
    planned = store.units[unit]
    keys = [key for name in planned.arrays for key in keys_of(store.groups[planned.group], planned, name)]
    missing = list(lost(store, [planned], {unit: marker}, store.location.sizes(keys)))
    return not missing and not altered(store, planned, marker)


def _complete(
    store: Store, data: bytes | None, markers: Mapping[str, Any], singles: Mapping[str, Any]
) -> Iterator[Problem]:
    place, fix = store.location.at(COMPLETE), f"`posttrace verify {quote(store.url)} --repair` corrects it"
    done = store.units.keys() <= markers.keys()
    if data is None:
        if done and store.units and not singles:
            yield Problem("metadata", place, "the mark of a complete store is gone", fix)
    elif not store.progress.complete(len(store.units)):
        yield Problem("metadata", place, "the mark of a complete store is torn or altered", fix)
    elif not done:
        yield Problem("metadata", place, "the store is marked complete but has units that are not done", fix)


def _contents(
    store: Store, done: list[Unit], markers: Mapping[str, Any], skip: set[str]
) -> Iterator[Problem]:
    large = {unit.id for unit in done if _bytes(store, unit) > LARGE}
    small = [unit for unit in done if unit.id not in large]
    with ThreadPoolExecutor(READERS) as pool:
        for problems in pool.map(lambda unit: altered(store, unit, markers[unit.id], skip), small):
            yield from problems
    for unit in done:
        if unit.id in large:
            yield from altered(store, unit, markers[unit.id], skip)


def _bytes(store: Store, unit: Unit) -> int:
    group, total = store.groups[unit.group], 0
    for name in unit.arrays:
        shape = [w.stop - w.start for w in aligned(group, unit, name)]
        total += math.prod(shape) * np.dtype(DTYPES[group.array(name).dtype][0]).itemsize
    return total


def _unfinished(store: Store, markers: Mapping[str, Any], sizes: Mapping[str, int]) -> Iterator[Problem]:
    what, fix = "left by a run that stopped", "run the job again: it replaces this chunk"
    for unit in store.units.values():
        for name in unit.arrays if unit.id not in markers else ():
            for key in keys_of(store.groups[unit.group], unit, name):
                if key in sizes:
                    yield Problem("unfinished", store.location.at(key), what, fix, unit.group, name, unit.id)
