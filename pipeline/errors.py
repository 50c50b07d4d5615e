"""The one error a user's job can cause, and how values stand in messages."""


class JobError(Exception):
    """A job that cannot be run as written; the message names place, value, allowed range and fix."""


def shown(text: object, most: int = 160) -> str:
    r"""Return a value or path as a message shows it: on one line, nothing unprintable, its middle left out if long.

    Examples
    --------
    >>> shown("a" * 500, most=9), shown("one\ntwo")
    ('aaa...aaa', 'one\\ntwo')
    """
    text = str(text)
    if len(text) > most:
        half = (most - 3) // 2
        text = f"{text[:half]}...{text[-half:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
