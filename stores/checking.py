"""Checks made before data are trusted: every chunk must be present, complete and match its marker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from shlex import quote
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import numpy as np

from posttrace.stores.errors import Damaged
from posttrace.stores.hashing import hash_array, hash_bytes
from posttrace.stores.plan import aligned
from posttrace.stores.schema import DTYPES, Group, Unit

if TYPE_CHECKING:
    from posttrace.stores.store import Store

Window = tuple[slice, ...]


@dataclass(frozen=True)
class Problem:
    """One fault in a store.

    Examples
    --------
    >>> print(Problem("missing", "runs/demo/demo/x/c/0", "the chunk is gone", "run again", unit="demo/0000"))
    runs/demo/demo/x/c/0: the chunk is gone (unit demo/0000); run again
    """

    kind: str
    """missing, empty, cut, damaged, differs, marker, metadata, or unfinished (left by a killed run; not a fault)."""
    path: str
    """Full path or URL of the object."""
    what: str
    fix: str
    group: str = ""
    array: str = ""
    unit: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.what}{f' (unit {self.unit})' if self.unit else ''}; {self.fix}"


@dataclass(frozen=True)
class Part:
    """What one finished unit wrote to one array."""

    unit: str
    window: Window
    digest: str
    """Hash of the values, as recorded in the marker."""


def cure(url: str) -> str:
    """Say what to do about lost or damaged units."""
    return f"`posttrace verify {quote(url)} --repair` forgets the unit, then run the job again"


def keys_of(group: Group, unit: Unit, name: str) -> list[str]:
    """Return the keys of the chunks that a unit writes in one array, in order."""
    return [key for key, _ in group.chunks(name, aligned(group, unit, name))]


def lost(
    store: Store, units: Iterable[Unit], markers: Mapping[str, Any], sizes: Mapping[str, int | None]
) -> Iterator[Problem]:
    """Yield the chunks of finished units that are missing or not of the size written, without reading them.

    Parameters
    ----------
    markers
        Unit id -> marker.
    sizes
        Key -> bytes, from a listing made after the markers were read.
    """
    for unit in units:
        group, noted = store.groups[unit.group], markers[unit.id]["sizes"]
        for name in unit.arrays:
            keys = keys_of(group, unit, name)
            expected = noted.get(name)
            if not isinstance(expected, list) or len(expected) != len(keys):
                expected = [None] * len(keys)
            for key, size in zip(keys, expected, strict=True):
                have = sizes.get(key)
                if have is None:
                    kind, what = "missing", "the chunk is gone (zarr would read fill values)"
                elif have == 0:
                    kind, what = "empty", "the chunk has no bytes (zarr would read fill values)"
                elif have != size:
                    kind, what = "cut", f"the chunk has {have} bytes, {size} were written"
                else:
                    continue
                yield Problem(kind, store.location.at(key), what, cure(store.url), group.path, name, unit.id)


def altered(store: Store, unit: Unit, marker: Mapping[str, Any], skip: Iterable[str] = ()) -> list[Problem]:
    """Return the chunks of a finished unit that do not decode, and the arrays that do not match its marker.

    Parameters
    ----------
    skip
        Full paths of chunks known to be lost and of metadata known to be damaged.
    """
    found, skip, group = [], set(skip), store.groups[unit.group]
    for name in unit.arrays:
        digest, problems = content(store, unit, name, skip)
        found += problems
        if digest is not None and digest != marker["arrays"].get(name):
            paths = " ".join(store.location.at(key) for key in keys_of(group, unit, name))
            what = "the content is not what was written"
            found.append(Problem("differs", paths, what, cure(store.url), unit.group, name, unit.id))
    return found


def content(
    store: Store, unit: Unit, name: str, skip: Iterable[str] = ()
) -> tuple[str | None, list[Problem]]:
    """Return the hash of one stored array of a unit, or None if part of it cannot be read, and the problems."""
    group, at, found = store.groups[unit.group], store.location.at, []
    window = aligned(group, unit, name)
    # Without the array's own metadata its chunks cannot be decoded; that damage is reported elsewhere.
    readable, sound = at(f"{group.path}/{name}/zarr.json") not in skip, True
    extents = list(group.chunks(name, window))
    whole = np.empty([w.stop - w.start for w in window], DTYPES[group.array(name).dtype][0])
    for key, extent in extents:
        if at(key) in skip or not readable:
            sound = False
            continue
        inside: tuple[slice | EllipsisType, ...] = (
            *(slice(e.start - w.start, e.stop - w.start) for e, w in zip(extent, window, strict=True)),
            ...,
        )
        try:
            whole[inside] = store.raw(unit.group, name, extent)
        except Damaged as fault:
            sound, what = False, f"the chunk does not decode ({fault.__cause__})"
            found.append(Problem("damaged", at(key), what, cure(store.url), unit.group, name, unit.id))
    return (hash_array(whole) if sound else None), found


def parts(group: Group, units: Iterable[Unit], markers: Mapping[str, Any], name: str) -> list[Part]:
    """Return what finished units wrote to one array."""
    return [
        Part(unit.id, aligned(group, unit, name), markers[unit.id]["arrays"].get(name, ""))
        for unit in units
        if name in unit.arrays
    ]


def within(one: Window, other: Window) -> bool:
    """Tell whether one window lies wholly inside another."""
    return all(a.start >= b.start and a.stop <= b.stop for a, b in zip(one, other, strict=True))


def confirm(values: np.ndarray, window: Window, written: Iterable[Part], place: str, url: str) -> None:
    """Compare values read from an array with the hashes of the units that lie wholly inside the window.

    Raises
    ------
    Damaged
        The content is not what was written, as after a swap of two chunks.
    """
    for part in written:
        if not within(part.window, window):
            continue
        ours = zip(part.window, window, strict=True)
        inside: tuple[slice | EllipsisType, ...] = (
            *(slice(mine.start - read.start, mine.stop - read.start) for mine, read in ours),
            ...,
        )
        if hash_array(np.asarray(values[inside], order="C")) != part.digest:
            raise Damaged(f"{place}: holds other values than unit {part.unit!r} wrote; {cure(url)}")


def refuse_lost(store: Store, path: str) -> Mapping[str, Any]:
    """Check that a group can be trusted, and return its markers by unit.

    The consolidated metadata and every coordinate must be unchanged, and every chunk of a finished unit must exist with
    the size it was written with, which takes one listing. Units that a stopped writer left in doubt are read again.

    Raises
    ------
    Damaged
        Names the first fault and counts the rest.
    """
    group, markers = store.groups[path], store.progress.markers()
    notes = store.writing.notes(store.units)
    wrong = list(changed_files(store, files_of(store, group)))
    done = [unit for unit in store.units.values() if unit.group == path and unit.id in markers]
    if not wrong and done:
        sizes = {key: size for key, size, _ in store.location.list(path)}
        wrong = list(lost(store, done, markers, sizes))
    if not wrong:
        wrong = [p for unit in done if unit.id in notes for p in altered(store, unit, markers[unit.id])]
    if wrong:
        units = {problem.unit for problem in wrong if problem.unit}
        many = (
            f"; {len(wrong)} faults" + (f" in {len(units)} units" if units else "") if len(wrong) > 1 else ""
        )
        raise Damaged(
            f"{wrong[0].path}: {wrong[0].what}{f' (unit {wrong[0].unit})' if wrong[0].unit else ''}{many}; "
            f"`posttrace verify {quote(store.url)} --repair` repairs or forgets what is damaged, then run the job again"
        )
    return markers


def files_of(store: Store, group: Group) -> list[str]:
    """Return the keys of the files needed to read a group: its coordinates and the root's consolidated metadata."""
    coords = {c["name"] for g in store.record["groups"] if g["path"] == group.path for c in g["coords"]}
    inside = f"{group.path}/"
    found = ["zarr.json"]
    for key in store.record["files"]:
        parts = key.removeprefix(inside).split("/")
        if key.startswith(inside) and parts[0] in coords and parts[1:] != ["zarr.json"]:
            found.append(key)
    return found


def changed_files(store: Store, keys: Iterable[str]) -> Iterator[Problem]:
    """Yield the metadata and coordinate files that changed since creation."""
    fix = f"`posttrace verify {quote(store.url)} --repair` or the next run of the job restores this file"
    have = store.location.get_many(keys)
    for key, data in have.items():
        if data is None or hash_bytes(data) != store.record["files"].get(key):
            kind = "metadata" if data else "missing" if data is None else "empty"
            what = "the file is gone" if data is None else "changed since creation"
            group = next((path for path in store.groups if key.startswith(f"{path}/")), "")
            yield Problem(kind, store.location.at(key), what, fix, group)
