"""Create a store or find the existing one. Nothing is left half made, and no foreign data is deleted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from posttrace.stores.credentials import refuse_secrets
from posttrace.stores.errors import FingerprintMismatch, StoreError
from posttrace.stores.hashing import as_json, differences, hash_bytes, seal
from posttrace.stores.lease import Lease
from posttrace.stores.location import PARALLEL, Location
from posttrace.stores.markers import CLAIM, FILES, FOLDER, RECORD
from posttrace.stores.plan import check_plan, group_to_json, unit_to_json
from posttrace.stores.record import FORMAT, pack, read_record, settled, started, unpack
from posttrace.stores.schema import Group, Unit
from posttrace.stores.zarr_layout import build

SHOWN = 4
"""Keys that a message names, where two jobs differ in more."""


def create(
    location: Location,
    groups: Iterable[Group],
    units: Iterable[Unit],
    job: Mapping[str, Any],
    fingerprint: str,
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """Create the store, or find the existing one of the same job; return its record."""
    groups, units = tuple(groups), tuple(units)
    by_path = {group.path: group for group in groups}
    if len(by_path) != len(groups):
        raise StoreError(f"group paths {[group.path for group in groups]} must be unique")
    if not isinstance(fingerprint, str) or not fingerprint:
        raise StoreError(f"fingerprint {fingerprint!r} must be a non-empty string: the hash of the job")
    check_plan(by_path, units)
    body = {
        "format": FORMAT,
        "posttrace": _version(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "fingerprint": fingerprint,
        "job": as_json(dict(job), "job"),
        "provenance": as_json(dict(provenance), "provenance"),
        "groups": [group_to_json(group) for group in groups],
        "units": [unit_to_json(unit) for unit in units],
    }
    for part in ("job", "provenance", "groups"):
        refuse_secrets(body[part], part)
    record = read_record(location)
    if record is None:
        _refuse_foreign(location)
        # processes of one job that start together wait for the first
        with Lease(location, "create", wait=60):
            record = read_record(location) or _claim(location, body, groups)
            _same(location, record, body)
            _restore(location, record, groups)
            location.put(RECORD, seal(record))
    else:
        record = settled(location) or record
        _same(location, record, body)
        _restore(location, record, groups)
        for key in (CLAIM, RECORD):
            if location.get(key) != seal(record):
                location.put(key, seal(record))
    return record


def _version() -> str:
    try:
        return version("posttrace")
    except PackageNotFoundError:
        return "unknown"


def _refuse_foreign(location: Location) -> None:
    others = sorted(location.names() - {FOLDER})
    if others and location.size(CLAIM) is None:
        raise StoreError(
            f"{location.url}: holds {', '.join(others[:3])}{' ...' if len(others) > 3 else ''}, "
            "which posttrace did not write; choose an empty folder or another --store"
        )


def _claim(location: Location, body: dict[str, Any], groups: tuple[Group, ...]) -> dict[str, Any]:
    """Return the record of an interrupted creation (or one with a damaged record), or else a new one."""
    old = read_record(location, CLAIM)
    if started(location):
        if old is not None:
            return old
        raise StoreError(
            f"{location.at(RECORD)}: missing or damaged, as is its spare {CLAIM}, though units are done; "
            "restore one of them from a copy, or use another --store"
        )
    files = build(groups, root_attrs(body))
    record = {**body, "files": {key: hash_bytes(data) for key, data in files.items()}}
    if old is not None:
        # Only files listed by our own unfinished creation, which no unit has written to.
        location.delete(set(old["files"]) - set(files))
    location.put(CLAIM, seal(record))
    return record


def root_attrs(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of the root group: where the numbers come from."""
    return {key: record[key] for key in ("posttrace", "fingerprint", "job", "provenance")}


def _same(location: Location, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    if old["fingerprint"] != new["fingerprint"]:
        keys = differences(old["job"], new["job"])
        raise FingerprintMismatch(
            f"{location.url}: belongs to another job (fingerprint {old['fingerprint'][:12]}, this job has "
            f"{new['fingerprint'][:12]})\n"
            f"{_listed(keys) or 'the jobs read the same, the fingerprint covers something else'}\n"
            "use another --store, or restore the job"
        )
    plans = [
        {part: {item.get("path") or item["id"]: item for item in r[part]} for part in ("groups", "units")}
        for r in (old, new)
    ]
    keys = differences(plans[0], plans[1])
    if keys:
        raise StoreError(
            f"{location.url}: same fingerprint {old['fingerprint'][:12]}, but the plan differs in {len(keys)} places, "
            f"as if another version of posttrace had made it (the store's: {old['posttrace']})\n"
            f"{_listed(keys)}\n"
            "use another --store; this one can still be drawn and read"
        )


def _listed(keys: Sequence[tuple[str, Any, Any]]) -> str:
    """Return the first keys at which two jobs differ, with both values, on one line of readable length."""
    shown = [(key, *_names(a, b)) for key, a, b in keys[:SHOWN]]
    told = [f"{key}: {_short(a)} in the store, {_short(b)} now" for key, a, b in shown]
    more = [f"and {len(keys) - SHOWN} more keys"] if len(keys) > SHOWN else []
    return "; ".join([*told, *more])


def _names(one: Any, two: Any) -> tuple[Any, Any]:
    """Return lists of mappings as the names of the mappings, if that tells them apart."""
    try:
        first, second = ([item["name"] for item in value] for value in (one, two))
    except (TypeError, KeyError):
        return one, two
    return (first, second) if first != second else (one, two)


def _short(value: Any, most: int = 40) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _restore(location: Location, record: Mapping[str, Any], groups: tuple[Group, ...]) -> None:
    """Write the metadata and coordinate files that are missing or damaged; leave the others alone."""
    digests = record["files"]
    have = location.get_many(digests)
    bad = [key for key, digest in digests.items() if have[key] is None or hash_bytes(have[key]) != digest]
    spare = unpack(location, digests)
    whole = len(spare) == len(digests)
    if not bad and whole:
        return
    files = spare if whole else {**build(groups, root_attrs(record)), **spare}
    for key in bad:
        if hash_bytes(files.get(key, b"")) != digests[key]:
            raise StoreError(
                f"{location.at(key)}: {'missing' if have[key] is None else 'damaged'}, as is its spare {FILES}, "
                "and the installed zarr would write it "
                "differently; restore this file from a copy, or run once with the zarr version of the store"
            )
    if not whole:
        sound = {**have, **{key: files[key] for key in bad}}
        location.put(FILES, pack({key: data for key, data in sound.items() if data is not None}))
    with ThreadPoolExecutor(PARALLEL) as pool:
        list(pool.map(lambda key: location.put(key, files[key]), bad))
