"""Which interceptions of a forward pass steering needs, and steering within a tracing context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from posttrace.tracers import sites
from posttrace.tracers.errors import TracerError
from posttrace.tracers.operations import STREAM_SITES, Steer


@dataclass(frozen=True)
class Edit:
    """One change of the stream in one block."""

    layer: int
    site: str
    mode: str
    """`add` (subtracting is adding the negative) or `ablate`."""
    vector: torch.Tensor
    """What is added, or the unit vector whose component is removed; float32, dims hidden."""


def ablation(direction: str, model_sites: Sequence[str]) -> tuple[Steer, ...]:
    """The operations that keep a direction out of the stream: at every layer, wherever the stream can be reached.

    >>> [steer.site for steer in ablation("refusal", ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"))]
    ['resid_pre', 'resid_mid', 'resid_post']

    model_sites: those of the architecture; where the halves of a block run in parallel there is no `resid_mid`.
    """
    stream: tuple[sites.Site, ...] = ("resid_pre", "resid_mid", "resid_post")
    return tuple(
        Steer(site=site, layers="all", tokens="all", direction=direction, mode="ablate")
        for site in stream
        if site in model_sites
    )


def literal_edits(
    steers: Sequence[Steer], vectors: dict[str, torch.Tensor], n_layers: int, hidden_size: int
) -> list[Edit]:
    """Every single change that the operations ask for, in forward order.

    >>> steer = Steer(direction="r", mode="ablate", tokens="all", layers=(1,))
    >>> [(e.layer, e.site) for e in literal_edits([steer], {"r": torch.ones(4)}, 2, 4)]
    [(1, 'resid_post')]

    vectors: direction -> its vector, dims hidden. Raises TracerError for an operation that is not for all tokens, a
    layer that the model lacks, a direction without vector, or a vector that cannot be used.
    """
    edits = []
    for steer in steers:
        if steer.tokens != "all":
            raise TracerError(
                f"steering {steer.direction}: tokens: {steer.tokens!r}; while generating only `all` has a meaning"
            )
        if steer.site not in STREAM_SITES:
            raise TracerError(
                f"steering {steer.direction}: site: {steer.site} is no place in the stream; choose one of "
                f"{', '.join(STREAM_SITES)}"
            )
        if steer.direction not in vectors:
            raise TracerError(f"steering: no vector for direction {steer.direction!r}; give one")
        vector = vectors[steer.direction].detach().float()
        if tuple(vector.shape) != (hidden_size,) or not vector.isfinite().all() or not vector.any():
            raise TracerError(
                f"steering {steer.direction}: its vector has shape {tuple(vector.shape)}, must be ({hidden_size},), "
                "finite and not zero"
            )
        if steer.mode == "ablate":
            vector = vector / vector.norm()
        else:
            vector = vector * (steer.coefficient if steer.mode == "add" else -steer.coefficient)
        try:
            layers = steer.layers_of(n_layers)
        except ValueError as error:
            raise TracerError(f"steering {steer.direction}: {error}") from None
        mode = "ablate" if steer.mode == "ablate" else "add"
        edits += [Edit(layer, steer.site, mode, vector) for layer in layers]
    return sorted(edits, key=lambda edit: (edit.layer, STREAM_SITES.index(edit.site)))


def necessary_edits(edits: Sequence[Edit]) -> list[Edit]:
    """The same effect with fewer changes: none where the direction is out of the stream already.

    >>> edits = literal_edits(ablation("r", STREAM_SITES), {"r": torch.ones(4)}, 2, 4)
    >>> [(e.layer, e.site) for e in necessary_edits(edits)]        # doctest: +NORMALIZE_WHITESPACE
    [(0, 'resid_pre'), (0, 'attn_out'), (0, 'resid_post'), (1, 'attn_out'), (1, 'resid_post')]

    `resid_pre` of a block is `resid_post` of the one before, and ablating twice is ablating once. With `s` free of
    the direction, taking it out of `s + a` (`resid_mid`) is taking it out of `a` (`attn_out`), which saves reading
    `s`. Both hold up to rounding; anything but ablation of one direction is left as it is.
    """
    kept = []
    for edit in edits:
        if _is_free(edits, edit, "resid_pre", edit.layer - 1, "resid_post"):
            continue
        if _is_free(edits, edit, "resid_mid", edit.layer, "resid_pre"):
            edit = replace(edit, site="attn_out")
        kept.append(edit)
    return kept


def _is_free(edits: Sequence[Edit], edit: Edit, site: str, layer: int, before: str) -> bool:
    """Whether `edit` ablates at `site` what all that was done at (layer, before) ablated already."""
    here = [e for e in edits if e.layer == edit.layer and e.site in (site, "attn_out")]
    there = [e for e in edits if (e.layer, e.site) == (layer, before)]
    return (
        edit.site == site
        and len(here) == len(there) == 1
        and edit.mode == there[0].mode == "ablate"
        and torch.equal(edit.vector, there[0].vector)
    )


def steer(nn, edits: Sequence[Edit]) -> None:
    """Carry out the edits, inside a trace of `nn`, at every token that the pass sees."""
    for edit in edits:
        sites.change(nn.layers[edit.layer], edit.site, _change_of(edit))


def _change_of(edit: Edit):
    def changed(hidden):
        vector = edit.vector.to(hidden)
        return hidden + vector if edit.mode == "add" else sites.without(hidden, vector)

    return changed
