"""Where a store is: a folder or an S3 prefix, reached through the same object-store calls (obstore)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from posttrace.stores.errors import StoreError, naming
from posttrace.stores.retrying import steadily

PARALLEL = 16  # small objects read or written at once: hides the latency of an object store


class Location:
    """A folder path, ``file://`` URL or ``s3://bucket/prefix``, as keys and bytes.

    >>> Location("runs/notes", create=True).put("note", b"hello", exclusive=True)
    True

    S3 endpoint and keys come from the usual AWS_* environment variables; they are never stored or printed.

    Arguments:
        url: where the store is.
        create: make the folder when it is missing.

    Raises:
        StoreError: unknown kind of URL, a missing folder, or a place that cannot be reached.
    """

    def __init__(self, url: str | os.PathLike[str], create: bool = False) -> None:
        url = os.fspath(url)
        if not url.strip():
            raise StoreError("the store has an empty URL; give a folder, file:// or s3://bucket/prefix")
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise StoreError(
                f"{url}: is no URL ({error}); give a folder, file:// or s3://bucket/prefix"
            ) from None
        self.folder: Path | None = None
        if "@" in parts.netloc:
            raise StoreError(
                f"{parts.scheme}://...@{parts.netloc.split('@')[-1]}{parts.path}: the URL holds credentials; "
                "give them in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead"
            )
        self.url = url
        if parts.scheme == "s3":
            self._bucket(parts.netloc, parts.path)
        elif "://" not in url or parts.scheme == "file":
            self._folder(Path(unquote(parts.path) if parts.scheme == "file" else url), create)
        else:
            raise StoreError(
                f"{url}: {parts.scheme}:// is not supported; give a folder, file:// or s3://bucket/prefix"
            )

    def _bucket(self, bucket: str, path: str) -> None:
        from obstore.store import S3Store

        prefix = path.strip("/")
        if not bucket or not prefix:
            raise StoreError(
                f"{self.url}: must be s3://bucket/prefix; "
                f"add the name of the {'prefix' if bucket else 'bucket'}"
            )
        with naming("open the bucket", self.url):
            self.objects: Any = S3Store(
                bucket,
                prefix=prefix,
                # the default of three minutes looks like a hang when the endpoint is wrong
                retry_config={"max_retries": 8, "retry_timeout": timedelta(seconds=40)},
            )

    def _folder(self, path: Path, create: bool) -> None:
        from obstore.store import LocalStore

        try:
            path = path.expanduser().absolute()
            path.exists()
        except (OSError, RuntimeError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise StoreError(f"{self.url}: is no usable path ({reason}); choose another --store") from None
        if path.exists() and not path.is_dir():
            raise StoreError(f"{self.url}: is a file, not a folder; choose another --store")
        if not path.exists() and not create:
            raise StoreError(
                f"{self.url}: there is no store here; check the path, or run the job that creates it"
            )
        with naming("open the folder", self.url):
            self.objects = LocalStore(path, mkdir=create)
        self.folder = path

    @property
    def zarr(self) -> Any:
        """The same place as a zarr store."""
        from posttrace.stores.steady import Steady

        return Steady(self.objects)

    def at(self, key: str) -> str:
        """Full path or URL of one object, for messages."""
        return str(self.folder / key) if self.folder else f"{self.url.rstrip('/')}/{key}"

    def get(self, key: str) -> bytes | None:
        """Content of an object, None when it is missing."""
        import obstore

        with naming("read", self.at(key)):
            try:
                return steadily(lambda: bytes(obstore.get(self.objects, key).bytes()))
            except FileNotFoundError as fault:
                if "NoSuchBucket" in str(fault):
                    raise
                return None

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes | None]:
        """Content of many small objects, read side by side."""
        keys = list(keys)
        with ThreadPoolExecutor(PARALLEL) as pool:
            return dict(zip(keys, pool.map(self.get, keys), strict=True))

    def sizes(self, keys: Iterable[str]) -> dict[str, int | None]:
        """Sizes of many objects in bytes, looked up side by side; None where one is missing."""
        keys = list(keys)
        if self.folder is not None or len(keys) < 2:
            return {key: self.size(key) for key in keys}
        with ThreadPoolExecutor(PARALLEL) as pool:
            return dict(zip(keys, pool.map(self.size, keys), strict=True))

    def put(self, key: str, data: bytes, exclusive: bool = False) -> bool:
        """Write an object at once, or not at all; with exclusive, False when it is there already."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with naming("write", self.at(key)):
            try:
                mode: Literal["create", "overwrite"] = "create" if exclusive else "overwrite"
                steadily(lambda: obstore.put(self.objects, key, data, mode=mode))
            except AlreadyExistsError:
                return False
        return True

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those already gone are fine."""
        import obstore

        def one(key: str) -> None:
            with naming("delete", self.at(key)), suppress(FileNotFoundError):
                steadily(lambda: obstore.delete(self.objects, key))

        keys = list(keys)
        if len(keys) < 3:
            for key in keys:
                one(key)
        else:
            with ThreadPoolExecutor(PARALLEL) as pool:
                list(pool.map(one, keys))

    def list(self, prefix: str) -> Iterator[tuple[str, int, datetime]]:
        """Key, size in bytes and time (by the clock of the storage) of every object below a prefix."""
        import obstore

        with naming("list", self.at(prefix)):
            found = steadily(
                lambda: [i for batch in obstore.list(self.objects, prefix=prefix) for i in batch]
            )
        for item in found:
            yield item["path"], item["size"], item["last_modified"]

    def size(self, key: str) -> int | None:
        """Size of an object in bytes, None when it is missing."""
        import obstore

        with naming("look up", self.at(key)):
            try:
                return steadily(lambda: obstore.head(self.objects, key)["size"])
            except FileNotFoundError:
                return None

    def names(self) -> set[str]:
        """First parts of all keys: what an `ls` of the place shows."""
        import obstore

        with naming("list", self.url):
            level = steadily(lambda: obstore.list_with_delimiter(self.objects))
        return {*level["common_prefixes"], *(item["path"] for item in level["objects"])}

    def flush(self, keys: Iterable[str]) -> None:
        """Push objects of a folder through to the disk, so that a power cut spares what is marked."""
        if self.folder is None:
            return
        for key in keys:
            for path in (self.folder / key, (self.folder / key).parent):
                with naming("write", str(path)):
                    handle = os.open(path, os.O_RDONLY)
                    try:
                        os.fsync(handle)
                    finally:
                        os.close(handle)

    def sweep(self, prefixes: Iterable[str]) -> None:
        """Remove what killed writers left: obstore writes ``name#1`` and renames; listings never show it."""
        if self.folder is None:
            return
        for prefix in prefixes:
            for path in (self.folder / prefix).rglob("*#*"):
                if re.search(r"#\d+$", path.name):
                    path.unlink(missing_ok=True)
