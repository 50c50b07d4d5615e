"""Codecs that refuse to decompress more than a chunk can hold. A module of its own because it imports zarr.

A chunk states its own decompressed size, and a damaged or hostile one may state anything, so memory is allocated only
for what the array declares.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import zarr
import zarr.codecs
import zstandard
from zarr.registry import register_codec

from posttrace.stores.schema import MAX_TEXT


class ZstdCodec(zarr.codecs.ZstdCodec):
    """zstd limited to the exact size of a chunk of numbers, or to `MAX_TEXT` for text."""

    def _decode_sync(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        given = zstandard.frame_content_size(_head(chunk_bytes))
        item = getattr(chunk_spec.dtype, "item_size", None)
        text = item is None or chunk_spec.dtype.to_native_dtype().kind in "OT"
        most = MAX_TEXT if text else math.prod(chunk_spec.shape) * item
        if not 0 <= given <= most:
            raise ValueError(f"the chunk would unpack to {given} bytes, at most {most} are expected")
        return super()._decode_sync(chunk_bytes, chunk_spec)


class VLenUTF8Codec(zarr.codecs.VLenUTF8Codec):
    """Exactly as many strings as the chunk has elements (zarr requires this name of a codec for strings)."""

    def _decode_sync(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        count, places = int.from_bytes(_head(chunk_bytes)[:4], "little"), math.prod(chunk_spec.shape)
        if count != places:
            raise ValueError(f"the chunk claims {count} texts, {places} are expected")
        return super()._decode_sync(chunk_bytes, chunk_spec)


def _head(chunk_bytes: Any) -> bytes:
    """Return the first 32 bytes, enough for any zstd frame header."""
    return chunk_bytes.as_numpy_array()[:32].tobytes()


_LOCK = threading.Lock()
_OURS = {"zstd": ZstdCodec, "vlen-utf8": VLenUTF8Codec}
for _name, _codec in _OURS.items():
    register_codec(_name, _codec)


@contextmanager
def bounded() -> Iterator[None]:
    """Make arrays opened inside use these codecs, and write chunks that hold only fill values."""
    names = {f"codecs.{name}": f"{codec.__module__}.{codec.__qualname__}" for name, codec in _OURS.items()}
    # The configuration is process-wide, hence the lock. Chunks of fill values must exist to be told from lost ones.
    with _LOCK, zarr.config.set({**names, "array.write_empty_chunks": True}):
        yield
