"""Keep a direction out of the stream, with as few edits as it takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from posttrace.tracers.engines.edits import Edit
from posttrace.tracers.operations import STREAM_SITES


def ablation(direction: torch.Tensor, model_sites: Sequence[str], n_layers: int) -> list[Edit]:
    """Return the edits that keep a direction out of the stream: at every layer, wherever the stream can be reached.

    Parameters
    ----------
    direction
        Dims hidden, any length above 0.
    model_sites
        Those of the architecture; where the halves of a block run in parallel there is no `resid_mid`.

    Examples
    --------
    >>> sites = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
    >>> [edit.site for edit in ablation(torch.ones(4), sites, 2)]
    ['resid_pre', 'resid_mid', 'resid_post']
    """
    unit, layers = direction / direction.norm(), tuple(range(n_layers))
    return [
        Edit(site=site, layers=layers, mode="ablate", values=unit)
        for site in ("resid_pre", "resid_mid", "resid_post")
        if site in model_sites
    ]


def necessary_edits(edits: Iterable[Edit]) -> list[Edit]:
    """Return fewer edits of the same effect, each of one block: none where the direction is already out of the stream.

    `resid_pre` of a block is `resid_post` of the one before, and ablating twice is ablating once. With `s` free of
    the direction, taking it out of `s + a` (`resid_mid`) is taking it out of `a` (`attn_out`), which saves reading
    `s`. Both hold up to rounding; anything but ablation of one direction is left as it is.

    Examples
    --------
    >>> edits = ablation(torch.ones(4), STREAM_SITES, 2)
    >>> [(*e.layers, e.site) for e in necessary_edits(edits)]        # doctest: +NORMALIZE_WHITESPACE
    [(0, 'resid_pre'), (0, 'attn_out'), (0, 'resid_post'), (1, 'attn_out'), (1, 'resid_post')]
    """
    single = [replace(edit, layers=(layer,)) for edit in edits for layer in edit.layers]
    single.sort(key=lambda edit: (edit.layers, STREAM_SITES.index(edit.site)))
    places: dict[tuple[int, str], list[Edit]] = {}
    for edit in single:
        places.setdefault((edit.layers[0], edit.site), []).append(edit)
    kept = []
    for edit in single:
        (layer,) = edit.layers
        if _is_free(places, edit, "resid_pre", (layer - 1, "resid_post")):
            continue
        if _is_free(places, edit, "resid_mid", (layer, "resid_pre")):
            edit = replace(edit, site="attn_out")
        kept.append(edit)
    return kept


def _is_free(places, edit: Edit, site: str, before: tuple[int, str]) -> bool:
    """Whether `edit` ablates at `site` what the only edit at the place `before` has already ablated."""
    (layer,) = edit.layers
    here = [*places.get((layer, site), ()), *places.get((layer, "attn_out"), ())]
    there = places.get(before, ())
    return (
        edit.site == site
        and len(here) == len(there) == 1
        and edit.mode == there[0].mode == "ablate"
        and torch.equal(edit.values, there[0].values)
    )
