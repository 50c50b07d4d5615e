"""What can go wrong between a run and a server, and how it must end: the sweep's table."""

from __future__ import annotations

from dataclasses import dataclass, field

UNITS = 4
"""Of the sweep's job, each one request."""
TRIED = 3 * UNITS // 2
"""Jobs after which the units that read nothing are given up."""
FOREVER = None


@dataclass(frozen=True)
class Scenario:
    fault: str
    """What goes wrong, for people."""
    arm: tuple[dict, ...]
    """The faults to arm (tests/support/remote/server/faults.py)."""
    answer: str
    """What the runner does about it, for people."""
    fails: str | None = None
    """A pattern that the error must match; None when the run must succeed at once."""
    jobs: int = UNITS
    """Jobs that the server accepts until the store is complete, the run after an error included."""
    stored: int = 0
    """Units in the store after the error."""
    limits: dict = field(default_factory=dict)
    """Settings of execution.remote, besides the sweep's own."""
    in_flight: int = 2
    restart: dict | None = None
    """How the server is restarted while the first job is held."""
    shows: str = ""
    """A pattern that people must have seen in the lines of the run."""

    @property
    def name(self) -> str:
        return "".join(c if c.isalnum() else "-" for c in self.fault.lower())


def one(fault, answer, kind, /, times=1, **options) -> Scenario:
    """A scenario of one fault that happens `times` times; the other options are the fault's, or the scenario's."""
    own = {name: options.pop(name) for name in list(options) if name in Scenario.__dataclass_fields__}
    return Scenario(fault, ({"kind": kind, "times": times, **options},), answer, **own)


SHORT = {"silence": 2.0}
AGAIN = "sent again after a growing wait"
ASKED_AGAIN = "asked again"
FETCHED = "asked for a new URL, fetched again"
RESENT = "submitted again, 3 times at most"

