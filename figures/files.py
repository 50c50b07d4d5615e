"""Where output files go, and atomic writes of them."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from posttrace.figures.errors import FigureError

LONGEST_NAME = 120
"""Characters of a default folder's name; longer lists of stores are hashed."""


def default_folder(urls: Sequence[str | os.PathLike[str]], what: str) -> Path:
    """Return a folder next to the stores that is theirs alone, so that no other stores' output is overwritten.

    A store in a bucket has its folder in the current directory, named after its bucket and prefix.

    Parameters
    ----------
    urls
        One store or several.
    what
        The end of the name: "report".

    Examples
    --------
    >>> default_folder(["runs/knowledge"], "report").as_posix()
    'runs/knowledge-report'
    >>> default_folder(["runs/a/refusal", "runs/b/refusal"], "report").as_posix()
    'runs/a-refusal+b-refusal-report'
    >>> default_folder(["s3://bucket/runs/knowledge"], "report").as_posix()
    'bucket-runs-knowledge-report'
    """
    paths = [os.fspath(url).removeprefix("file://") for url in urls]
    if any("://" in path for path in paths):
        parent = ""
        names = [path.partition("://")[2] if "://" in path else path for path in paths]
    else:
        paths = [os.path.abspath(path) for path in paths]
        parent = os.path.commonpath([os.path.dirname(path) for path in paths])
        names = [os.path.relpath(path, parent) for path in paths]
        parent = os.path.relpath(parent) if not os.path.isabs(os.fspath(urls[0])) else parent
    parts = ["-".join(PurePosixPath(Path(name).as_posix().strip("/")).parts) for name in names]
    joined = "+".join(parts)
    if len(joined) > LONGEST_NAME:
        joined = f"{len(parts)}-stores-{hashlib.sha256(joined.encode()).hexdigest()[:8]}"
    return Path(parent) / f"{joined}-{what}"


def output_folder(out: str | os.PathLike[str]) -> Path:
    """Create the output folder and return it, after a trial write.

    Raises
    ------
    FigureError
        The folder cannot be created or written to; detected before anything is computed.

    Examples
    --------
    >>> output_folder("runs/figures")
    PosixPath('runs/figures')
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
    """Return the path of a file below a folder; names in a store are not trusted and must not lead elsewhere.

    Raises
    ------
    FigureError
        The name would lead out of the folder, or is not valid on every file system.

    Examples
    --------
    >>> contained(Path("runs/figures"), "tables/knowledge.csv").as_posix().endswith("runs/figures/tables/knowledge.csv")
    True
    """
    parts = relative.split("/")
    plain = all(
        part.strip(". ") and part.isprintable() and not set(part) & set('\\:*?"<>|') for part in parts
    )
    path = folder.joinpath(*parts)
    if not plain or not path.resolve().is_relative_to(folder.resolve()):
        raise FigureError(
            f"{relative!r}: is not a valid file name below {folder}; it comes from the names of sets and stages in the "
            "store, so posttrace did not write this store: do not trust it"
        )
    return path


def write_whole(path: Path, content: bytes) -> Path:
    """Write a temporary file next to its destination and rename it, so that no reader sees a partial file.

    Raises
    ------
    FigureError
        The file cannot be written.
    """
    # Not tempfile, whose files only the owner can read: figures are meant to be shared.
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
