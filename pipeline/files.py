"""Open what a user names, in one place: regular files of a bounded size, and text that is UTF-8."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from posttrace.pipeline.errors import JobError, shown

MB = 2**20
LARGEST = 64 * MB
"""Bytes of a file of statements, prompts, instructions or text."""


def absolute(text: str, base: Path) -> Path:
    """Return a path of a job made absolute; `~` is the home directory, and a link keeps its own name.

    Parameters
    ----------
    base
        What the path is relative to.

    Raises
    ------
    JobError
        Text that no path can be.

    Examples
    --------
    >>> absolute("mine.csv", Path("/data"))
    PosixPath('/data/mine.csv')
    """
    try:
        path = base / Path(text).expanduser()
        path = path.parent.resolve() / path.name
        path.exists()  # says what resolve does not: a name that is too long
        return path
    except (OSError, RuntimeError, ValueError) as error:
        raise JobError(f"{shown(text)}: is no usable path ({reason(error)}); edit the path") from None


def read_bytes(path: str | Path, place: str, fix: str, largest: int = LARGEST) -> bytes:
    """Return the content of a regular file.

    Parameters
    ----------
    place, fix
        Beginning and end of a message.
    largest
        Bytes that are read at most.

    Raises
    ------
    JobError
        What is not there, not a regular file (a pipe or device would never end), or too large.

    Examples
    --------
    >>> read_bytes("job.yaml", "job.yaml", "check the path")           # doctest: +SKIP
    b'study: knowledge ...'
    """
    name = shown(path)
    try:
        # A pipe without a writer would keep a blocking open waiting for ever.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            about = os.fstat(handle)
            if not stat.S_ISREG(about.st_mode):
                raise JobError(f"{place}: {name} is no regular file but {_kind(about.st_mode)}; {fix}")
            with open(handle, "rb", closefd=False) as stream:
                content = b"" if about.st_size > largest else stream.read(largest + 1)
            size = max(about.st_size, len(content))
        finally:
            os.close(handle)
    except FileNotFoundError:
        raise JobError(f"{place}: no file {name}; {fix}") from None
    except (OSError, ValueError) as error:
        raise JobError(f"{place}: {name} cannot be read ({reason(error)}); {fix}") from None
    if size > largest:
        raise JobError(
            f"{place}: {name} has {size:,} bytes or more, at most {largest:,} are read; give a smaller file"
        )
    return content


def read_text(path: str | Path, place: str, fix: str, largest: int = LARGEST) -> str:
    """Return the content of a UTF-8 text file, without a byte order mark.

    Raises
    ------
    JobError
        As `read_bytes` does, and for bytes that are no text.

    Examples
    --------
    >>> read_text("phrases.txt", "phrases", "edit phrases")            # doctest: +SKIP
    'I cannot ...'
    """
    content = read_bytes(path, place, fix, largest)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise JobError(
            f"{place}: {shown(path)} is not UTF-8 text (byte {error.start}); convert it, e.g. with iconv"
        ) from None
    if "\0" in text:
        raise JobError(
            f"{place}: {shown(path)} is not text: byte {content.index(0)} is NUL; save it as UTF-8 text"
        )
    return text


def reason(error: Exception) -> str:
    """Return what the operating system says of a path, without the path."""
    return (getattr(error, "strerror", None) or shown(error)).lower()


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")
