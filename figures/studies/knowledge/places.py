"""Where an activation was patched: a layer, or for `z` a layer and a head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import xarray as xr


def by_place(variable: xr.DataArray) -> np.ndarray:
    """Return values of a patching grid, dims source x target x pair x place x token, heads within layers.

    Examples
    --------
    >>> dims = ("source", "target", "pair", "layer", "head", "token")
    >>> by_place(xr.DataArray(np.zeros((3, 3, 24, 8, 4, 14)), dims=dims)).shape
    (3, 3, 24, 32, 14)
    """
    where = ("layer", "head") if "head" in variable.dims else ("layer",)
    values = variable.transpose("source", "target", "pair", *where, "token").values
    places = int(np.prod(values.shape[3:-1]))
    return values.reshape(*values.shape[:3], places, values.shape[-1])


def layers_and_heads(dataset: xr.Dataset) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the layer of every place, and the numbers of the heads (none for whole sites).

    Examples
    --------
    >>> layers_and_heads(xr.Dataset({"logit_diff": (("layer", "head"), np.zeros((2, 3)))}))
    ((0, 0, 0, 1, 1, 1), (0, 1, 2))
    """
    sizes = dataset["logit_diff"].sizes
    numbers = (
        dataset[dim].values if dim in dataset.variables else range(sizes.get(dim, 0))
        for dim in ("layer", "head")
    )
    layers, heads = (tuple(map(int, some)) for some in numbers)
    return tuple(layer for layer in layers for _ in heads or (0,)), heads
