"""Faults that tests arm: each happens a number of times, after a number of times that went well.

A fault of a *request* happens to the next POST, poll or download. A fault of a *job* is fixed to the next job that is
accepted and stays with it.
"""

import threading
from dataclasses import dataclass, field

OF_REQUESTS = {
    "post_status": "answer the POST with `code`, and with `retry_after` and `detail` if given; no job is made",
    "post_drop": "close the connection, `accepted`: after the job was made (its acknowledgement is lost)",
    "post_slow": "make the job, answer after `seconds`",
    "post_error": "answer the POST with status ERROR and `description`; no job is made",
    "post_garbage": "answer the POST with something that is not JSON; no job is made",
    "poll_status": "answer the poll with `code`, and with `retry_after` if given",
    "poll_garbage": "answer the poll with something that is not JSON",
    "poll_unknown": "answer the poll with a status that no client knows",
    "poll_drop": "close the connection",
    "poll_slow": "answer the poll after `seconds`",
    "poll_null": "answer the poll of a finished job with COMPLETED and no data",
    "download_status": "answer the download with `code`",
    "download_truncated": "announce the whole result, send half of it, close",
    "download_short": "send half of the result as if it were all",
    "download_reset": "send half of the result, reset the connection",
    "download_slow": "send the result after `seconds`",
}
OF_JOBS = {
    "lost": "accept the job and know nothing of it afterwards: 404 for ever",
    "hold": "stop at status `at` (PROVISIONING, DEPLOYING, QUEUED, RUNNING) for `seconds`, or until released",
    "fail": "end in ERROR: `why` is code (it raises while it runs), evicted, cancelled, later, timeout, undeployable",
    "expired": "the result's URL is refused with `code` for ever, and no other one is given",
    "result": "spoil the result: `how` is missing, extra, shape, dtype, nan, flip (a value), bytes (of the file)",
}


@dataclass
class Fault:
    kind: str
    times: int | None = 1
    """How often it happens; None for ever."""
    skip: int = 0
    """How many times it lets pass first."""
    options: dict = field(default_factory=dict)
    happened: int = 0


class Faults:
    def __init__(self):
        self._lock = threading.Lock()
        self._armed: list[Fault] = []

    def arm(self, kind: str, times: int | None = 1, skip: int = 0, **options) -> None:
        if kind not in OF_REQUESTS and kind not in OF_JOBS:
            raise ValueError(f"{kind!r} is no fault; choose one of {', '.join([*OF_REQUESTS, *OF_JOBS])}")
        with self._lock:
            self._armed.append(Fault(kind, times, skip, options))

    def clear(self) -> None:
        with self._lock:
            self._armed.clear()

    def take(self, prefix: str) -> tuple[str, dict] | None:
        """The fault that happens to this request, if any: the first armed one whose kind begins with `prefix`."""
        with self._lock:
            return next(filter(None, map(_happen, self._of(prefix))), None)

    def of_job(self) -> dict[str, dict]:
        """The faults of the job that is being accepted: kind -> options."""
        with self._lock:
            return dict(filter(None, (_happen(fault) for fault in self._armed if fault.kind in OF_JOBS)))

    def state(self) -> list[dict]:
        with self._lock:
            return [vars(fault) for fault in self._armed]

    def _of(self, prefix: str) -> list[Fault]:
        return [fault for fault in self._armed if fault.kind.startswith(prefix)]


def _happen(fault: Fault) -> tuple[str, dict] | None:
    if fault.skip:
        fault.skip -= 1
        return None
    if fault.times is not None and fault.happened >= fault.times:
        return None
    fault.happened += 1
    return fault.kind, fault.options
