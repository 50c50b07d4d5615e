"""Atomic writes of output files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from posttrace.figures.errors import FigureError


def output_folder(out: str | os.PathLike[str]) -> Path:
    """Make and return the folder that files go to, after a trial write.

    Example
    -------
    >>> output_folder("runs/figures")
    PosixPath('runs/figures')

    Raises
    ------
    FigureError: the folder cannot be made or written; found out before anything is computed.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as fault:
        raise FigureError(f"{folder}: cannot write here ({_reason(fault)}); choose another --out") from fault
    return folder


def contained(folder: Path, relative: str) -> Path:
    """Return the path of a file below a folder; names in a store may say anything, and must not lead elsewhere.

    Example
    -------
    >>> contained(Path("runs/figures"), "tables/knowledge.csv").as_posix().endswith("runs/figures/tables/knowledge.csv")
    True

    Raises
    ------
    FigureError: the name would lead out of the folder, or is none that every disk takes.
    """
    parts = relative.split("/")
    plain = all(
        part.strip(". ") and part.isprintable() and not set(part) & set('\\:*?"<>|') for part in parts
    )
    path = folder.joinpath(*parts)
    if not plain or not path.resolve().is_relative_to(folder.resolve()):
        raise FigureError(
            f"{relative!r}: is no name for a file below {folder}; the names of sets and stages in the store make it, "
            "and this store was not written by posttrace: do not trust it"
        )
    return path


def write_whole(path: Path, content: bytes) -> Path:
    """Write a temporary file next to its destination, then rename it, so that a reader never sees half of it.

    Example
    -------
    >>> write_whole(Path("runs/figures/tables/knowledge.csv"), b"set,estimate")
    PosixPath('runs/figures/tables/knowledge.csv')

    Raises
    ------
    FigureError: the disk refuses.
    """
    # Not tempfile: its files are for the owner's eyes only, and figures are to be shared.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as fault:
        raise FigureError(f"{path}: cannot write ({_reason(fault)}); choose another --out") from fault
    return path


def _reason(fault: OSError) -> str:
    return (fault.strerror or str(fault)).lower()
