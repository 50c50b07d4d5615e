"""zarr's view of a place whose requests are tried again; apart because it imports zarr."""

from __future__ import annotations

from typing import Any

from zarr.storage import ObjectStore

from posttrace.stores.retrying import steadily_async


class Steady(ObjectStore):
    """A zarr store over an obstore one: what is refused for the moment, or cut off, is asked for again."""

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        plain = super().get
        return await steadily_async(lambda: plain(key, prototype, byte_range))

    async def get_partial_values(self, prototype: Any, key_ranges: Any) -> Any:
        plain, ranges = super().get_partial_values, list(key_ranges)
        return await steadily_async(lambda: plain(prototype, ranges))

    async def exists(self, key: str) -> bool:
        plain = super().exists
        return await steadily_async(lambda: plain(key))

    async def set(self, key: str, value: Any) -> None:
        plain = super().set
        await steadily_async(lambda: plain(key, value))
