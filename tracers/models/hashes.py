"""Hashes of whole files, kept for as long as a file does not change."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

LARGE = 2**20
"""Bytes from which on a hash is kept."""
MOST = 10_000
"""Hashes that are kept, the newest ones."""
SETTLED = 2.0
"""Seconds: a file that was changed more recently might be changed again without another time to show for it."""
THREADS = 4


def file_hashes(files: Sequence[Path]) -> list[str]:
    """SHA-256 of the whole content of files (hex), the large ones read once only.

    >>> len(file_hashes([Path("model.safetensors")])[0])               # doctest: +SKIP
    64

    A kept hash holds for a device, inode, size and times of modification and change, so that a file that is written
    anew in its place is read again. Hashes are kept in `$XDG_CACHE_HOME/posttrace` (`~/.cache`); where that cannot be
    written, every call reads the files.
    """
    known = _read()
    keys = [_key(file) for file in files]
    missing = [i for i, key in enumerate(keys) if key is None or key not in known]
    with ThreadPoolExecutor(THREADS) as pool:  # hashing lets go of the interpreter
        found = dict(zip(missing, pool.map(_hash, [files[i] for i in missing]), strict=True))
    new = {
        key: found[i]
        for i, key in enumerate(keys)
        if i in found and key is not None and key == _key(files[i])
    }
    if new:
        _write({**_read(), **new})
    return [found[i] if i in found else known[str(key)] for i, key in enumerate(keys)]


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _key(file: Path) -> str | None:
    """Return a mark that later content would change; None for a small file, and for one that may still change."""
    about = file.stat()
    newest = max(about.st_mtime, about.st_ctime)
    if about.st_size < LARGE or abs(time.time() - newest) < SETTLED:
        return None
    return f"{about.st_dev}/{about.st_ino}/{about.st_size}/{about.st_mtime_ns}/{about.st_ctime_ns}"


def _place() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "posttrace" / "hashes.json"


def _read() -> dict[str, str]:
    try:
        known = json.loads(_place().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write(known: dict[str, str]) -> None:
    """Replace the file of kept hashes; without a place to write to, nothing is kept."""
    place = _place()
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=place.parent, prefix=place.name)
        with open(handle, "w", encoding="utf-8") as stream:
            json.dump(dict(list(known.items())[-MOST:]), stream)
        os.replace(name, place)
