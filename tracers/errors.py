"""The errors that a user of the tracers can cause."""


class TracerError(Exception):
    """A model, prompt or operation that cannot be used; the message names place, value and fix."""


class WholeJob(TracerError):
    """Every other unit of the job would fail with the same error."""
