"""Read a store: labelled datasets, the list of groups, and a summary."""

from __future__ import annotations

import os
from collections import Counter
from shlex import quote
from typing import TYPE_CHECKING, Any

from posttrace.stores.checking import parts, refuse_lost
from posttrace.stores.errors import DAMAGED, Damaged, StoreError, did_you_mean, first_line, naming
from posttrace.stores.store import Store

if TYPE_CHECKING:
    import xarray as xr


def group_paths(url: str | os.PathLike[str]) -> list[str]:
    """Return the paths of the groups of a store.

    Raises
    ------
    StoreError
        There is no store at this URL.

    Examples
    --------
    >>> group_paths("runs/demo")
    ['demo']
    """
    return list(Store.open(url).groups)


def open_group(url: str | os.PathLike[str] | Store, path: str) -> xr.Dataset:
    """Open a group as a lazy, labelled dataset; values are read on use.

    bfloat16 is read as float32. Values not computed yet are NaN (-1 for integers, False for bools, "" for strings).
    Lost data is refused: metadata and coordinates must be unchanged and the chunks of finished units complete; units
    read as a whole are compared with their hashes. Arrays have the attributes `units` and `description`.

    Parameters
    ----------
    url
        A store's URL, or an open store: its markers are then read once for all groups.
    path
        A group, as listed by `group_paths`.

    Raises
    ------
    StoreError
        There is no store, or no such group in it.
    Damaged
        Part of the group is lost or altered; may also be raised later, when values are read.

    Examples
    --------
    >>> open_group("runs/demo", "demo").x.attrs["units"]
    'logit difference, nats'
    """
    store = url if isinstance(url, Store) else Store.open(url)
    if path not in store.groups:
        raise StoreError(
            f"{store.url}: no group {path!r}{did_you_mean(path, store.groups)}; it has {', '.join(store.groups)}"
        )
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
                f"`posttrace verify {quote(store.url)} --repair` restores them, or the next run of the job"
            ) from fault
    group = store.groups[path]
    done = [unit for unit in store.units.values() if unit.group == path and unit.id in markers]
    names = {array.name for array in group.arrays}
    guarded = {
        name: checked(
            variable, f"{place}/{name}", store.url, parts(group, done, markers, name) if name in names else ()
        )
        for name, variable in data.variables.items()
        if name not in data.xindexes  # those are in memory already
    }
    labels = {name: variable for name, variable in guarded.items() if name in data.coords}
    return data.assign({n: v for n, v in guarded.items() if n not in labels}).assign_coords(labels)


def open_store(url: str | os.PathLike[str] | Store) -> xr.DataTree:
    """Open all groups of a store as a tree of lazy, labelled datasets (see `open_group`).

    Every axis with labels can be selected by them. Where an array has the name of an axis that other arrays have,
    the axis keeps the name and the array is called NAME_vector: in a refusal store `direction_vector` is the array
    `direction`, and `refused.sel(direction="base")` selects from another one along its axis.

    Raises
    ------
    StoreError
        There is no store at this URL.
    Damaged
        Part of a group is lost or altered; may also be raised later, when values are read.

    Examples
    --------
    >>> open_store("runs/demo")["demo"].x.attrs["units"]
    'logit difference, nats'
    """
    import xarray as xr

    store = url if isinstance(url, Store) else Store.open(url)
    return xr.DataTree.from_dict({path: labelled(open_group(store, path)) for path in store.groups})


def labelled(data: xr.Dataset) -> xr.Dataset:
    """Make the labels `AXIS_name` of an axis its index, under the name of the axis (see `open_store`)."""
    for dim in map(str, data.dims):
        labels = f"{dim}_name"
        if dim in data.xindexes or labels not in data.coords or data[labels].dims != (dim,):
            continue
        if dim in data.variables:
            data = data.rename_vars({dim: f"{dim}_vector"}).reset_coords(f"{dim}_vector")
        data = data.assign_coords({dim: data[labels]}).drop_vars(labels)
    return data


def summary(url: str | os.PathLike[str] | Store) -> dict[str, Any]:
    """Return what a store holds and how much of it is done, as JSON.

    Keys: url, posttrace, created, job, fingerprint, provenance, complete, units (total, done, and the same
    per kind, the word after the group in unit ids) and groups (path -> sizes, arrays, coords, attrs, units).

    Raises
    ------
    StoreError
        There is no store at this URL, or its record is damaged.

    Examples
    --------
    >>> summary("runs/demo")["units"]
    {'total': 2, 'done': 2, 'kinds': {'clean': {'total': 2, 'done': 2}}}
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
