"""Read a store: labelled datasets, the list of groups, and a summary."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Any

from posttrace.stores.checking import parts, refuse_lost
from posttrace.stores.errors import DAMAGED, Damaged, StoreError, first_line, naming
from posttrace.stores.store import Store

if TYPE_CHECKING:
    import xarray as xr


def group_paths(url: str | os.PathLike[str]) -> list[str]:
    """Paths of the groups of a store.

    >>> group_paths("runs/demo")
    ['demo']

    Raises:
        StoreError: there is no store at this URL.
    """
    return list(Store.open(url).groups)


def open_group(url: str | os.PathLike[str] | Store, path: str) -> xr.Dataset:
    """One group as a lazy, labelled dataset; values are read when they are used.

    >>> open_group("runs/demo", "demo").x.attrs["units"]
    'logit difference, nats'

    bfloat16 comes as float32. What was not computed is NaN (-1 for integers, False for bools, "" for texts). What
    was computed and is lost is refused: metadata and coordinates must be as they were made, and the chunks of
    finished units there in full; units that are read as a whole are compared with their hashes. The attributes
    hold the group's own and, of each array, units and description.

    Arguments:
        url: the store, or one that is open: of several groups its markers are then read once.
        path: a group, as listed by `group_paths`.

    Raises:
        StoreError: no store, or no such group in it.
        Damaged: something of the group is lost or altered; also later, when values are read.
    """
    store = url if isinstance(url, Store) else Store.open(url)
    if path not in store.groups:
        raise StoreError(f"{store.url}: no group {path!r}; it has {', '.join(store.groups)}")
    import xarray as xr

    from posttrace.stores.bounded import bounded
    from posttrace.stores.lazy import checked

    place = store.location.at(path)
    markers = refuse_lost(store, path)
    with naming("open the group", place):
        try:
            with bounded():
                data = xr.open_zarr(
                    store.location.zarr, group=path, consolidated=True, chunks=None, decode_times=False
                )
        except DAMAGED as fault:
            raise Damaged(
                f"{place}: the metadata or coordinates are damaged ({first_line(fault)}); "
                f"`posttrace verify {store.url} --repair` restores them, or the next run of the job"
            ) from fault
    group = store.groups[path]
    done = [unit for unit in store.units.values() if unit.group == path and unit.id in markers]
    names = {array.name for array in group.arrays}
    guarded = {
        name: checked(
            variable,
            f"{place}/{name}",
            store.url,
            parts(group, done, markers, name) if name in names else (),
        )
        for name, variable in data.variables.items()
        if name not in data.xindexes  # those are in memory already
    }
    labels = {name: variable for name, variable in guarded.items() if name in data.coords}
    return data.assign({n: v for n, v in guarded.items() if n not in labels}).assign_coords(labels)


def summary(url: str | os.PathLike[str] | Store) -> dict[str, Any]:
    """What a store holds and how far it is, as JSON.

    >>> summary("runs/demo")["units"]
    {'total': 2, 'done': 2, 'kinds': {'clean': {'total': 2, 'done': 2}}}

    Keys: url, posttrace, created, job, fingerprint, provenance, complete, units (total, done, and the same
    per kind, the word after the group in unit ids) and groups (path -> sizes, arrays, coords, attrs, units).

    Raises:
        StoreError: there is no store at this URL, or its record is damaged.
    """
    store = url if isinstance(url, Store) else Store.open(url)
    done = store.done()
    kinds, kinds_done, paths, paths_done = (Counter[str]() for _ in range(4))
    for unit in store.units.values():
        kind = unit.id.removeprefix(f"{unit.group}/").split("/")[0]
        for total, finished, key in ((kinds, kinds_done, kind), (paths, paths_done, unit.group)):
            total[key] += 1
            finished[key] += unit.id in done
    groups = {}
    for data in store.record["groups"]:
        group = store.groups[data["path"]]
        groups[group.path] = {
            "sizes": dict(data["sizes"]),
            "arrays": {
                array["name"]: {
                    **array,
                    "shape": list(group.shape(array["name"])),
                    "chunk": list(group.chunk(array["name"])),
                }
                for array in data["arrays"]
            },
            "coords": {
                c["name"]: {"dims": c["dims"], "description": c["description"]} for c in data["coords"]
            },
            "attrs": data["attrs"],
            "units": {"total": paths[group.path], "done": paths_done[group.path]},
        }
    return {
        "url": store.url,
        **{key: store.record[key] for key in ("posttrace", "created", "job", "fingerprint", "provenance")},
        "complete": len(done) == len(store.units) and store.progress.complete(len(store.units)),
        "units": {
            "total": len(store.units),
            "done": len(done),
            "kinds": {kind: {"total": kinds[kind], "done": kinds_done[kind]} for kind in kinds},
        },
        "groups": groups,
    }
