"""A store: create or resume it, write units, read regions, finalise."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from posttrace.stores.canonical import as_json, hash_array
from posttrace.stores.checking import Problem, altered, confirm, keys_of, lost, parts, within
from posttrace.stores.create import create
from posttrace.stores.credentials import refuse_secrets
from posttrace.stores.errors import DAMAGED, Damaged, StoreBusy, StoreError, first_line, naming
from posttrace.stores.lease import Lease
from posttrace.stores.location import Location
from posttrace.stores.markers import FOLDER, Progress
from posttrace.stores.plan import aligned, group_from_json, unit_from_json
from posttrace.stores.record import opened, whole_record
from posttrace.stores.requests import Requests
from posttrace.stores.schema import Group, Region, Unit
from posttrace.stores.values import fitting
from posttrace.stores.writing import Writing


class Store:
    """Chunked results of one job, and which of its units are done.

    >>> x = Array("x", ("pair",), "float32", "logit difference, nats", "a number", {"pair": 2})
    >>> group = Group("demo", {"pair": 4}, (x,))
    >>> units = [Unit(f"demo/clean/{i:04}", "demo", {"pair": (i, i + 2)}, ("x",)) for i in (0, 2)]
    >>> store = Store.create("runs/demo", [group], units, {"study": "demo"}, "1f", provenance={})
    >>> with store.lease():
    ...     for unit in store.pending():
    ...         store.write(unit, {"x": np.zeros(2, "float32")})
    >>> store.finalise()

    Make one with `Store.create` or `Store.open`. It pickles as its URL, so it can be handed to workers.
    """

    def __init__(self, location: Location, record: dict[str, Any] | None = None) -> None:
        record = opened(location) if record is None else record
        self.location = location
        self.url = location.url
        self.record = record
        """All that was declared at creation, as JSON: job, fingerprint, provenance, groups, units, files."""
        with whole_record(location):
            self.fingerprint: str = record["fingerprint"]
            self.groups: dict[str, Group] = {d["path"]: group_from_json(d) for d in record["groups"]}
            """Group path -> declaration, without coordinates (read those with `open_group`)."""
            self.units: dict[str, Unit] = {data["id"]: unit_from_json(data) for data in record["units"]}
            """Unit id -> unit, in the order of the plan."""
        self.progress = Progress(location, self.fingerprint)
        self.requests = Requests(location)
        """Jobs that a server has for units that are not done."""
        self.writing = Writing(location)
        """Units that somebody is writing, or was when the process ended."""
        self._markers: dict[str, Any] = {}
        self._windows: dict[tuple[str, str], list[tuple[Unit, tuple[slice, ...]]]] = {}
        self._arrays: dict[str, Any] = {}
        self._lease: Lease | None = None

    @classmethod
    def create(
        cls,
        url: str | os.PathLike[str],
        groups: Iterable[Group],
        units: Iterable[Unit],
        job: Mapping[str, Any],
        fingerprint: str,
        provenance: Mapping[str, Any],
    ) -> Store:
        """Create a store, or open the one of the same fingerprint to go on with it.

        >>> again = Store.create("runs/demo", [group], units, {"study": "demo"}, "1f", provenance={})
        >>> sorted(again.done())
        ['demo/clean/0000', 'demo/clean/0002']

        A creation cut short is completed, damaged metadata or coordinates are written again.

        Arguments:
            url: a folder, ``file://`` or ``s3://bucket/prefix``.
            groups: arrays and coordinates.
            units: the plan; every chunk belongs to one unit at most.
            job: the declaration of the work, JSON.
            fingerprint: hash of everything in the job that shapes the numbers and the plan.
            provenance: versions, commit, device and the like, JSON; that of the creation is kept on resuming.

        Raises:
            FingerprintMismatch: another job's store; lists the keys of the job that differ.
            StoreError: misaligned or overlapping units, something that looks like a credential, a folder that
                holds something else, or a place that cannot be written.
        """
        location = Location(url, create=True)
        create(location, groups, units, job, fingerprint, provenance)
        return cls(location)

    @classmethod
    def open(cls, url: str | os.PathLike[str]) -> Store:
        """Open a store that exists.

        >>> Store.open("runs/demo").fingerprint
        '1f'

        Raises:
            StoreError: no store there, or its record is damaged.
        """
        return cls(Location(url))

    def __reduce__(self) -> tuple[Any, ...]:
        return (
            Store.open,
            (str(self.location.folder or self.url),),
        )  # a worker may have another working directory

    def __repr__(self) -> str:
        return f"Store({self.url!r}, fingerprint={self.fingerprint!r}, units={len(self.units)})"

    def done(self) -> frozenset[str]:
        """Ids of the units whose data and marker are complete."""
        return frozenset(self.progress.markers()) & self.units.keys()

    def pending(self) -> list[Unit]:
        """Units still to do, in the order of the plan."""
        done = self.done()
        return [unit for unit in self.units.values() if unit.id not in done]

    def records(self) -> dict[str, dict[str, Any]]:
        """Unit id -> the record given when it was written."""
        return {unit: marker["record"] for unit, marker in self.progress.markers().items()}

    def lease(
        self, name: str = "run", interval: float = 10.0, expiry: float = 60.0, wait: float = 0.0
    ) -> Lease:
        """Hold the store while writing; use as a context manager.

        >>> with store.lease():
        ...     pass

        Arguments:
            name: what is leased; shards that may run side by side each take their own name.
            interval: seconds between heartbeats.
            expiry: seconds of silence after which others take over; from a dead process on this host, now.
            wait: seconds to wait for a live holder before giving up.

        Raises:
            StoreBusy: on entering, when a live process holds it.
        """
        self._lease = Lease(self.location, name, interval, expiry, wait)
        return self._lease

    def write(
        self, unit: Unit, values: Mapping[str, np.ndarray], record: Mapping[str, Any] | None = None
    ) -> None:
        """Write the arrays of a unit, then declare it done.

        >>> store.write(units[0], {"x": np.zeros(2, "float32")}, record={"seconds": 1.5})

        A note first, then the data, each chunk whole; then a marker with a hash of the content, created
        exclusively; the note goes last. Killed in between, the unit counts as not done. Writing a finished unit
        again with the same content is a no-op.

        Arguments:
            unit: one unit of the plan.
            values: array name -> values over the unit's region, dims in the array's order; for bfloat16
                uint16 bits (torch: `x.view(torch.uint16).numpy()`) or the ml_dtypes type.
            record: JSON kept with the marker (seconds, device, ...).

        Raises:
            StoreError: a unit outside the plan, missing or extra arrays, wrong shape, a lossy dtype, other
                content than a finished unit has, or a disk that refuses; the unit is then not marked.
            StoreBusy: the lease was taken over meanwhile.
        """
        if self.units.get(unit.id) != unit:
            raise StoreError(
                f"{self.url}: unit {unit.id!r} is not in the plan of this store as given; use store.units"
            )
        if set(values) != set(unit.arrays):
            raise StoreError(
                f"unit {unit.id!r}: writes {', '.join(unit.arrays)}, was given "
                f"{', '.join(values) or 'nothing'}"
            )
        record = as_json(dict(record or {}), f"unit {unit.id!r}: record")
        refuse_secrets(record, f"unit {unit.id!r}: record")
        group = self.groups[unit.group]
        windows = {name: aligned(group, unit, name) for name in unit.arrays}
        data = {name: fitting(group, unit, name, windows[name], values[name]) for name in unit.arrays}
        digests = {name: hash_array(array) for name, array in data.items()}
        marker = self.progress.find(unit.id)
        if marker is not None:
            if marker["arrays"] == digests:
                return
            raise StoreError(
                f"{self.url}: unit {unit.id!r} is done already, with other content in "
                f"{', '.join(n for n in digests if marker['arrays'].get(n) != digests[n])}; "
                "the stored values are kept: forget the unit to replace them"
            )
        if self._lease is not None and self._lease.lost:
            raise StoreBusy(
                f"{self.url}: the lease was taken over while this process was silent; run again to go on"
            )
        keys = {name: keys_of(group, unit, name) for name in unit.arrays}
        flat = [key for name in unit.arrays for key in keys[name]]
        self.writing.begin(unit.id)
        for name, array in data.items():
            with naming(f"write unit {unit.id!r}", self.location.at(f"{unit.group}/{name}")):
                try:
                    self._array(unit.group, name)[windows[name]] = array
                except DAMAGED:
                    # zarr reads the last shard of an array before it replaces it, and this one is damaged
                    self.location.delete(keys[name])
                    self._array(unit.group, name)[windows[name]] = array
        self.location.flush(flat)
        written = self.location.sizes(flat)
        sizes = {name: [written[key] or 0 for key in keys[name]] for name in unit.arrays}
        if not self.progress.mark(unit.id, digests, sizes, record):
            rival = self.progress.find(unit.id)
            if rival is None or rival["arrays"] != digests:
                # the data may be either's: nobody may trust them, and the note that stays says so
                self.progress.forget([unit.id])
                raise StoreError(
                    f"{self.url}: unit {unit.id!r} was written by two processes at once, with "
                    "differing content; it counts as not done: run one process at a time, again"
                )
        self.writing.end(unit.id)

    def read(self, unit_or_group: Unit | str, name: str, region: Region | None = None) -> np.ndarray:
        """Read a region of one array as it is stored (bfloat16 as uint16 bits).

        >>> store.read("demo", "x", {"pair": (1, 3)})
        array([0., 0.], dtype=float32)

        Arguments:
            unit_or_group: a unit (or its id), for its own region, or the path of a group.
            name: array.
            region: dim -> (start, stop); dims not named are whole, or those of the unit.

        Raises:
            StoreError: a chunk that is missing, empty or damaged (zarr reads the first two as fill values), or
                values of a whole unit that are not those it wrote.
        """
        if isinstance(unit_or_group, str):
            unit_or_group = self.units.get(unit_or_group, unit_or_group)
        bounds = dict(region or {})
        if isinstance(unit_or_group, Unit):
            bounds = {**unit_or_group.region, **bounds}
            unit_or_group = unit_or_group.group
        if unit_or_group not in self.groups:
            raise StoreError(
                f"{self.url}: no unit or group {unit_or_group!r}; groups are {', '.join(self.groups)}"
            )
        group = self.groups[unit_or_group]
        window = group.window(name, bounds, f"{self.url}: read {name!r}")
        for key, _ in group.chunks(name, window):
            if not self.location.size(key):
                raise StoreError(
                    f"{self.location.at(key)}: this chunk was not written yet, or is lost; run the "
                    "job, or `verify` the store"
                )
        values = self.raw(group.path, name, window)
        self._confirm(group, name, window, values)
        return values

    def _confirm(self, group: Group, name: str, window: tuple[slice, ...], values: np.ndarray) -> None:
        """Compare what was read with the markers of the units that lie within it."""
        key = group.path, name
        if key not in self._windows:
            self._windows[key] = [
                (unit, aligned(group, unit, name))
                for unit in self.units.values()
                if unit.group == group.path and name in unit.arrays
            ]
        units = [unit for unit, own in self._windows[key] if within(own, window)]
        place = self.location.at(f"{group.path}/{name}")
        for fresh in (False, True):
            if fresh or any(unit.id not in self._markers for unit in units):
                self._markers = self.progress.markers()
            written = parts(group, [unit for unit in units if unit.id in self._markers], self._markers, name)
            try:
                return confirm(values, window, written, place, self.url)
            except Damaged:
                if fresh:  # else another process may have written the unit again
                    raise

    def raw(self, group: str, name: str, window: tuple[slice, ...]) -> np.ndarray:
        """Decode a window of an array, missing chunks as fill values; names the array when one is damaged."""
        place = self.location.at(f"{group}/{name}")
        with naming("read", place):
            try:
                values = np.asarray(self._array(group, name)[window])
                return values.astype(object) if self.groups[group].array(name).dtype == "string" else values
            except DAMAGED as fault:
                where = ", ".join(f"[{w.start}, {w.stop})" for w in window)
                raise Damaged(
                    f"{place} {where}: damaged ({first_line(fault)}); `posttrace verify {self.url} --repair` "
                    "finds the chunk and forgets its unit, then run the job again"
                ) from fault

    def finalise(self) -> None:
        """Close a finished store: gather the markers into one file and mark the store complete.

        >>> store.finalise()

        Idempotent, and harmless when killed at any point. The metadata were consolidated at creation. Every chunk
        must be there in the size it was written with, and units that two processes wrote are read again.

        Raises:
            StoreError: units are not done yet (says how many and which comes first), or were done and are no
                longer what their markers say: those are forgotten, so that the next run does them again.
        """
        markers = self.progress.markers()
        pending = [unit for unit in self.units.values() if unit.id not in markers]
        if pending:
            raise StoreError(
                f"{self.url}: {len(pending)} of {len(self.units)} units are not done (first: "
                f"{pending[0].id}); run the job again, then finalise"
            )
        sizes = {key: size for path in self.groups for key, size, _ in self.location.list(path)}
        self._refuse(lost(self, self.units.values(), markers, sizes))
        singles = self.progress.gather()
        self.requests.drop()
        self.location.sweep([FOLDER, *self.groups])
        self.progress.finish(len(self.units))
        self.location.delete(singles)
        # last: whoever wrote a unit beside us has left a note by now, or a marker of its own
        notes, markers = self.writing.notes(self.units), self.progress.markers()
        self._refuse(
            p for unit in notes if unit in markers for p in altered(self, self.units[unit], markers[unit])
        )
        self.writing.drop(key for keys in notes.values() for key in keys)

    def _refuse(self, problems: Iterable[Problem]) -> None:
        """Forget the units that are not what they should be, and say so."""
        found = list(problems)
        if found:
            units = {problem.unit for problem in found}
            self.forget(units)
            raise StoreError(
                f"{found[0].path}: {found[0].what} (unit {found[0].unit}); {len(units)} units count as not done "
                "again, their data are gone; run the job again"
            )

    def forget(self, units: Iterable[Unit | str]) -> None:
        """Declare units not done and delete their data, so that the next run computes them again.

        >>> store.forget(["demo/clean/0002"])

        Raises:
            StoreError: an id that is not in the plan.
        """
        ids = [unit.id if isinstance(unit, Unit) else unit for unit in units]
        for unit in ids:
            if unit not in self.units:
                raise StoreError(
                    f"{self.url}: there is no unit {unit!r}; ids look like "
                    f"{next(iter(self.units), '(none)')!r}"
                )
        if not ids:
            return
        # data first: data without a marker or a note pass for a unit whose marker was lost
        chosen = [self.units[unit] for unit in ids]
        self.location.delete(
            key
            for unit in chosen
            for name in unit.arrays
            for key in keys_of(self.groups[unit.group], unit, name)
        )
        self.progress.forget(ids)

    def _array(self, group: str, name: str) -> Any:
        key = f"{group}/{name}"
        if key not in self._arrays:
            import zarr

            from posttrace.stores.bounded import bounded

            with bounded():
                self._arrays[key] = zarr.open_array(self.location.zarr, path=key, mode="r+")
        return self._arrays[key]


def forget(url: str | os.PathLike[str], units: Iterable[str]) -> None:
    """Declare units of a store not done, so that the next run computes them again.

    >>> forget("runs/demo", ["demo/clean/0002"])

    Their data are deleted.

    Raises:
        StoreError: no store there, or an id that is not in its plan.
    """
    Store.open(url).forget(units)
