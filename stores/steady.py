"""A zarr store that retries its requests. A module of its own because it imports zarr."""

from __future__ import annotations

from typing import Any

from zarr.storage import ObjectStore

from posttrace.stores.retrying import steadily_async


class Steady(ObjectStore):
    """A zarr store on an obstore one; requests refused temporarily or cut off are retried."""

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
