"""One request from submission to a checked result, through every fault that a network and a server can add.

    not submitted --POST--> submitted --polls--> completed --download--> result, checked
          ^                     |                    |
          +---- lost, evicted --+---- not whole -----+      each bounded, all within a deadline

The job id is noted as soon as it is known, so a client that was killed asks for that job instead of submitting
the request again. Only the class of a fault decides whether to try again; docs/remote.md has
the table.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from posttrace.tracers.errors import TracerError
from posttrace.tracers.remote.errors import JobFailed, Unavailable
from posttrace.tracers.remote.policy import ConcurrencyLimit, Policy
from posttrace.tracers.remote.request import Request
from posttrace.tracers.remote.result import CorruptResult, loaded
from posttrace.tracers.remote.server import TOO_LARGE, Gone, Refused, Reply, Server, Trouble, client_versions

TRANSIENT = re.compile(
    r"evict|preempted|try again later|resubmit|temporarily|(actor|replica|worker|node) (has )?(died|crashed|restarted)|"
    r"server (is )?shutting down",
    re.IGNORECASE,
)
"""Server messages that mean the job itself is not at fault and may be submitted again."""
CANCELLED = re.compile(r"cancelled (or preempted )?by the server", re.IGNORECASE)
"""Someone ended the job on purpose: a server that only needs room for another model keeps the job."""
UNDEPLOYED = re.compile(r"could not deploy this model", re.IGNORECASE)
"""Every job for this model would fail the same way."""


class Note(Protocol):
    """Where one request's job id is kept, so that it outlives this process."""

    def find(self) -> dict[str, Any] | None:
        """Return what was kept last."""

    def keep(self, body: dict[str, Any]) -> None:
        """Keep a JSON document instead of the last one."""


@dataclass
class MemoryNote:
    """A note kept in memory only, for requests made without a store."""

    body: dict[str, Any] | None = None

    def find(self):
        return self.body

    def keep(self, body):
        self.body = body


@dataclass
class Facts:
    """What a request took, for the record of its unit."""

    operation: str
    job: str = ""
    submissions: int = 0
    resumed: bool = False
    """Whether an earlier process had submitted the job."""
    request_bytes: int = 0
    result_bytes: int = 0
    client: dict[str, str] = field(default_factory=client_versions)
    server: dict[str, str] = field(default_factory=dict)


class _Lost(Exception):
    """The job will return no result; submit it again."""


class Runner:
    """Performs requests on one server, from any number of threads.

    Examples
    --------
    >>> runner = Runner(configured(), Policy(), ConcurrencyLimit(4))             # doctest: +SKIP
    """

    def __init__(self, server: Server, policy: Policy, concurrency: ConcurrencyLimit):
        self.server = server
        self.policy = policy
        self.concurrency = concurrency

    def perform(
        self,
        request: Request,
        model_key: str,
        env: dict[str, Any],
        note: Note,
        report: Callable[[str], None] = lambda text: None,
    ) -> tuple[dict[str, Any], Facts]:
        """Return the outcome of a request (see `tracers.remote.serving.answer`), and what it took.

        Parameters
        ----------
        report
            Called with a line whenever there is something new. Raises JobFailed for this request alone, Unavailable
            when the server cannot be used, Stopped when the run is being stopped.
        """
        with self.concurrency:
            return RequestRun(self, request, model_key, env, note, report).run()