SUBMITTING = (
    one("POST answered 429 with Retry-After", "waits as long as asked, halves what is in flight", "post_status", 2,
        code=429, retry_after=0.2),
    one("POST answered 429 without Retry-After", AGAIN, "post_status", 3, code=429),
    one("POST answered 429 for ever", "unit fails at its deadline", "post_status", FOREVER, code=429, retry_after=0.2,
        fails=r"429.*|not accepted after", limits={"deadline": 2.0}),
    one("POST answered 500", AGAIN, "post_status", code=500),
    one("POST answered 502", AGAIN, "post_status", 2, code=502),
    one("POST answered 503 with Retry-After", "waits as long as asked", "post_status", code=503, retry_after=0.2),
    one("POST answered 503 for longer than a few tries take", AGAIN, "post_status", 6, code=503),
    one("POST answered 503 for ever", "run ends at the silence limit", "post_status", FOREVER, code=503,
        fails=r"answers 503.* in \d s \(execution.remote.silence\), try again later", in_flight=1, limits=SHORT),
    one("Connection dropped before the job was accepted", AGAIN, "post_drop", 2, accepted=False),
    one("Acknowledgement lost after the job was accepted", "sent again; the result counts once", "post_drop",
        accepted=True, jobs=UNITS + 1),
    one("Answer to the POST slow", "waits", "post_slow", seconds=1.0),
    one("Answer to the POST is no JSON", AGAIN, "post_garbage"),
    one("Answer to the POST is ERROR, try again later", RESENT, "post_error",
        description="Error starting model. Please try again later. Sorry for the inconvenience."),
    one("POST answered 400", "run ends, no retry", "post_status", code=400, detail="malformed", in_flight=1,
        fails=r"answers 400 \(malformed\)"),
    one("POST answered 400, this client is too old", "run ends, no retry", "post_status", code=400, in_flight=1,
        detail="Client nnsight version 0.8.1 is below the minimum supported 0.9.", fails=r"below the minimum"),
    one("POST answered 401", "run ends, no retry", "post_status", code=401, in_flight=1,
        fails=r"answers 401.*NDIF_API_KEY"),
    one("POST answered 403", "run ends, no retry", "post_status", code=403, in_flight=1,
        fails=r"answers 403.*NDIF_API_KEY"),
    one("POST answered 413", "unit fails, no retry", "post_status", code=413, detail="too large", stored=2,
        fails=r"answers 413 \(too large\)"),
)  # fmt: skip
WAITING = (
    one("Poll answered 500", ASKED_AGAIN, "poll_status", 3, code=500),
    one("Poll answered 429 with Retry-After", "waits as long as asked", "poll_status", 2, code=429, retry_after=0.2),
    one("Poll's answer is no JSON", ASKED_AGAIN, "poll_garbage", 2),
    one("Poll's answer has an unknown status", ASKED_AGAIN, "poll_unknown", 2),
    one("Poll's connection dropped", ASKED_AGAIN, "poll_drop", 2),
    one("Poll's answer slow", "waits", "poll_slow", seconds=1.0),
    one("COMPLETED without data, once", ASKED_AGAIN, "poll_null"),
    one("COMPLETED without data, for ever", "counts as silence; unit fails after 3 jobs", "poll_null", FOREVER,
        fails=r"completed without a result.*submitted 3 times", jobs=TRIED + UNITS // 2, limits=SHORT),
    one("Job lost (404 for ever)", "after the silence limit: " + RESENT, "lost", jobs=UNITS + 1, limits=SHORT),
    one("Every job lost", "unit fails after 3 jobs", "lost", FOREVER, limits=SHORT,
        fails=r"not known there.*submitted 3 times", jobs=TRIED + UNITS),
    one("Stuck in QUEUED", "unit fails at its deadline; the next run asks for the same job", "hold", at="QUEUED",
        fails=r"is queued .* after 8 s \(execution.remote.deadline\)", limits={"deadline": 8.0}, stored=2),
    one("Stuck in RUNNING", "unit fails at its deadline; the next run asks for the same job", "hold", at="RUNNING",
        fails=r"is running .* after 8 s \(execution.remote.deadline\)", limits={"deadline": 8.0}, stored=2),
    one("Server restarted, jobs kept", "asked again until it answers", "hold", at="RUNNING", in_flight=1,
        restart={"seconds": 0.5}),
    one("Server restarted, jobs forgotten", "after the silence limit: " + RESENT, "hold", at="RUNNING", in_flight=1,
        restart={"seconds": 0.5, "forget": True}, limits=SHORT, jobs=UNITS + 1),
    one("Cold model, loaded in a while", "waits, outside the deadline", "hold", at="DEPLOYING", seconds=1.0),
    one("Cold model, never loaded", "unit fails at the deploy limit", "hold", at="DEPLOYING",
        fails=r"is deploying .* after 1 s \(execution.remote.deploy\)", limits={"deploy": 1.0}, stored=2),
)  # fmt: skip
ENDING = (
    one("Code error in the block", "unit fails once, with the server's traceback", "fail", why="code", stored=2,
        jobs=UNITS + 1, fails=r"read_statements: .*RuntimeError: a fault in", shows=r"Traceback.*\n.*tracers/"),
    one("Replica evicted", RESENT, "fail", why="evicted", jobs=UNITS + 1),
    one("Job cancelled on purpose", "unit fails, no retry", "fail", why="cancelled", stored=2, jobs=UNITS + 1,
        fails=r"cancelled or preempted by the server"),
    one("Server's own trouble, try again later", RESENT, "fail", why="later", jobs=UNITS + 1),
    one("Evicted every time", "unit fails after 3 jobs", "fail", FOREVER, why="evicted",
        fails=r"evicted.*submitted 3 times", jobs=TRIED + UNITS),
    one("Execution timeout of the server", "unit fails, no retry", "fail", why="timeout", stored=2, jobs=UNITS + 1,
        fails=r"exceeded the execution timeout"),
    one("Model that the server cannot load", "run ends, no retry", "fail", why="undeployable", in_flight=1,
        jobs=UNITS + 1, fails=r"Could not deploy this model"),
)  # fmt: skip
FETCHING = (
    one("Download answered 404", FETCHED, "download_status", code=404),
    one("Download answered 500", FETCHED, "download_status", 2, code=500),
    one("Result's URL expired", "asked for a new URL; there is none: " + RESENT, "expired", code=403, jobs=UNITS + 1),
    one("Download cut off", FETCHED, "download_truncated", 2),
    one("Download reset", FETCHED, "download_reset", 2),
    one("Half of the result as if it were all", FETCHED, "download_short"),
    one("Download slow", "waits", "download_slow", seconds=1.0),
    one("Download answered 404 for ever", "unit fails after 3 jobs", "download_status", FOREVER, code=404,
        fails=r"cannot be downloaded.*submitted 3 times", jobs=TRIED + UNITS // 2),
    one("Result with a flipped bit", RESENT, "result", how="bytes", jobs=UNITS + 1),
    one("Result with a changed value", "checksum differs: " + RESENT, "result", how="flip", jobs=UNITS + 1),
    one("Result with a value missing", RESENT, "result", how="missing", jobs=UNITS + 1),
    one("Result with something added", RESENT, "result", how="extra", jobs=UNITS + 1),
    one("Result with a wrong shape", RESENT, "result", how="shape", jobs=UNITS + 1),
    one("Result with a wrong dtype", RESENT, "result", how="dtype", jobs=UNITS + 1),
    one("Result with a NaN", RESENT, "result", how="nan", jobs=UNITS + 1),
    one("Every result changed", "unit fails after 3 jobs", "result", FOREVER, how="flip",
        fails=r"checksum.*submitted 3 times", jobs=TRIED + UNITS),
)  # fmt: skip
SCENARIOS = (*SUBMITTING, *WAITING, *ENDING, *FETCHING)


@dataclass(frozen=True)
class Kill:
    phase: str
    arm: dict
    """The fault that holds the client in that phase."""
    until: dict
    """The server's record that shows that it is there."""
    jobs: int = UNITS
    known: bool = True
    """Whether the store has the job's id by then."""

    @property
    def name(self) -> str:
        return "".join(c if c.isalnum() else "-" for c in self.phase.lower())


KILLS = (
    Kill("before the POST is accepted", {"kind": "post_status", "times": FOREVER, "code": 429, "retry_after": 60},
         {"event": "post", "code": 429}, known=False),
    Kill("POST accepted, not acknowledged", {"kind": "post_slow", "seconds": 60}, {"event": "post", "code": 200},
         jobs=UNITS + 1, known=False),
    Kill("job id stored", {"kind": "hold", "at": "PROVISIONING"}, {"event": "poll"}),
    Kill("queued", {"kind": "hold", "at": "QUEUED"}, {"event": "poll", "status": "QUEUED"}),
    Kill("running", {"kind": "hold", "at": "RUNNING"}, {"event": "poll", "status": "RUNNING"}),
    Kill("downloading", {"kind": "download_slow", "seconds": 60}, {"event": "download"}),
)  # fmt: skip


def table() -> str:
    """The scenarios as Markdown; every number in it is asserted by the sweep."""
    lines = [
        f"| What happens | What the run does | It ends in | Jobs for {UNITS} requests |",
        "|---|---|---|---|",
    ]
    for scenario in SCENARIOS:
        end = "the right store" if scenario.fails is None else "a clear error, then the right store"
        lines.append(f"| {scenario.fault} | {scenario.answer} | {end} | {scenario.jobs} |")
    for kill in KILLS:
        done = "asks for the stored job" if kill.known else "submits the request again"
        lines.append(
            f"| Client killed (-9): {kill.phase} | the next run {done} | the right store | {kill.jobs} |"
        )
    return "\n".join(lines) + "\n"
