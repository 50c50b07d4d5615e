"""The HTTP interface of NDIF, as nnsight 0.8.1's client uses it: submit, ask, download. One try each."""

from __future__ import annotations

import ipaddress
import json
import math
import os
import platform
import sys
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

import httpx

from posttrace.tracers.remote.errors import Unavailable

CONNECT, READ = 10.0, 60.0
"""Seconds: to connect, and without a byte while reading."""
STATUSES = (
    "RECEIVED",
    "QUEUED",
    "PROVISIONING",
    "DEPLOYING",
    "DISPATCHED",
    "RUNNING",
    "COMPLETED",
    "ERROR",
    "LOG",
)
TOO_LARGE = 413
GONE = (403, 404, 410)
"""Of a result: its URL has expired (they are signed for an hour), or its file was removed."""
KEY_HELP = "set NDIF_API_KEY in the environment (get a key at https://login.ndif.us), or run `nnsight login`"


class Trouble(Exception):
    """A call that may succeed when repeated."""

    def __init__(self, what: str, *, wait: float | None = None, busy: bool = False):
        super().__init__(what)
        self.wait = wait
        """Seconds that the server asks to wait, if it does."""
        self.busy = busy
        """Whether the server reports too many requests."""


class Gone(Trouble):
    """A result that is gone from its URL; another URL may have it."""


class Refused(Exception):
    """A call that would be refused again: the request is at fault, not the network."""

    def __init__(self, what: str, *, code: int = 0):
        super().__init__(what)
        self.code = code
        """HTTP status of the refusal; 0 if there was none."""


@dataclass(frozen=True)
class Reply:
    """A server's answer about a job."""

    job: str
    status: str
    text: str = ""
    """The description: place in the queue, traceback of an error ..."""
    url: str | None = None
    """Where the result is, once there is one."""


