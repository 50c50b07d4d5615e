"""A change of the residual stream (`Edit`), and the one place that applies it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from posttrace.tracers import sites
from posttrace.tracers.errors import TracerError
from posttrace.tracers.operations import SITES, Steer


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One change of the values at a site, the same in every block of `layers`."""

    site: str
    layers: tuple[int, ...]
    mode: Literal["add", "ablate", "replace"]
    values: torch.Tensor
    """`add`: what is added; `ablate`: the unit vector whose component is removed; `replace`: the new values. Dims
    hidden, or cell x hidden for one per cell (at a site per head, the head size)."""
    coefficient: float = 1.0
    """Factor of `add`."""
    rows: int | Sequence[int] | torch.Tensor = 0
    """Prompt of each edited cell; one number for all of them, or dims cell."""
    columns: Sequence[int] | torch.Tensor | None = None
    """Token of each edited cell, negative ones counted from the end; None: every token of every prompt."""
    head: int | torch.Tensor = 0
    """Head that is edited, or dims cell; 0 at a site that is not per head."""


def edit_of(steer: Steer, vector: torch.Tensor, n_layers: int) -> Edit:
    """Return the edit that an operation asks for in a model of `n_layers` blocks.

    Parameters
    ----------
    vector
        The direction, dims hidden.

    Raises
    ------
    TracerError
        Layers out of range, and for tokens that are neither `all` nor positions counted from the end.

    Examples
    --------
    >>> edit_of(Steer(direction="truth", layers=(1, 2), tokens=(-6, -5)), torch.ones(4), n_layers=3).columns
    (-6, -5)
    """
    if steer.tokens != "all" and (isinstance(steer.tokens, str) or max(steer.tokens) >= 0):
        raise TracerError(
            f"steering {steer.direction}: tokens: {steer.tokens!r}; give `all`, or positions from the end"
        )
    try:
        layers = steer.layers_of(n_layers)
    except ValueError as error:
        raise TracerError(f"steering {steer.direction}: {error}") from None
    ablate = steer.mode == "ablate"
    return Edit(
        site=steer.site,
        layers=layers,
        mode="ablate" if ablate else "add",
        values=vector / vector.norm() if ablate else vector,
        coefficient=-steer.coefficient if steer.mode == "subtract" else steer.coefficient,
        columns=None if isinstance(steer.tokens, str) else steer.tokens,
    )


def check_edits(model, edits: Iterable[Edit]) -> None:
    """Check that edits of the stream fit a model.

    Raises
    ------
    TracerError
        Naming what does not fit.

    Examples
    --------
    >>> check_edits(model, [edit_of(steer, vector, model.n_layers)])    # doctest: +SKIP
    """
    for edit in edits:
        shape = tuple(edit.values.shape)
        check_layers(model, edit.layers)
        if edit.site not in model.architecture.sites:
            raise TracerError(
                f"model {model.name}: site: {edit.site} is no place in its stream; choose one of "
                f"{', '.join(model.architecture.sites)}"
            )
        if shape != (model.hidden_size,) or not edit.values.isfinite().all():
            raise TracerError(
                f"a direction has shape {shape}, must be ({model.hidden_size},), finite and, to be ablated, not zero"
            )


def check_layers(model, layers: Sequence[int]) -> None:
    """Raise TracerError unless layers are blocks of a model, in increasing order, each once."""
    if list(layers) != sorted(set(layers)) or not set(layers) <= set(range(model.n_layers)):
        raise TracerError(
            f"layers: {list(layers)} are not numbers from 0 to {model.n_layers - 1} in increasing order, each once"
        )


def edited(hidden, edits: Iterable[Edit]):
    """`hidden` (dims prompt x token x hidden) after some edits of its site, in the order given.

    Examples
    --------
    >>> unit = torch.tensor([1.0, 0.0])
    >>> edited(torch.tensor([[[3.0, 4.0]]]), [Edit(site="resid_post", layers=(0,), mode="ablate", values=unit)])
    tensor([[[0., 4.]]])
    """
    for edit in edits:
        if edit.columns is None:
            hidden = _changed(hidden, edit)
            continue
        values = edit.values
        if edit.mode != "replace":
            values = _changed(sites.at(hidden, edit.rows, edit.columns), edit)
        hidden = sites.replaced(hidden, edit.rows, edit.columns, values, edit.head)
    return hidden


def _changed(hidden, edit: Edit):
    """`hidden` (dims ... x hidden) with a multiple of the vector added, or its component along it removed."""
    if edit.mode == "add":
        return hidden + (edit.coefficient * edit.values).to(hidden)
    unit = edit.values.to(hidden)
    component = hidden @ unit if unit.dim() == 1 else (hidden * unit).sum(-1)
    return hidden - component[..., None] * unit


def by_layer(edits: Iterable[Edit]) -> dict[int, dict[str, list[Edit]]]:
    """Layer -> site -> its edits, layers in increasing order, the edits of a site in the order given.

    Examples
    --------
    >>> by_layer([Edit(site="resid_post", layers=(0, 2), mode="add", values=torch.ones(4))]).keys()
    dict_keys([0, 2])
    """
    found: dict[int, dict[str, list[Edit]]] = {}
    for edit in edits:
        for layer in edit.layers:
            found.setdefault(layer, {}).setdefault(edit.site, []).append(edit)
    return dict(sorted(found.items()))


def apply_edits(nn, edits: Iterable[Edit]) -> None:
    """Apply edits inside a trace of `nn`."""
    for layer, here in by_layer(edits).items():
        visit(nn.layers[layer], here)


def visit(block, edits: Mapping[str, Sequence[Edit]], read: str | None = None):
    """Edit the sites of a block in forward order, inside a trace; returns the value at the site `read`, if any.

    Parameters
    ----------
    edits
        Site -> its edits. What is read is the value after the edits of its own site.
    """
    value = entered = None
    for site in SITES:
        if site == "attn_out" and "resid_mid" in edits:
            # No module gives the stream at resid_mid: both sites are changed by what attention adds, read once.
            out = block.attn_add.output
            added = edited(sites.added(block, out), edits.get("attn_out", ()))
            stream = edited(entered + added, edits["resid_mid"])
            block.attn_add.output = sites.with_added(block, out, stream - entered)
            value = added if read == site else value
            continue
        if site in edits and site != "resid_mid":
            _change(block, site, edits[site])
        if site == "resid_pre" and "resid_mid" in edits:
            entered = sites.get(block, site)
        if site == read:
            value = sites.get(block, site)
    return value


def _change(block, site: str, edits: Sequence[Edit]) -> None:
    sites.change(block, site, lambda hidden: edited(hidden, edits))
