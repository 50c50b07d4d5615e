"""JSON and hashes that are the same for the same content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from posttrace.stores.errors import StoreError

if TYPE_CHECKING:
    import numpy as np


def as_json(value: Any, where: str) -> Any:
    """The value as it reads back from JSON; refuses what JSON cannot hold."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as fault:
        raise StoreError(
            f"{where}: {fault}; use only str, int, finite float, bool, None, lists and dicts"
        ) from fault


def hash_bytes(data: Any) -> str:
    """128-bit BLAKE2b in hex: tells any two chunks apart, and is faster than SHA-256."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def hash_array(values: np.ndarray) -> str:
    """Hash of an array's values in order: of its bytes, or of its texts where it holds text."""
    return hash_json(values.tolist()) if values.dtype.kind == "O" else hash_bytes(values)


def hash_json(value: Any) -> str:
    """Hash of a JSON value, independent of the order of keys."""
    return hash_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def seal(body: Mapping[str, Any]) -> bytes:
    """A JSON document that carries the hash of its own bytes: no byte of it can change unnoticed."""
    text = json.dumps(body, indent=1)[1:].encode() + b"\n"
    return _head(text) + text


def unseal(data: bytes | None) -> dict[str, Any] | None:
    """The body of a sealed document; None when it is missing, torn or altered, be it by a newline."""
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
    """Dotted keys at which two JSON values differ, with both values ("(absent)" where one lacks the key)."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in dict.fromkeys([*old, *new]):
            inner = differences(old.get(key, "(absent)"), new.get(key, "(absent)"), f"{prefix}{key}.")
            found += inner
        return found
    return [] if old == new and type(old) is type(new) else [(prefix.rstrip("."), old, new)]
