"""The zarr hierarchy of a store as files, built in memory so that creating a store is a plain copy."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from posttrace.stores.schema import DTYPES, Array, Group


def build(groups: Iterable[Group], attrs: Mapping[str, Any]) -> dict[str, bytes]:
    """Return key -> content of every metadata file and coordinate chunk, without data chunks.

    The root has consolidated metadata from the start: the hierarchy never changes, and without them xarray and zarr
    warn about missing consolidation and about the `.posttrace` folder.

    Parameters
    ----------
    groups
        What the store holds.
    attrs
        JSON attributes of the root.
    """
    import zarr
    from zarr.storage import MemoryStore

    files: dict[str, Any] = {}
    memory = MemoryStore(store_dict=files)
    root = zarr.create_group(memory, attributes=dict(attrs))
    for group in groups:
        labels = " ".join(coord.name for coord in group.coords)
        # The CF convention for naming coordinates; xarray removes the attribute on reading.
        node = root.create_group(
            group.path, attributes={**group.attrs, **({"coordinates": labels} if labels else {})}
        )
        for array in group.arrays:
            _array(node, group, array)
        for coord in group.coords:
            _coord(node, coord)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        zarr.consolidate_metadata(memory)
    return {key: value.to_bytes() for key, value in sorted(files.items())}


def _array(node: Any, group: Group, array: Array) -> None:
    from zarr.codecs import Crc32cCodec, ZstdCodec

    stored, fill = DTYPES[array.dtype]
    chunk = group.chunk(array.name)
    attrs = {"units": array.unit, "description": array.description, "kind": array.kind}
    if array.dtype == "bfloat16":
        attrs["logical_dtype"] = "bfloat16"
    attrs["not_computed"] = {"i": "-1", "b": "false", "O": "empty text"}.get(stored[1], "NaN")
    layout: dict[str, Any] = {"chunks": chunk, "compressors": [ZstdCodec(level=3), Crc32cCodec()]}
    if array.kind == "activation":
        # Activations hardly compress; with a checksum alone they are written at disk speed.
        layout = {"chunks": group.inner(array.name), "shards": chunk, "compressors": [Crc32cCodec()]}
    node.create_array(
        array.name,
        shape=group.shape(array.name),
        dtype="string" if array.dtype == "string" else stored,
        fill_value=fill,
        dimension_names=array.dims,
        attributes=attrs,
        **layout,
    )


def _coord(node: Any, coord: Any) -> None:
    from zarr.codecs import Crc32cCodec, ZstdCodec

    values = coord.stored
    text = values.dtype.kind == "O"
    made = node.create_array(
        coord.name,
        shape=values.shape,
        chunks=values.shape,
        dtype="string" if text else values.dtype,
        fill_value={"O": "", "b": False, "i": -1, "f": float("nan")}[values.dtype.kind],
        dimension_names=coord.dims,
        attributes={"description": coord.description},
        compressors=[ZstdCodec(level=3), Crc32cCodec()],
        config={"write_empty_chunks": True},
    )
    made[...] = values
