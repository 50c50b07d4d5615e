"""What is told before data are trusted: whether chunks are there in full, and hold what the markers say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import numpy as np

from posttrace.stores.canonical import hash_array, hash_bytes
from posttrace.stores.errors import Damaged
from posttrace.stores.plan import aligned
from posttrace.stores.schema import DTYPES, Group, Unit

if TYPE_CHECKING:
    from posttrace.stores.store import Store

Window = tuple[slice, ...]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a store.

    >>> print(Problem("missing", "runs/demo/demo/x/c/0", "the chunk is gone", "run again", unit="demo/0000"))
    runs/demo/demo/x/c/0: the chunk is gone (unit demo/0000); run again
    """

    kind: str
    """missing, empty, cut, damaged, differs, marker, metadata, or unfinished (no fault: a killed run left it)."""
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
    """Hash of the values, as in the marker."""


def cure(url: str) -> str:
    """What to do about lost or damaged units, in words."""
    return f"`posttrace verify {url} --repair` forgets the unit, then run the job again"


def keys_of(group: Group, unit: Unit, name: str) -> list[str]:
    """Keys of the chunks that a unit writes in one array, in order."""
    return [key for key, _ in group.chunks(name, aligned(group, unit, name))]


def lost(
    store: Store, units: Iterable[Unit], markers: Mapping[str, Any], sizes: Mapping[str, int | None]
) -> Iterator[Problem]:
    """Chunks of finished units that are not there, or not of the size they were written with; reads nothing.

    Arguments:
        markers: unit id -> marker.
        sizes: key -> bytes, of a listing made after the markers were read.
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
    """Chunks of a finished unit that do not decode, or arrays with other content than the marker says.

    Arguments:
        skip: full paths of chunks that are known to be lost, and of metadata that are damaged.
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
    """Hash of what the store holds of one array of a unit; None when part of it cannot be read, and why."""
    group, at, found = store.groups[unit.group], store.location.at, []
    window = aligned(group, unit, name)
    # without the array's own metadata only existence can be told; that they are damaged is reported already
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
    """What finished units wrote to one array."""
    return [
        Part(unit.id, aligned(group, unit, name), markers[unit.id]["arrays"].get(name, ""))
        for unit in units
        if name in unit.arrays
    ]


def within(one: Window, other: Window) -> bool:
    """Whether a window lies wholly in another."""
    return all(a.start >= b.start and a.stop <= b.stop for a, b in zip(one, other, strict=True))


def confirm(values: np.ndarray, window: Window, written: Iterable[Part], place: str, url: str) -> None:
    """Compare what was read of an array with the hashes of the units that lie wholly within it.

    Raises:
        Damaged: other content than was written, such as that of a swapped chunk.
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
    """Look whether a group can be trusted; returns the markers by unit.

    The gathered metadata and every coordinate must be as they were made, and every chunk of the finished units there
    in the size it was written with: one listing. What a writer may have left in doubt is read again.

    Raises:
        Damaged: names what is wrong and how many more.
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
            f"`posttrace verify {store.url} --repair` mends or forgets what is damaged, then run the job again"
        )
    return markers


def files_of(store: Store, group: Group) -> list[str]:
    """Keys of the files that one group is read with: its coordinates, and the metadata gathered at the root."""
    coords = {c["name"] for g in store.record["groups"] if g["path"] == group.path for c in g["coords"]}
    inside = f"{group.path}/"
    found = ["zarr.json"]
    for key in store.record["files"]:
        parts = key.removeprefix(inside).split("/")
        if key.startswith(inside) and parts[0] in coords and parts[1:] != ["zarr.json"]:
            found.append(key)
    return found


def changed_files(store: Store, keys: Iterable[str]) -> Iterator[Problem]:
    """Metadata and coordinate files that are not byte for byte as at creation."""
    fix = f"`posttrace verify {store.url} --repair` or the next run of the job restores this file"
    have = store.location.get_many(keys)
    for key, data in have.items():
        if data is None or hash_bytes(data) != store.record["files"].get(key):
            kind = "metadata" if data else "missing" if data is None else "empty"
            what = "the file is gone" if data is None else "changed since creation"
            group = next((path for path in store.groups if key.startswith(f"{path}/")), "")
            yield Problem(kind, store.location.at(key), what, fix, group)