class Server:
    """A server at a host, with a key that is never shown.

    Raises
    ------
    Unavailable
        A host that is not https (unless it is this machine itself).

    Examples
    --------
    >>> Server("http://example.org", "k")
    Traceback (most recent call last):
    ...
    posttrace.tracers.remote.errors.Unavailable: host http://example.org: ... use https://...
    """

    def __init__(self, host: str, key: str | None):
        self.host = host.rstrip("/")
        self._key = key
        if "@" in urlsplit(self.host).netloc:
            raise Unavailable(f"the host's URL holds a name and password; {KEY_HELP}")
        if not trusted(self.host):
            raise Unavailable(
                f"host {self.host}: a key and results travel encrypted or not at all; use https:// "
                "(plain http is for this machine only, e.g. http://127.0.0.1:8000)"
            )
        self._http = httpx.Client(timeout=httpx.Timeout(CONNECT, read=READ, write=READ, pool=None))

    @property
    def has_key(self) -> bool:
        return bool(self._key)

    def close(self) -> None:
        """Drop every connection; calls in other threads end with an error."""
        self._http.close()

    def submit(self, model_key: str, env: dict[str, Any], blob: bytes) -> Reply:
        """POST a request; raises Trouble, Refused, or Unavailable (the key)."""
        metadata = {"model_key": model_key, "session_id": "", "compress": True, "env": env}
        response = self._call(
            "POST",
            "/request",
            data={"data": json.dumps(metadata)},
            files={"blob": ("request", blob, "application/octet-stream")},
            headers=self._versions(),
        )
        return self._reply(response)

    @staticmethod
    def _versions() -> dict[str, str]:
        return {
            "ndif-timestamp": repr(time.time()),
            "nnsight-version": version("nnsight"),
            "python-version": sys.version,
        }

    def knock(self) -> None:
        """Test the key with an empty request, which the server refuses only after accepting the key: nothing runs.

        Raises
        ------
        Unavailable
            A key that is refused, Trouble.
        """
        metadata = {"model_key": "", "session_id": "", "compress": True, "env": {}}
        try:
            self._call("POST", "/request", data={"data": json.dumps(metadata)}, headers=self._versions())
        except Refused:
            pass

    def ask(self, job: str) -> Reply | None:
        """Return the state of a job; None when the server does not know it (yet). Raises Trouble, Refused."""
        response = self._call("GET", f"/response/{job}", missing=True)
        return None if response.status_code == 404 else self._reply(response)

    def download(self, url: str, limit: int) -> bytes:
        """Return the bytes of a result; raises Trouble when some do not come, Refused for a place not to be trusted."""
        if not trusted(url):
            place = f"{urlsplit(url).scheme}://{urlsplit(url).hostname}"
            raise Refused(f"the server names a result at {place}; it must be https://, or this machine")
        # Results lie elsewhere (a signed URL of an object store), where the key must not go.
        parts, n = [], 0
        try:
            with self._http.stream("GET", url) as response:
                if response.status_code != 200:
                    kind = Gone if response.status_code in GONE else Trouble
                    raise kind(f"the result cannot be downloaded (status {response.status_code})")
                for part in response.iter_bytes():
                    parts.append(part)
                    n += len(part)
                    if n > limit:
                        raise Refused(f"the result is larger than {limit:,} bytes")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Trouble(f"the download broke off ({self._said(error)})") from None
        return b"".join(parts)

    def get(self, path: str) -> Any:
        """Return a JSON document of the server (`/status`, `/env`, `/whoami`); raises Trouble or Refused."""
        response = self._call("GET", path)
        try:
            return response.json()
        except ValueError:
            raise Trouble(f"{path} is no JSON") from None

    def _call(self, method: str, path: str, *, missing: bool = False, headers=None, **content):
        headers = dict(headers or {})
        if self._key:
            headers["ndif-api-key"] = self._key
        try:
            response = self._http.request(method, f"{self.host}{path}", headers=headers, **content)
        except httpx.HTTPError as error:
            raise Trouble(f"no answer from {self.host} ({self._said(error)})") from None
        code = response.status_code
        if code in (401, 403) or (code == 400 and "API key" in response.text):
            why = "no key was sent" if not self._key else f"the key was refused: {self._detail(response)}"
            raise Unavailable(f"{self.host} answers {code}, {why}; {KEY_HELP}")
        if code == 429 or code >= 500:
            raise Trouble(
                f"{self.host} answers {code} ({self._detail(response)})",
                wait=_retry_after(response.headers.get("retry-after")),
                busy=code == 429,
            )
        if not (response.is_success or (missing and code == 404)):
            raise Refused(f"{self.host} answers {code} ({self._detail(response)})", code=code)
        return response

    def _reply(self, response) -> Reply:
        try:
            body = response.json()
            job, status = body["id"], body["status"]
        except (ValueError, KeyError, TypeError):
            raise Trouble(f"{self.host} answers something that is no status") from None
        if status not in STATUSES or not isinstance(job, str) or not job:
            raise Trouble(f"{self.host} answers an unknown status {str(status)[:40]!r}")
        data = body.get("data")
        return Reply(
            job=job,
            status=status,
            text=self._clean(str(body.get("description") or "")),
            url=data if isinstance(data, str) and data else None,
        )

    def _detail(self, response) -> str:
        try:
            body = response.json()
            text = body.get("detail", body) if isinstance(body, dict) else body
        except ValueError:
            text = response.text
        return " ".join(self._clean(str(text)).split())[:300] or "no reason given"

    def _said(self, error: Exception) -> str:
        return self._clean(f"{type(error).__name__}: {error}")[:200]

    def _clean(self, text: str) -> str:
        """Return a server's words without control characters, and without the key should it repeat it."""
        text = text.replace(self._key, "***") if self._key else text
        return "".join(c for c in text if c.isprintable() or c in "\n\t")


def configured() -> Server:
    """Return the server and key that nnsight is configured with (NDIF_HOST, NDIF_API_KEY, or its configuration file).

    A job cannot name a host: a job from elsewhere must not decide where a key is sent.

    Examples
    --------
    >>> configured().host                                              # doctest: +SKIP
    'https://api.ndif.us'
    """
    from nnsight import CONFIG

    host, key = os.environ.get("NDIF_HOST"), os.environ.get("NDIF_API_KEY")
    return Server(host or CONFIG.API.HOST, key or CONFIG.API.APIKEY)


def trusted(url: str) -> bool:
    """Whether a URL is https, or plain http to this machine itself."""
    parts = urlsplit(url)
    if parts.scheme == "https":
        return bool(parts.hostname)
    if parts.scheme != "http" or not parts.hostname:
        return False
    try:
        return ipaddress.ip_address(parts.hostname).is_loopback
    except ValueError:
        return parts.hostname == "localhost"


def client_versions() -> dict[str, str]:
    """Versions that a request was made with."""
    packages = {name: version(name) for name in ("posttrace", "nnsight", "torch", "transformers")}
    return {"python": platform.python_version(), **packages}


def _retry_after(value: str | None) -> float | None:
    """Seconds that the header Retry-After asks for: a number, or a date."""
    if value is None:
        return None
    try:
        seconds = float(value)
        return seconds if math.isfinite(seconds) else None
    except ValueError:
        pass
    try:
        return parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError):
        return None
