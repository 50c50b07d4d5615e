"""Canonical JSON and hashes: the same content gives the same bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from posttrace.stores.errors import StoreError

if TYPE_CHECKING:
    import numpy as np


def as_json(value: Any, where: str) -> Any:
    """Return the value as it reads back from JSON; refuse what JSON cannot hold."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as fault:
        raise StoreError(
            f"{where}: {fault}; use only str, int, finite float, bool, None, lists and dicts"
        ) from fault


def hash_bytes(data: Any) -> str:
    """Return the 128-bit BLAKE2b hash in hex: collision-free in practice and faster than SHA-256."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def hash_array(values: np.ndarray) -> str:
    """Hash an array's values in order: its bytes, or its strings."""
    return hash_json(values.tolist()) if values.dtype.kind == "O" else hash_bytes(values)


def hash_json(value: Any) -> str:
    """Hash a JSON value, whatever the order of its keys."""
    return hash_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def seal(body: Mapping[str, Any]) -> bytes:
    """Return a JSON document that contains the hash of its own bytes, so that any change is noticed."""
    text = json.dumps(body, indent=1)[1:].encode() + b"\n"
    return _head(text) + text


def unseal(data: bytes | None) -> dict[str, Any] | None:
    """Return the body of a sealed document; None if it is missing, truncated or altered by as little as a newline."""
    if not data:
        return None
    text = data[len(_head(b"")) :]
    if data != _head(text) + text:
        return None
    try:
        body = json.loads(b"{" + text)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def _head(text: bytes) -> bytes:
    return f'{{\n "check": "{hash_bytes(text)}",'.encode()


def differences(old: Any, new: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Return the dotted keys at which two JSON values differ, with both values ("(absent)" for a missing key)."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in dict.fromkeys([*old, *new]):
            inner = differences(old.get(key, "(absent)"), new.get(key, "(absent)"), f"{prefix}{key}.")
            found += inner
        return found
    return [] if old == new and type(old) is type(new) else [(prefix.rstrip("."), old, new)]
