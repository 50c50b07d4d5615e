"""Where a store is: a folder or an S3 prefix, accessed through the same object-store calls (obstore)."""

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

PARALLEL = 16  # small objects read or written concurrently, to hide the latency of an object store


class Location:
    """A folder path, ``file://`` URL or ``s3://bucket/prefix``, as keys and bytes.

    S3 endpoint and keys come from the usual AWS_* environment variables; they are never stored or printed.

    Parameters
    ----------
    url
        Where the store is.
    create
        Create the folder if it is missing.

    Raises
    ------
    StoreError
        An unsupported URL, a missing folder, or a location that cannot be reached.

    Examples
    --------
    >>> Location("runs/notes", create=True).put("note", b"hello", exclusive=True)
    True
    """

    def __init__(self, url: str | os.PathLike[str], create: bool = False) -> None:
        url = os.fspath(url)
        if not url.strip():
            raise StoreError("the store has an empty URL; give a folder, file:// or s3://bucket/prefix")
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise StoreError(
                f"{url}: is not a URL ({error}); give a folder, file:// or s3://bucket/prefix"
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
            raise StoreError(f"{self.url}: is not a usable path ({reason}); choose another --store") from None
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
        """The same location as a zarr store."""
        from posttrace.stores.steady import Steady

        return Steady(self.objects)

    def at(self, key: str) -> str:
        """Return the full path or URL of an object, for messages."""
        return str(self.folder / key) if self.folder else f"{self.url.rstrip('/')}/{key}"

    def get(self, key: str) -> bytes | None:
        """Return the content of an object; None if it is missing."""
        found = self.get_unless(key, None)
        assert found is not None, "there is no tag that it could have"
        return found[0]

    def get_unless(self, key: str, tag: str | None) -> tuple[bytes | None, str | None] | None:
        """Return the content of an object (None if it is missing) and its tag; None if it still has the tag given."""
        import obstore
        from obstore.exceptions import NotModifiedError

        def read() -> tuple[bytes, str | None]:
            found = obstore.get(self.objects, key, options={"if_none_match": tag} if tag else None)
            return bytes(found.bytes()), found.meta["e_tag"]

        with naming("read", self.at(key)):
            try:
                return steadily(read)
            except NotModifiedError:
                return None
            except FileNotFoundError as fault:
                if "NoSuchBucket" in str(fault):
                    raise
                return None, None

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes | None]:
        """Return the content of many small objects, read concurrently."""
        keys = list(keys)
        with ThreadPoolExecutor(PARALLEL) as pool:
            return dict(zip(keys, pool.map(self.get, keys), strict=True))

    def sizes(self, keys: Iterable[str]) -> dict[str, int | None]:
        """Return the sizes of many objects in bytes, looked up concurrently; None for a missing one."""
        keys = list(keys)
        if self.folder is not None or len(keys) < 2:
            return {key: self.size(key) for key in keys}
        with ThreadPoolExecutor(PARALLEL) as pool:
            return dict(zip(keys, pool.map(self.size, keys), strict=True))

    def put(self, key: str, data: bytes, exclusive: bool = False) -> bool:
        """Write an object atomically; with `exclusive`, return False if it already exists."""
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
        """Delete objects, ignoring those already gone."""
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
        """Yield key, size in bytes and modification time (the storage's clock) of every object below a prefix."""
        import obstore

        with naming("list", self.at(prefix)):
            found = steadily(
                lambda: [i for batch in obstore.list(self.objects, prefix=prefix) for i in batch]
            )
        for item in found:
            yield item["path"], item["size"], item["last_modified"]

    def size(self, key: str) -> int | None:
        """Return the size of an object in bytes; None if it is missing."""
        import obstore

        with naming("look up", self.at(key)):
            try:
                return steadily(lambda: obstore.head(self.objects, key)["size"])
            except FileNotFoundError:
                return None

    def names(self) -> set[str]:
        """Return the first parts of all keys, as `ls` would list them."""
        import obstore

        with naming("list", self.url):
            level = steadily(lambda: obstore.list_with_delimiter(self.objects))
        return {*level["common_prefixes"], *(item["path"] for item in level["objects"])}

    def flush(self, keys: Iterable[str]) -> None:
        """Flush objects of a folder to disk, so that finished units survive a power cut."""
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
        """Remove temporary files of killed writers (obstore writes ``name#1``, then renames; listings omit it)."""
        if self.folder is None:
            return
        for prefix in prefixes:
            for path in (self.folder / prefix).rglob("*#*"):
                if re.search(r"#\d+$", path.name):
                    path.unlink(missing_ok=True)
