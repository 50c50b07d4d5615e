"""One writer at a time: a lease kept alive by a heartbeat and taken over when its holder is dead."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
import uuid
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
        What is leased; shards of one job that may run in parallel each lease their own name.
    interval
        Seconds between heartbeats.
    expiry
        Seconds without a heartbeat after which others may take the lease over.
    wait
        Seconds to wait for a live holder before giving up.

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

    def __enter__(self) -> Lease:
        deadline = time.monotonic() + self.wait
        attempt = 0
        while True:
            attempt += 1
            self.location.put(self.key, seal(self._body))
            rival = self._rival()
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
        raise StoreBusy(
            f"{self.location.url}: in use by process {holder.get('pid')} on "
            f"{holder.get('host', ['?'])[0]} since {holder.get('since')}, last heartbeat {age:.0f} s ago; "
            "wait for it, stop it, or use another --store (a dead process is taken over "
            f"{holder.get('expiry', self.expiry):.0f} s after its last heartbeat)"
        )

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        # A lease that cannot be removed expires by itself; the work it guarded must not fail because of it.
        with suppress(StoreError):
            self.location.delete([self.key])

    def _rival(self) -> tuple[dict[str, Any], float] | None:
        """Return a live holder and the age of its heartbeat; remove the leases of dead holders."""
        times = {key: modified for key, _, modified in self.location.list(self.prefix)}
        mine = times.pop(self.key, None)
        if mine is None:
            raise StoreError(
                f"{self.location.at(self.key)}: a lease just written is not listed; the storage is unusable"
            )
        for key, modified in times.items():
            data = self.location.get(key)
            holder = unseal(data)
            if data is None:
                continue
            age = max(0.0, (mine - modified).total_seconds())
            expired = age > float((holder or {}).get("expiry", self.expiry))
            if expired or (holder is not None and gone(holder)):
                self.location.delete([key])
            else:
                return holder or {}, age
        return None

    def _beat(self) -> None:
        while not self._stop.wait(self.interval):
            with suppress(StoreError):  # the next beat makes up for a network fault
                if self.location.size(self.key) is None:
                    self.lost = True
                    return
                self.location.put(self.key, seal(self._body))


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