class RequestRun:
    """One request, from submission to a checked result."""

    def __init__(self, runner: Runner, request: Request, model_key, env, note: Note, report):
        self.server, self.policy, self.concurrency = runner.server, runner.policy, runner.concurrency
        self.request, self.model_key, self.env, self.note, self.report = request, model_key, env, note, report
        self.facts = Facts(operation=request.operation, request_bytes=len(request.blob))
        self.submitted = 0
        """Submissions by this process: a resumed run has all its attempts again."""
        self.begun = time.monotonic()
        self.overdue = False
        """Whether the job outlived the deadline of the run before this one."""
        self.deploying: float | None = None
        """When the server began to load the model, while it does."""
        self.deployed = 0.0
        """Seconds that it took to load the model, which the deadline does not count."""

    def run(self) -> tuple[dict[str, Any], Facts]:
        job = self._resume()
        while True:
            try:
                job = job or self._submit()
                outcome = self._result(job)
                self.facts.job = job
                return outcome, self.facts
            except _Lost as lost:
                job = None
                if self.submitted >= self.policy.attempts:
                    raise self._failed(f"{lost}; submitted {self.submitted} times") from None
                self.report(f"{lost}; submitting it again")
                self._keep("lost")
                self._pause(max(self.submitted, 1))

    def _resume(self) -> str | None:
        """Return the job that an earlier process submitted for the very same request."""
        kept = self.note.find() or {}
        if kept.get("digest") != self.request.digest or not kept.get("job"):
            return None
        self.facts.submissions, self.facts.resumed = int(kept.get("submissions", 1)), True
        if kept.get("host") != self.server.host:
            return None
        job = kept["job"]
        self.overdue = kept.get("state") == "overdue"
        if kept.get("state") == "stuck":
            # It outlived the deadlines of two runs: it has one more chance to be finished.
            try:
                reply = self.server.ask(job)
            except (Trouble, Refused):
                reply = None
            if reply is None or reply.status != "COMPLETED":
                self.facts.submissions = 0
                return None
        self.report(f"asking for job {job}, submitted earlier")
        return job

    def _submit(self) -> str:
        self._keep("intended")
        retry, heard = 0, time.monotonic()
        while True:
            self._check_deadline("it was not accepted")
            try:
                reply = self.server.submit(self.model_key, self.env, self.request.blob)
                break
            except Refused as error:
                if error.code == TOO_LARGE:
                    raise self._failed(str(error)) from None
                # Versions, the envelope, the address: every other request shares them.
                raise Unavailable(f"{self.request.operation}: {error}") from None
            except Trouble as trouble:
                if trouble.busy:
                    self.concurrency.slow_down()
                    heard = time.monotonic()
                else:
                    retry += 1
                away = time.monotonic() - heard
                if away > self.policy.silence:
                    raise Unavailable(
                        f"{trouble}; tried {retry} times in {away:.0f} s (execution.remote.silence), try again later"
                    ) from None
                seconds = self.policy.wait_before(max(retry - 1, 0), trouble.wait)
                self.report(f"{trouble}; trying again in {seconds:.0f} s")
                self.concurrency.sleep(seconds)
        self.submitted += 1
        self.facts.submissions += 1
        self.facts.job = reply.job
        self._keep("submitted", job=reply.job)
        self.report(f"job {reply.job}: sent {len(self.request.blob):,} bytes, {_told(reply)}")
        self._end_of_error(reply)
        return reply.job

    def _result(self, job: str) -> dict[str, Any]:
        """Ask until the job is completed, fetch its result, and check it; ask again when it is incomplete."""
        failures, gone = 0, None
        while True:
            url = self._completed(job)
            if url == gone:
                raise _Lost(f"job {job}: its result is no longer there")
            try:
                content = self.server.download(url, self.policy.max_result)
                outcome = loaded(content, self.policy.max_result)
            except Refused as error:
                raise self._failed(str(error)) from None
            except (Trouble, CorruptResult) as trouble:
                failures += 1
                gone = url if isinstance(trouble, Gone) else None
                if failures >= self.policy.retries:
                    raise _Lost(f"job {job}: {trouble}, {failures} times") from None
                self.report(f"job {job}: {trouble}; asking for it again")
                self._pause(failures)
                continue
            except TracerError as error:
                raise self._failed(str(error)) from None
            self.facts.result_bytes = len(content)
            self.facts.server = {str(k): str(v) for k, v in (outcome.get("versions") or {}).items()}
            self.report(f"job {job}: received {len(content):,} bytes")
            return outcome

    def _completed(self, job: str) -> str:
        """Where the result is, once it is there."""
        heard, wait, told = time.monotonic(), self.policy.poll, ""
        while True:
            self._check_deadline(f"job {job} is {told or 'silent'}", job)
            try:
                reply = self.server.ask(job)
                trouble = None
            except Refused as error:
                raise self._failed(str(error)) from None
            except Trouble as error:
                reply, trouble = None, error
            if reply is not None and reply.status == "COMPLETED" and reply.url:
                self._deploying(False)
                return reply.url
            if reply is not None and reply.status != "COMPLETED":
                self._end_of_error(reply)
                self._deploying(reply.status in ("PROVISIONING", "DEPLOYING"))
                heard = time.monotonic()
            if time.monotonic() - heard > self.policy.silence:
                raise _Lost(
                    f"job {job}: no sensible answer for {self.policy.silence:.0f} s ({_why(reply, trouble)})"
                )
            now = _told(reply) if reply else str(trouble or "not known yet")
            if now != told:
                told, wait = now, self.policy.poll
                self.report(f"job {job}: {now}")
            self.concurrency.sleep(trouble.wait if trouble and trouble.wait is not None else wait)
            wait = min(wait * 1.5, self.policy.longest_poll)

    def _end_of_error(self, reply: Reply) -> None:
        """Classify an ERROR: submit again after the server's own failures, not after faults of the code."""
        if reply.status != "ERROR":
            return
        last = reply.text.strip().rpartition("\n")[2]
        if TRANSIENT.search(last) and not CANCELLED.search(last):
            raise _Lost(f"job {reply.job}: {_line(reply.text)}")
        self._keep("failed")
        if UNDEPLOYED.search(last):
            raise Unavailable(f"{self.request.operation}: job {reply.job}: {_line(reply.text)}")
        raise self._failed(f"job {reply.job} ended in an error on the server:\n{reply.text.strip()[-4000:]}")

    def _deploying(self, now: bool) -> None:
        if now and self.deploying is None:
            self.deploying = time.monotonic()
        elif not now and self.deploying is not None:
            self.deployed += time.monotonic() - self.deploying
            self.deploying = None

    def _check_deadline(self, state: str, job: str | None = None) -> None:
        now = time.monotonic()
        if self.deploying is not None:
            if now - self.deploying <= self.policy.deploy:
                return
            limit, name = self.policy.deploy, "deploy"
        elif now - self.begun - self.deployed <= self.policy.deadline:
            return
        else:
            limit, name = self.policy.deadline, "deadline"
        if job:
            self._keep("stuck" if self.overdue else "overdue", job=job)
        raise self._failed(
            f"{state} after {limit:.0f} s (execution.remote.{name}); run the command again later, or raise it"
        )

    def _pause(self, retry: int) -> None:
        self.concurrency.sleep(self.policy.wait_before(retry - 1))

    def _keep(self, state: str, job: str | None = None) -> None:
        body: dict[str, str | int | None] = {
            "state": state,
            "digest": self.request.digest,
            "operation": self.request.operation,
        }
        body |= {"host": self.server.host, "submissions": self.facts.submissions, "job": job}
        self.note.keep(body)

    def _failed(self, why: str) -> JobFailed:
        return JobFailed(f"{self.request.operation}: {why}")


def _told(reply: Reply) -> str:
    return f"{reply.status.lower()} {_line(reply.text)}".strip()


def _line(text: str) -> str:
    """Return the last line of a server's message: of a traceback, the error."""
    return " ".join(text.strip().rpartition("\n")[2].split())[:160]


def _why(reply: Reply | None, trouble: Trouble | None) -> str:
    return str(trouble) if trouble else "completed without a result" if reply else "it is not known there"
