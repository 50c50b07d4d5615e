"""The plan of a store: which unit writes which chunks, checked as a whole and stored as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from posttrace.stores.errors import StoreError
from posttrace.stores.hashing import as_json
from posttrace.stores.schema import MAX_CHUNKS, Array, Group, Unit


def aligned(group: Group, unit: Unit, name: str) -> tuple[slice, ...]:
    """Return the window that a unit writes in one array; refuse one that cuts through chunks."""
    window = group.window(name, unit.region, f"unit {unit.id!r}, array {name!r}")
    for dim, w, n, size in zip(
        group.array(name).dims, window, group.chunk(name), group.shape(name), strict=True
    ):
        if w.start % n or (w.stop % n and w.stop != size):
            raise StoreError(
                f"unit {unit.id!r}, array {name!r}: {dim} [{w.start}, {w.stop}) cuts through chunks of {n}; "
                f"start and stop must be multiples of {n} (stop may be the end, {size})"
            )
    chunks = math.prod(-(-(w.stop - w.start) // n) for w, n in zip(window, group.chunk(name), strict=True))
    if chunks > MAX_CHUNKS:
        raise StoreError(
            f"unit {unit.id!r}, array {name!r}: consists of {chunks} chunks, at most {MAX_CHUNKS} are possible; "
            "make the blocks larger or the units smaller"
        )
    return window


def check_plan(groups: Mapping[str, Group], units: Iterable[Unit]) -> None:
    """Refuse a plan in which a unit is misaligned or two units write the same chunk."""
    for path in groups:
        for item in groups[path].items:
            name = item.name
            if any(f"{other}/".startswith(f"{path}/{name}/") for other in groups):
                raise StoreError(
                    f"{path}/{name} is both an array and the path of a group; rename one of them"
                )
    seen: set[str] = set()
    owner: dict[str, str] = {}
    for unit in units:
        if unit.id in seen:
            raise StoreError(f"unit {unit.id!r} is planned twice; unit ids must be unique")
        seen.add(unit.id)
        if unit.group not in groups:
            raise StoreError(f"unit {unit.id!r}: group {unit.group!r} is not one of {', '.join(groups)}")
        group = groups[unit.group]
        for dim in unit.region:
            if dim not in group.sizes:
                raise StoreError(
                    f"unit {unit.id!r}: region names {dim!r}, group {group.path!r} has "
                    f"{', '.join(group.sizes)}"
                )
        for name in unit.arrays:
            for key, _ in group.chunks(name, aligned(group, unit, name)):
                if owner.setdefault(key, unit.id) != unit.id:
                    raise StoreError(
                        f"units {owner[key]!r} and {unit.id!r} both write {key}; "
                        "each chunk belongs to one unit: change the block of the array or the regions"
                    )


def group_to_json(group: Group) -> dict[str, Any]:
    """Return a group as JSON, its coordinate values as a hash."""
    arrays = [{**vars(array), "dims": list(array.dims), "block": dict(array.block)} for array in group.arrays]
    coords = [
        {"name": c.name, "dims": list(c.dims), "description": c.description, "digest": c.digest()}
        for c in group.coords
    ]
    sizes = {dim: int(size) for dim, size in group.sizes.items()}
    return {
        "path": group.path,
        "sizes": sizes,
        "arrays": arrays,
        "coords": coords,
        "attrs": as_json(dict(group.attrs), "attrs"),
    }


def group_from_json(data: Mapping[str, Any]) -> Group:
    """Return the group as declared, without coordinates (their values are in the store)."""
    arrays = tuple(Array(**array) for array in data["arrays"])
    return Group(data["path"], data["sizes"], arrays, (), data["attrs"])


def unit_to_json(unit: Unit) -> dict[str, Any]:
    return {
        "id": unit.id,
        "group": unit.group,
        "region": {d: list(r) for d, r in unit.region.items()},
        "arrays": list(unit.arrays),
    }


def unit_from_json(data: Mapping[str, Any]) -> Unit:
    return Unit(
        data["id"], data["group"], {d: tuple(r) for d, r in data["region"].items()}, tuple(data["arrays"])
    )
