"""What can go wrong with a request; the message names place, cause and fix."""

from __future__ import annotations

from posttrace.tracers.errors import TracerError


class JobFailed(TracerError):
    """One request failed; others may succeed. Stored results are kept, and a rerun tries this one again."""


class Unavailable(TracerError):
    """No other request can succeed: key, host, network, or something that all requests of the job share."""


class Stopped(TracerError):
    """The run is being stopped (Ctrl-C, or another request found the server unusable)."""
