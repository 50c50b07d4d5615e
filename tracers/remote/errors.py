"""What can go wrong with a request; the message names place, cause and fix."""

from __future__ import annotations

from posttrace.tracers.errors import TracerError


class JobFailed(TracerError):
    """One request cannot be answered; others may well be. What was stored stays, a rerun tries this one again."""


class Unavailable(TracerError):
    """Going on with other requests is of no use: key, host, network, or what all of a job's requests have in common."""


class Stopped(TracerError):
    """The run is being stopped (Ctrl-C, or another request found the server unusable)."""
