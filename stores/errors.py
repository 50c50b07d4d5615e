"""Store errors: every message gives place, value, allowed range and fix."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class StoreError(Exception):
    """A mistake or a fault that the user can act on; the message says how."""


class FingerprintMismatch(StoreError):
    """The store at this URL belongs to another job."""


class Damaged(StoreError):
    """Bytes in the store are not those that were written."""


class StoreBusy(StoreError):
    """Another live process holds the lease of this store."""


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return the known name nearest to a mistyped one as part of a message; "" if none is near.

    Examples
    --------
    >>> did_you_mean("citties", ["cities", "facts"]), did_you_mean("x", ["cities"])
    (" (did you mean 'cities'?)", '')
    """
    near = get_close_matches(str(name)[:100], list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


# What zarr's codecs raise on damaged bytes.
DAMAGED = (ValueError, RuntimeError, TypeError, KeyError, IndexError, EOFError, AssertionError, MemoryError)


def first_line(fault: BaseException) -> str:
    """Return the type and first line of a fault, short enough for a message."""
    return f"{type(fault).__name__}: {str(fault).splitlines()[0] if str(fault) else ''}"[:200]


# (pattern in the message of the operating system or object store, meaning, fix); the first match counts.
_FAULTS = (
    (
        r"/latest/api/token|/latest/meta-data|Missing (AccessKeyId|SecretAccessKey)",
        "no AWS credentials were found",
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (~/.aws is not read)",
    ),
    (
        r"No space left|os error 28\b|quota exceeded|os error 122\b",
        "the disk is full",
        "free some space and run again",
    ),
    (
        r"os error 27\b",
        "the file is larger than this account or disk allows",
        "raise the limit (ulimit -f) and run again",
    ),
    (r"os error 30\b", "the file system is read-only", "choose another --store"),
    (
        r"NoSuchBucket|bucket does not exist",
        "the bucket does not exist",
        "create the bucket or correct the s3:// URL",
    ),
    (r"os error (17|20|21)\b", "there is a file where a folder is needed", "choose another --store"),
    (
        r"os error 13\b|status 40[13]|Unauthenticated|AccessDenied|InvalidAccessKey|SignatureDoesNotMatch",
        "access was denied",
        "check the permissions of the folder, or the AWS_* keys in the environment",
    ),
    (r"os error (1|38|95)\b", "the file system does not offer this (hard links?)", "choose another --store"),
    (
        r"status 429|Too Many Requests|SlowDown",
        "the object store asks for fewer requests",
        "wait a moment and run again",
    ),
    (
        r"error sending request|Connection refused|dns error|timed? ?out|HTTP error",
        "the object store cannot be reached",
        "check the network and AWS_ENDPOINT_URL, then run again",
    ),
    (r"NotFound|os error 2\b", "it does not exist", "check the URL"),
)


@contextmanager
def naming(action: str, place: str) -> Iterator[None]:
    """Turn a disk or object-store fault into a StoreError that names action, place and fix."""
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, OSError) as fault:
        text = f"{type(fault).__name__}: {fault}"
        # obstore appends a Rust debug dump after the first line
        known = [(what, fix) for pattern, what, fix in _FAULTS if re.search(pattern, text, re.IGNORECASE)]
        what, fix = (*known, (text.splitlines()[0], "run again"))[0]
        kept = " (finished units are kept)" if action.startswith("write") else ""
        raise StoreError(f"{place}: cannot {action}: {what}; {fix}{kept}") from fault
