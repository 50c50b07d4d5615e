"""Refuse to store a secret: jobs, provenance and records are published with the results."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from posttrace.stores.errors import StoreError

# "token" alone is an everyday word here; only names that can only mean a credential are refused.
_KEY = re.compile(
    r"(^|[._-])(api[_-]?key|access[_-]?key([_-]id)?|private[_-]?key|secret([_-]?(access[_-]?)?key)?|client[_-]?secret|"
    r"passw(or)?d|passphrase|credentials?|bearer|(hf|hugging[_-]?face|hub|auth|access|session|security|refresh|github)"
    r"[_-]?token)$",
    re.IGNORECASE,
)
_VALUE = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|(AKIA|ASIA)[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,}|"
    r"[Bb]earer [A-Za-z0-9._-]{20,})|-----BEGIN [A-Z ]*PRIVATE KEY|://[^/\s:@]+:[^/\s@]+@"
)
_VARIABLE = re.compile(
    r"(API_?KEY|ACCESS_KEY(_ID)?|SECRET\w*|TOKEN|PASSWORD|PASSWD|CREDENTIALS?|PRIVATE_KEY)$"
)


def refuse_secrets(value: Any, where: str) -> None:
    """Refuse a value that looks like a credential or contains one from the environment.

    Raises
    ------
    StoreError
        Names the place, never the secret.

    Examples
    --------
    >>> refuse_secrets({"model": {"api_key": "0123456789"}}, "job")
    Traceback (most recent call last):
    ...
    posttrace.stores.errors.StoreError: job.model.api_key looks like a credential; ...
    """
    known = {
        name: text
        for name, text in os.environ.items()
        if _VARIABLE.search(name) and len(text) >= 8 and not os.path.exists(text)
    }
    fix = "it would be published with the store: remove it and set it in the environment instead"
    for place, key, text in _strings(value, where, ""):
        if key and _KEY.search(key) and text:
            raise StoreError(f"{place} looks like a credential; {fix}")
        if _VALUE.search(text):
            raise StoreError(f"{place} holds what looks like a credential; {fix}")
        for name, secret in known.items():
            if secret in text:
                raise StoreError(f"{place} holds the value of the environment variable {name}; {fix}")


def _strings(value: Any, place: str, key: str) -> Iterator[tuple[str, str, str]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            # a key can be a secret itself, so it is checked as a value before it appears in a message
            yield f"a key of {place}", "", str(name)
            yield from _strings(item, f"{place}.{name}", str(name))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _strings(item, f"{place}[{index}]", key)
    elif isinstance(value, str):
        yield place, key, value
