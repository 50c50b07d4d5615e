"""The store: create or resume it, write units, read regions, finalise."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from shlex import quote
from typing import Any

import numpy as np

from posttrace.stores.checking import Problem, altered, confirm, keys_of, lost, parts, within
from posttrace.stores.create import create
from posttrace.stores.credentials import refuse_secrets
from posttrace.stores.errors import DAMAGED, Damaged, StoreError, first_line, naming
from posttrace.stores.hashing import as_json, hash_array
from posttrace.stores.lease import Borrowed, Lease, taken_over
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

    Use `Store.create` or `Store.open`. It pickles as its URL, so it can be passed to workers.

    Examples
    --------
    >>> x = Array("x", ("pair",), "float32", "logit difference, nats", "a number", {"pair": 2})
    >>> group = Group("demo", {"pair": 4}, (x,))
    >>> units = [Unit(f"demo/clean/{i:04}", "demo", {"pair": (i, i + 2)}, ("x",)) for i in (0, 2)]
    >>> store = Store.create("runs/demo", [group], units, {"study": "demo"}, "1f", provenance={})
    >>> with store.lease():
    ...     for unit in store.pending():
    ...         store.write(unit, {"x": np.zeros(2, "float32")})
    >>> store.finalise()
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
            """Group path -> declaration, without coordinates (use `open_group` for those)."""
            self.units: dict[str, Unit] = {data["id"]: unit_from_json(data) for data in record["units"]}
            """Unit id -> unit, in the order of the plan."""
        self.progress = Progress(location, self.fingerprint)
        self.requests = Requests(location)
        """Jobs submitted to a server for unfinished units."""
        self.writing = Writing(location)
        """Units that a process is writing, or was writing when it ended."""
        self._markers: dict[str, Any] = {}
        self._windows: dict[tuple[str, str], list[tuple[Unit, tuple[slice, ...]]]] = {}
        self._arrays: dict[str, Any] = {}
        self._lease: Lease | Borrowed | None = None

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
        """Create a store, or open the existing one with the same fingerprint to resume it.

        An interrupted creation is completed; damaged metadata and coordinates are rewritten.

        Parameters
        ----------
        url
            A folder, ``file://`` or ``s3://bucket/prefix``.
        groups
            Arrays and coordinates.
        units
            The plan; a chunk belongs to at most one unit.
        job
            The declaration of the work, JSON.
        fingerprint
            Hash of everything in the job that shapes the numbers and the plan.
        provenance
            Versions, commit, device and so on, JSON; kept from the creation on resuming.

        Raises
        ------
        FingerprintMismatch
            The store belongs to another job; lists the keys that differ.
        StoreError
            Misaligned or overlapping units, something that looks like a credential, a folder with other contents,
            or a location that cannot be written.

        Examples
        --------
        >>> again = Store.create("runs/demo", [group], units, {"study": "demo"}, "1f", provenance={})
        >>> sorted(again.done())
        ['demo/clean/0000', 'demo/clean/0002']
        """
        location = Location(url, create=True)
        create(location, groups, units, job, fingerprint, provenance)
        return cls(location)

    @classmethod
    def open(cls, url: str | os.PathLike[str]) -> Store:
        """Open an existing store.

        Raises
        ------
        StoreError
            There is no store, or its record is damaged.

        Examples
        --------
        >>> Store.open("runs/demo").fingerprint
        '1f'
        """
        return cls(Location(url))

    def __reduce__(self) -> tuple[Any, ...]:
        # An absolute path: a worker may have another working directory.
        return Store.open, (str(self.location.folder or self.url),)

    def __repr__(self) -> str:
        return f"Store({self.url!r}, fingerprint={self.fingerprint!r}, units={len(self.units)})"

    def done(self) -> frozenset[str]:
        """Return the ids of the finished units."""
        return frozenset(self.progress.markers()) & self.units.keys()

    def pending(self) -> list[Unit]:
        """Return the unfinished units, in the order of the plan."""
        done = self.done()
        return [unit for unit in self.units.values() if unit.id not in done]

    def records(self) -> dict[str, dict[str, Any]]:
        """Return unit id -> the record given when it was written."""
        return {unit: marker["record"] for unit, marker in self.progress.markers().items()}

    def lease(
        self,
        name: str = "run",
        interval: float = 10.0,
        expiry: float = 60.0,
        wait: float = 0.0,
        shard: tuple[int, int] | None = None,
    ) -> Lease:
        """Hold the store while writing; use as a context manager.

        Parameters
        ----------
        name
            What is leased.
        interval
            Seconds between heartbeats.
        expiry
            Seconds of silence after which others take over; a dead process on this host is replaced at once.
        wait
            Seconds to wait for a live holder before giving up.
        shard
            (i, n): hold it together with the other shards of the same n (see `Lease.claim`).

        Raises
        ------
        StoreBusy
            On entering, if a live process holds it.

        Examples
        --------
        >>> with store.lease():
        ...     pass
        """
        lease = self._lease = Lease(self.location, name, interval, expiry, wait, shard)
        return lease

    def borrow(self, key: str) -> None:
        """Write on behalf of the process that holds the lease with this key, as long as it holds it."""
        self._lease = Borrowed(self.location, key)

    def write(
        self, unit: Unit, values: Mapping[str, np.ndarray], record: Mapping[str, Any] | None = None
    ) -> None:
        """Write the arrays of a unit, then mark it done.

        A note is written first, then the data in whole chunks, then a marker with a hash of the content, created
        exclusively; the note is deleted last. If killed in between, the unit counts as not done. Rewriting a finished
        unit with the same content is a no-op.

        Parameters
        ----------
        unit
            One unit of the plan.
        values
            Array name -> values over the unit's region, dims in the array's order; for bfloat16
            uint16 bits (torch: `x.view(torch.uint16).numpy()`) or the ml_dtypes type.
        record
            JSON kept with the marker (seconds, device, ...).

        Raises
        ------
        StoreError
            A unit outside the plan, missing or extra arrays, a wrong shape, a lossy dtype, content that differs
            from a finished unit's, or a failed write; the unit is then not marked.
        StoreBusy
            The lease was taken over in the meantime.

        Examples
        --------
        >>> store.write(units[0], {"x": np.zeros(2, "float32")}, record={"seconds": 1.5})
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
            raise taken_over(self.location)
        keys = {name: keys_of(group, unit, name) for name in unit.arrays}
        flat = [key for name in unit.arrays for key in keys[name]]
        self.writing.begin(unit.id)
        for name, array in data.items():
            with naming(f"write unit {unit.id!r}", self.location.at(f"{unit.group}/{name}")):
                try:
                    self._array(unit.group, name)[windows[name]] = array
                except DAMAGED:
                    # zarr reads an array's last shard before replacing it, and this one is damaged.
                    self.location.delete(keys[name])
                    self._array(unit.group, name)[windows[name]] = array
        self.location.flush(flat)
        written = self.location.sizes(flat)
        sizes = {name: [written[key] or 0 for key in keys[name]] for name in unit.arrays}
        if not self.progress.mark(unit.id, digests, sizes, record):
            rival = self.progress.find(unit.id)
            if rival is None or rival["arrays"] != digests:
                # The data may be either process's: do not trust it, as the note that stays says.
                self.progress.forget([unit.id])
                raise StoreError(
                    f"{self.url}: unit {unit.id!r} was written by two processes at once, with "
                    "differing content; it counts as not done: run one process at a time, again"
                )
        self.writing.end(unit.id)

    def read(self, unit_or_group: Unit | str, name: str, region: Region | None = None) -> np.ndarray:
        """Read a region of one array as stored (bfloat16 as uint16 bits).

        Parameters
        ----------
        unit_or_group
            A unit or its id, which gives the default region, or the path of a group.
        name
            Array.
        region
            Dim -> (start, stop); dims not named are whole, or as in the unit.

        Raises
        ------
        StoreError
            A chunk is missing, empty or damaged (zarr reads the first two as fill values), or the values of a whole
            unit are not those it wrote.

        Examples
        --------
        >>> store.read("demo", "x", {"pair": (1, 3)})
        array([0., 0.], dtype=float32)
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
        for key, size in self.location.sizes(key for key, _ in group.chunks(name, window)).items():
            if not size:
                raise StoreError(
                    f"{self.location.at(key)}: this chunk was not written yet, or is lost; run the "
                    "job, or `verify` the store"
                )
        values = self.raw(group.path, name, window)
        self._confirm(group, name, window, values)
        return values

    def _confirm(self, group: Group, name: str, window: tuple[slice, ...], values: np.ndarray) -> None:
        """Compare values with the markers of the units inside the window."""
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
                if fresh:  # otherwise another process may have rewritten the unit
                    raise

    def raw(self, group: str, name: str, window: tuple[slice, ...]) -> np.ndarray:
        """Decode a window of an array, missing chunks as fill values; raise Damaged if a chunk does not decode."""
        place = self.location.at(f"{group}/{name}")
        with naming("read", place):
            try:
                values = np.asarray(self._array(group, name)[window])
                return values.astype(object) if self.groups[group].array(name).dtype == "string" else values
            except DAMAGED as fault:
                where = ", ".join(f"[{w.start}, {w.stop})" for w in window)
                raise Damaged(
                    f"{place} {where}: damaged ({first_line(fault)}); `posttrace verify {quote(self.url)} --repair` "
                    "finds the chunk and forgets its unit, then run the job again"
                ) from fault

    def finalise(self) -> None:
        """Close a finished store: gather the markers in one file and mark the store complete.

        Idempotent, and safe to kill at any point. Every chunk must exist with the size it was written with, and units
        written by two processes are read again.

        Raises
        ------
        StoreError
            Units are not done (gives their number and the first one), or finished units no longer match their
            markers: those are forgotten, so that the next run recomputes them.

        Examples
        --------
        >>> store.finalise()
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
        # Last: another process that wrote a unit has left a note by now, or a marker of its own.
        notes, markers = self.writing.notes(self.units), self.progress.markers()
        self._refuse(
            p for unit in notes if unit in markers for p in altered(self, self.units[unit], markers[unit])
        )
        self.writing.drop(key for keys in notes.values() for key in keys)

    def _refuse(self, problems: Iterable[Problem]) -> None:
        """Forget the units with problems, and raise."""
        found = list(problems)
        if found:
            units = {problem.unit for problem in found}
            self.forget(units)
            raise StoreError(
                f"{found[0].path}: {found[0].what} (unit {found[0].unit}); {len(units)} units count as not done "
                "again, their data are gone; run the job again"
            )

    def forget(self, units: Iterable[Unit | str]) -> None:
        """Mark units as not done and delete their data, so that the next run recomputes them.

        Raises
        ------
        StoreError
            An id is not in the plan.

        Examples
        --------
        >>> store.forget(["demo/clean/0002"])
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
        # Data first: data with neither marker nor note would look like a unit whose marker was lost.
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
    """Mark units of a store as not done and delete their data, so that the next run recomputes them.

    Raises
    ------
    StoreError
        There is no store, or an id is not in its plan.

    Examples
    --------
    >>> forget("runs/demo", ["demo/clean/0002"])
    """
    Store.open(url).forget(units)
