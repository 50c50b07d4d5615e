"""The error raised when a figure cannot be drawn."""


class FigureError(Exception):
    """A figure cannot be drawn; the message names the place, the value and the fix.

    Examples
    --------
    >>> raise FigureError("runs/cities: no finished pair yet (0 of 24); resume the run, then draw again")
    Traceback (most recent call last):
    posttrace.figures.errors.FigureError: runs/cities: no finished pair yet (0 of 24); resume the run, then draw again
    """
