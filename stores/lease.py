"""One writer at a time, or shards together: a lease kept alive by a heartbeat, taken over when its holder is dead."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from posttrace.stores.errors import StoreBusy, StoreError
from posttrace.stores.hashing import seal, unseal
from posttrace.stores.location import Location
from posttrace.stores.markers import LEASES
from posttrace.stores.schema import check_name


class Lease:
    """Hold a store while writing to it.

    Every contender writes a lease of its own and then lists all leases: of two, the later one sees the earlier,
    whatever the storage. Ages are differences between timestamps set by the storage, so clocks need not agree.

    Parameters
    ----------
    location
        The store.
    name
        What is leased.
    interval
        Seconds between heartbeats.
    expiry
        Seconds without a heartbeat after which others may take the lease over.
    wait
        Seconds to wait for a live holder before giving up.
    shard
        (i, n): hold it together with the other shards of the same n, which `claim` units from one another.

    Raises
    ------
    StoreBusy
        A live process holds the lease; the message names host, process and start time, and what to do.
    """

    def __init__(
        self,
        location: Location,
        name: str = "run",
        interval: float = 10.0,
        expiry: float = 60.0,
        wait: float = 0.0,
        shard: tuple[int, int] | None = None,
    ) -> None:
        if not 0 < interval < expiry:
            raise StoreError(f"lease: interval {interval} s must be above 0 and below expiry {expiry} s")
        check_name(name, "lease name")
        self.location, self.interval, self.expiry, self.wait = location, interval, expiry, wait
        self.prefix = f"{LEASES}{name}/"
        self.key = f"{self.prefix}{uuid.uuid4().hex}.json"
        self.lost = False
        """True when another process took this lease over (this one was silent for longer than expiry)."""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._body = {**this_process(), "since": now, "expiry": expiry}
        if shard is not None:
            self._body |= {"shard": list(shard), "units": []}
        self._writing = threading.Lock()

    def __enter__(self) -> Lease:
        deadline = time.monotonic() + self.wait
        attempt = 0
        while True:
            attempt += 1
            self._put()
            rival = next((other for other in self._others() if not self._shared(other[0])), None)
            if rival is None:
                self._thread = threading.Thread(target=self._beat, name="posttrace-lease", daemon=True)
                self._thread.start()
                return self
            self.location.delete([self.key])
            # Look three times at least: two contenders that arrive together both step back.
            if attempt >= 3 and time.monotonic() >= deadline:
                break
            time.sleep(random.uniform(0.05, 0.3))
        holder, age = rival
        place = _shard_of(holder)
        raise StoreBusy(
            f"{self.location.url}: in use by {f'shard {place[0]}/{place[1]}, ' if place else ''}process "
            f"{holder.get('pid')} on {holder.get('host', ['?'])[0]} since {holder.get('since')}, last heartbeat "
            f"{age:.0f} s ago; wait for it, stop it, or use another --store (a dead process is taken over "
            f"{holder.get('expiry', self.expiry):.0f} s after its last heartbeat"
            f"{'; shards run together if all are i/n of one n, each i once' if place else ''})"
        )

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        # A lease that cannot be removed expires by itself; the work it guarded must not fail because of it.
        with suppress(StoreError):
            self.location.delete([self.key])

    def claim(self, unit: str) -> bool:
        """Reserve a unit for this shard, unless another live shard has it; of two at the same time, none gets it.

        The caller looks afterwards whether the unit is done: who had it before writes its marker, then releases it.
        """
        self._put([*self._body["units"], unit])
        if any(unit in claimed for claimed in self.shards().values()):
            self.release(unit)
            return False
        return True

    def release(self, unit: str) -> None:
        """Give up a claim."""
        self._put([one for one in self._body["units"] if one != unit])

    def shards(self) -> dict[int, list[str]]:
        """Return number -> claimed units of every other shard that is alive; remove the leases of dead ones."""
        return {place[0]: body["units"] for body, _ in self._others() if (place := _shard_of(body))}

    def _shared(self, holder: dict[str, Any]) -> bool:
        mine, other = _shard_of(self._body), _shard_of(holder)
        return mine is not None and other is not None and mine[1] == other[1] and mine[0] != other[0]

    def _others(self) -> Iterator[tuple[dict[str, Any], float]]:
        """Yield the other live holders and the age of their heartbeats; remove the leases of dead ones."""
        times = {key: modified for key, _, modified in self.location.list(self.prefix)}
        mine = times.pop(self.key, None)
        if mine is None and self._thread is not None:
            raise self._lose()
        if mine is None:
            raise StoreError(
                f"{self.location.at(self.key)}: a lease just written is not listed; the storage is unusable"
            )
        for key, data in self.location.get_many(times).items():
            holder = unseal(data)
            if data is None:
                continue
            age = max(0.0, (mine - times[key]).total_seconds())
            expired = age > float((holder or {}).get("expiry", self.expiry))
            if expired or (holder is not None and gone(holder)):
                self.location.delete([key])
            else:
                yield holder or {}, age

    def _put(self, units: list[str] | None = None) -> None:
        """Write the lease, with the units claimed; a beat at the same time writes no older ones."""
        with self._writing:
            if units is not None:
                self._body = {**self._body, "units": units}
            if self._thread is not None and self.location.size(self.key) is None:
                raise self._lose()
            self.location.put(self.key, seal(self._body))

    def _lose(self) -> StoreBusy:
        """Note that another process took this lease over, and return the error that says so."""
        self.lost = True
        return taken_over(self.location)

    def _beat(self) -> None:
        while not (self.lost or self._stop.wait(self.interval)):
            with suppress(StoreError):  # the next beat makes up for a network fault, or stops
                self._put()


class Borrowed:
    """The lease of another process, for workers that write on its behalf."""

    def __init__(self, location: Location, key: str) -> None:
        self._location, self._key = location, key

    @property
    def lost(self) -> bool:
        """Whether that process has ended, or was taken over."""
        return self._location.size(self._key) is None


def taken_over(location: Location) -> StoreBusy:
    """Return the error of a process whose lease another one took over."""
    return StoreBusy(
        f"{location.url}: the lease was taken over while this process was silent; run again to go on"
    )


def _shard_of(body: dict[str, Any]) -> tuple[int, int] | None:
    """Return (i, n) of a lease that shards hold together, None of any other."""
    place = body.get("shard")
    return (place[0], place[1]) if isinstance(place, list) and len(place) == 2 else None


def _host() -> list[str | None]:
    """Return the host name and the process namespace; containers may share the first but not the second."""
    namespace = None
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return [socket.gethostname(), namespace]


def _process(pid: int) -> dict[str, Any]:
    """Return process id and start time in clock ticks; ids are reused, the pair is not."""
    started = None
    with suppress(OSError, IndexError), open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
        started = None if fields[0] == "Z" else fields[19]
    return {"pid": pid, "started": started}


def this_process() -> dict[str, Any]:
    """Return what identifies this process: its id, start time and host."""
    return {**_process(os.getpid()), "host": _host()}


def gone(holder: dict[str, Any]) -> bool:
    """Tell whether the process that `this_process` described ran on this host and has ended."""
    if holder.get("host") != _host() or not isinstance(holder.get("pid"), int):
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return _process(holder["pid"])["started"] != holder.get("started")
