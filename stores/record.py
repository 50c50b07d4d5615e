"""The record of a store, its spare, and the spare of all files that never change."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from shlex import quote
from typing import Any

from posttrace.stores.errors import StoreError
from posttrace.stores.hashing import hash_bytes, seal, unseal
from posttrace.stores.location import Location
from posttrace.stores.markers import CLAIM, COMPLETE, FILES, GATHERED, MARKERS, RECORD, SPARE
from posttrace.stores.schema import check_key

FORMAT = 2


def read_record(location: Location, key: str = RECORD) -> dict[str, Any] | None:
    """Return the record; None if it is missing or damaged."""
    record = unseal(location.get(key))
    if record is not None and record.get("format") != FORMAT:
        raise StoreError(
            f"{location.at(key)}: store format {record.get('format')!r}, this version reads {FORMAT}; "
            "use the posttrace version that wrote it"
        )
    if record is not None:
        with whole_record(location):
            for name in record["files"].keys():  # a list has none
                check_key(name)
    return record


def settled(location: Location) -> dict[str, Any] | None:
    """Return the record or its spare; if both are intact and differ, the one that matches more of the files."""
    found = [record for key in (RECORD, CLAIM) if (record := read_record(location, key)) is not None]
    if len(found) < 2 or found[0] == found[1]:
        return found[0] if found else None
    with whole_record(location):
        have = location.get_many({key for record in found for key in record["files"]})
        digests = {key: hash_bytes(data) for key, data in have.items() if data is not None}

        def agreement(record: Mapping[str, Any]) -> float:
            files = record["files"]
            return sum(digests.get(key) == digest for key, digest in files.items()) / max(1, len(files))

        return max(found, key=agreement)


def opened(location: Location) -> dict[str, Any]:
    """Return the record of an existing store.

    Raises
    ------
    StoreError
        There is no record, it is damaged, or the creation of the store was cut short.
    """
    record = read_record(location)
    if record is not None:
        return record
    if location.size(RECORD) is not None or started(location):
        problem = (
            "the record of the store is torn, altered or gone; "
            f"`posttrace verify {quote(location.url)} --repair` restores it, or run its job again"
        )
    elif location.size(CLAIM) is not None:
        problem = "the creation of this store was cut short; run its job again"
    else:
        problem = "there is no store here; check the URL, or run the job that creates it"
    raise StoreError(f"{location.at(RECORD)}: {problem}")


def started(location: Location) -> bool:
    """Tell whether any unit was finished here."""
    return next(iter(location.list(MARKERS)), None) is not None or any(
        location.size(key) is not None for key in (GATHERED, SPARE, COMPLETE)
    )


@contextmanager
def whole_record(location: Location) -> Iterator[None]:
    """Turn a missing or malformed entry of a record into one StoreError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as fault:
        raise StoreError(
            f"{location.at(RECORD)}: is not a record written by posttrace ({type(fault).__name__}: {fault}); "
            "use another --store"
        ) from fault


def pack(files: Mapping[str, bytes]) -> bytes:
    """Return the spare of all metadata and coordinate files as one sealed document."""
    return seal({"files": {key: base64.b64encode(data).decode() for key, data in files.items()}})


def unpack(location: Location, digests: Mapping[str, str]) -> dict[str, bytes]:
    """Return the files of the spare that match the record; none if the spare is damaged."""
    body = unseal(location.get(FILES))
    files: dict[str, bytes] = {}
    for key, text in (body or {}).get("files", {}).items():
        data = base64.b64decode(text)
        if digests.get(key) == hash_bytes(data):
            files[key] = data
    return files
