"""Re-read everything that a store claims to hold, and name what is not as it was written."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from posttrace.stores.canonical import seal
from posttrace.stores.checking import Problem, altered, changed_files, keys_of, lost
from posttrace.stores.location import Location
from posttrace.stores.markers import CLAIM, COMPLETE, FILES, GATHERED, MARKERS, RECORD, SPARE
from posttrace.stores.plan import aligned
from posttrace.stores.record import opened, settled, started, unpack
from posttrace.stores.schema import DTYPES, Unit
from posttrace.stores.store import Store

READERS = 4  # units read side by side: hides latency
LARGE = 2**26  # bytes of a unit that is read by itself: two copies of it are in memory


def verify(url: str | os.PathLike[str], unfinished: bool = False) -> list[Problem]:
    """Check every chunk of every finished unit, every marker, and all metadata and coordinates.

    >>> verify("runs/demo")
    []

    A chunk must exist, have its size, decode (codec checksum), and hash to what its marker says. zarr reads a
    missing or empty chunk as fill values without a word, hence this check. Data that have no marker, and no note
    of a run that was stopped while it wrote them, are a fault too: their marker was lost.

    Arguments:
        url: the store.
        unfinished: also list chunks without a marker (leftovers of a killed run; a rerun replaces them).

    Raises:
        StoreError: there is no store at this URL, or its record and the spare of it are damaged.
    """
    store = mendable(url)
    files = list(files_wrong(store))
    return [*files, *units_wrong(store, unfinished, {problem.path for problem in files})]


def mendable(url: str | os.PathLike[str]) -> Store:
    """The store, opened with the spare of its record where need be."""
    location = Location(url)
    record = settled(location)
    if record is None or (location.size(RECORD) is None and not started(location)):
        record = opened(location)  # says why it cannot be
    return Store(location, record)


def files_wrong(store: Store) -> Iterator[Problem]:
    """Record, metadata and coordinates, and their spares: byte for byte as at creation."""
    place = store.location
    fix = f"`posttrace verify {store.url} --repair` restores this file"
    for key, text in ((RECORD, "the record of the store"), (CLAIM, "the spare of the record")):
        if place.get(key) != seal(store.record):
            yield Problem("metadata", place.at(key), f"{text} is gone, torn or altered", fix)
    yield from changed_files(store, store.record["files"])
    if len(unpack(place, store.record["files"])) < len(store.record["files"]):
        yield Problem("metadata", place.at(FILES), "the spare of the metadata is gone, torn or altered", fix)


def units_wrong(store: Store, unfinished: bool, damaged: set[str]) -> Iterator[Problem]:
    """Markers and chunks.

    The order of looking makes sure that a run that goes on meanwhile is not taken for a fault: data come after
    their note and before their marker, and the note goes last.

    Arguments:
        damaged: full paths of metadata that are known to be damaged.
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
    fix = f"`posttrace verify {store.url} --repair` makes it from the data"
    for name, key in torn.items():
        what = "the marker is torn, altered or of another job"
        yield Problem("marker", at(key), what, fix, unit=name if name in store.units else "")
    for name in markers.keys() - store.units.keys():
        where = at(f"{MARKERS}{name}.json")
        yield Problem(
            "marker", where, f"names {name!r}, which is not planned", f"{fix.split(' makes')[0]} deletes it"
        )
    for unit in store.units.values():
        if unit.id in markers or unit.id in torn or unit.id in notes:
            continue
        if any(
            key in early for array in unit.arrays for key in keys_of(store.groups[unit.group], unit, array)
        ):
            what = "the data are there, their marker is gone"
            yield Problem("marker", at(f"{MARKERS}{unit.id}.json"), what, fix, unit.group, "", unit.id)
    yield from _complete(store, complete, markers, singles)
    late = _sizes(store)  # after the markers: what is finished meanwhile has its data before its marker
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
    """The gathered markers, and what is wrong with the two files that hold them; None when both are lost.

    Where both are whole and differ about a unit, that which agrees with the data is right.
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
    fix = f"`posttrace verify {store.url} --repair` restores it"
    for key, text in (
        (GATHERED, "the list of finished units"),
        (SPARE, "the spare of the list of finished units"),
    ):
        if units[key] is None and data[key] is not None:
            what = f"{text} is torn, altered or of another job"
        elif units[key] is None and (complete or (key == GATHERED and data[SPARE] is not None)):
            what = f"{text} is gone"
        elif {**(units[key] or {}), **singles} != {**(known or {}), **singles}:
            # a run that was stopped between the two files leaves them unlike, but the single markers beside them
            what = f"{text} is not what it should be"
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
    place, fix = store.location.at(COMPLETE), f"`posttrace verify {store.url} --repair` puts it right"
    done = store.units.keys() <= markers.keys()
    if data is None:
        if done and store.units and not singles:
            yield Problem("metadata", place, "the mark of a complete store is gone", fix)
    elif not store.progress.complete(len(store.units)):
        yield Problem("metadata", place, "the mark of a complete store is torn or altered", fix)
    elif not done:
        yield Problem("metadata", place, "the store is marked complete, and has units that are not done", fix)


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
