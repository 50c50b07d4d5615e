"""Jobs from acceptance to result: one worker runs them in order, statuses are kept or sent as NDIF does."""

import itertools
import queue
import threading
import time
import uuid
from dataclasses import dataclass, field

from . import execution
from .execution import Models
from .faults import Faults
from .record import Record
from .spoil import flip_byte, spoil

SAYS = {
    "PROVISIONING": "Model Provisioning...",
    "DEPLOYING": "Model Deploying...",
    "QUEUED": "Added to Queue at position {position}.",
    "DISPATCHED": "Your job has been sent to the model deployment.",
    "RUNNING": "Your job has started running.",
    "COMPLETED": "Your job has been completed.",
}
ENDS = {
    "evicted": "Replica was evicted while processing your request. Please try again later.",
    "cancelled": "Your job was cancelled or preempted by the server.",
    "later": "Error submitting request to model deployment. Please try again later. Sorry for the inconvenience.",
    "timeout": "Your job exceeded the execution timeout of 300s.",
    "undeployable": "Could not deploy this model. {repo}: 401 Client Error. Repository Not Found.",
}


@dataclass
class Job:
    id: str
    model_key: str
    blob: bytes
    compress: bool
    env: dict
    session_id: str
    trusted: bool
    faults: dict
    status: dict | None = None
    """The latest response; None until the job is queued."""
    result: bytes | None = None
    passed: set = field(default_factory=set)
    """Statuses at which it was held and released."""


class Jobs:
    def __init__(self, models: Models, faults: Faults, record: Record):
        self.models = models
        self.address = ""
        self.sessions: dict[str, object] = {}
        """Session id -> function that sends a frame."""
        self._faults = faults
        self._record = record
        self._jobs: dict[str, Job] = {}
        self._queue: queue.Queue[Job] = queue.Queue()
        self._numbers = itertools.count(1)
        threading.Thread(target=self._work, daemon=True).start()

    def accept(self, envelope: dict, blob: bytes, *, trusted: bool) -> Job:
        job = Job(
            id=uuid.uuid4().hex,
            model_key=envelope["model_key"],
            blob=blob,
            compress=envelope.get("compress", False),
            env=envelope.get("env", {}),
            session_id=envelope.get("session_id", ""),
            trusted=trusted,
            faults=self._faults.of_job(),
        )
        if "lost" not in job.faults:
            self._jobs[job.id] = job
            # Not before the POST has its answer: a client knows the id first.
            threading.Timer(0.01, self._proceed, [job]).start()
        return job

    def find(self, job_id: str) -> Job | None:
        return self._jobs.get(job_id)

    def release(self) -> int:
        """Let every job that is held go on."""
        held = [job for job in list(self._jobs.values()) if self._held(job)]
        for job in held:
            self._let_go(job)
        return len(held)

    def unfinished(self) -> int:
        """How many jobs have neither a result nor an error."""
        said = [job.status["status"] if job.status else "" for job in list(self._jobs.values())]
        return sum(status not in ("COMPLETED", "ERROR") for status in said)

    def forget(self) -> None:
        self._jobs.clear()

    def _held(self, job: Job) -> bool:
        at = job.faults.get("hold", {}).get("at")
        return (
            at is not None and at not in job.passed and job.status is not None and job.status["status"] == at
        )

    def _let_go(self, job: Job) -> None:
        if self._held(job):
            job.passed.add(job.faults["hold"]["at"])
            self._proceed(job)

    def _stops(self, job: Job, at: str) -> bool:
        hold = job.faults.get("hold", {})
        if hold.get("at") != at or at in job.passed:
            return False
        self._say(job, at)
        if hold.get("seconds") is not None:
            threading.Timer(hold["seconds"], self._let_go, [job]).start()
        return True

    def _proceed(self, job: Job) -> None:
        """From acceptance, or from where it was held, to the worker's queue."""
        if job.model_key not in self.models:
            self._say(job, "ERROR", ENDS["undeployable"].format(repo=execution.repo(job.model_key)))
        elif not any(self._stops(job, at) for at in ("PROVISIONING", "DEPLOYING", "QUEUED")):
            if "QUEUED" not in job.passed and "RUNNING" not in job.passed:
                self._say(job, "QUEUED")
            self._queue.put(job)

    def _work(self) -> None:
        while True:
            job = self._queue.get()
            if job.id not in self._jobs or self._stops(job, "RUNNING"):
                continue
            if "RUNNING" not in job.passed:
                self._say(job, "DISPATCHED")
                self._say(job, "RUNNING")
            self._finish(job)

    def _finish(self, job: Job) -> None:
        started = time.monotonic()
        failure, saves = None, {}
        try:
            why = job.faults.get("fail", {}).get("why")
            if why is not None and why != "code":
                failure = ENDS[why]
            else:
                saved = self._run(job, raising=why == "code")
                how = job.faults.get("result", {}).get("how")
                if how not in (None, "bytes"):
                    saved = spoil(saved, how)
                if isinstance(saved, dict):
                    saves = {name: type(value).__name__ for name, value in saved.items()}
                job.result = execution.pack(saved, job.compress)
                if how == "bytes":
                    job.result = flip_byte(job.result)
        except Exception as error:  # whatever shipped code raises is the client's to know
            failure = execution.explained(error)
        self._record.write(
            "run",
            job=job.id,
            model_key=job.model_key,
            seconds=time.monotonic() - started,
            foreign=self._record.foreign(),
            saves=saves,
            result_bytes=len(job.result or b""),
            error=failure,
        )
        if failure is not None:
            self._say(job, "ERROR", failure)
        else:
            self._say(
                job, "COMPLETED", data=self.url(job), meta={"exec_ms": 1000 * (time.monotonic() - started)}
            )

    def _run(self, job: Job, raising: bool) -> "dict | bytes":
        words = "a fault in the block, armed by a test" if raising else ""
        return self.models.run(job.model_key, job.blob, job.compress, job.env, job.trusted, words)

    def url(self, job: Job) -> str:
        """Where the result is fetched without a key; another one each time, as signed ones are."""
        number = 0 if "expired" in job.faults else next(self._numbers)
        return f"{self.address}/results/{job.id}?signature={number}"

    def _say(self, job: Job, status: str, description: str | None = None, data=None, meta=None) -> None:
        if description is None:
            description = SAYS[status].format(position=self._queue.qsize() + 1)
        said = {"id": job.id, "status": status, "description": description, "data": data, "meta": meta}
        self._record.write("status", job=job.id, status=status, description=description.splitlines()[:1])
        if job.session_id:
            send = self.sessions.get(job.session_id)
            if send is not None:
                send(self._frame(job, said))
        else:
            job.status = said

    def _frame(self, job: Job, said: dict) -> dict | bytes:
        """What goes over a websocket: a status, or a result that comes along with it."""
        if said["status"] != "COMPLETED":
            return said
        from nnsight.schema.response import ResponseModel

        return ResponseModel(**{**said, "data": job.result}).pickle()
