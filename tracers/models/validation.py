"""Prove, when a model is loaded, that its sites are where we think they are.

A wrong site gives plausible numbers, so an architecture that is spelled differently must fail here and not in
a figure. The check costs two forward passes over eight tokens per site, and one.
"""

from __future__ import annotations

import nnsight
import torch

from posttrace.tracers import sites
from posttrace.tracers.errors import TracerError
from posttrace.tracers.models.architecture import site_shape
from posttrace.tracers.oracles.compare import tolerance

N_TOKENS = 8


def check_sites(model) -> None:
    """Check shapes, the residual identity and the effect of a patch at every site of a middle block (its last head).

    >>> check_sites(open_model("path/to/checkpoint"))         # doctest: +SKIP

    Raises TracerError naming the site and what it did.
    """
    ids = torch.arange(N_TOKENS).remainder(model.config.vocab_size - 1)[None] + 1
    layer = model.n_layers // 2
    names = model.architecture.patchable
    with torch.no_grad():
        values, logits = _read_block(model, ids, layer)
        _check_shapes(model, values)
        _check_identity(model, values, layer)
        scale = logits.float().abs().max()
        for site in names:
            heads, width = site_shape(model.config, site)
            clean = values[site][0, -2][None, -width:]
            again = _patched(model.nn, ids, layer, site, clean, heads - 1)
            signs = (torch.arange(clean.shape[-1]) % 2 * 2 - 1).to(clean)
            noise = clean + 0.5 * clean.std() * signs
            moved = _patched(model.nn, ids, layer, site, noise, heads - 1)
            if (again - logits).float().abs().max() > tolerance(model.dtype) * scale:
                raise _failed(model, site, "patching it by its own value changes the logits")
            if torch.equal(moved, logits):
                raise _failed(model, site, "patching it by another value leaves the logits as they were")


def _read_block(model, ids, layer):
    """Values at the sites of a block, under `added` what its heads add to the stream once projected, and logits."""
    nn, block, names = model.nn, model.nn.layers[layer], model.architecture.patchable
    with nn.trace(input_ids=ids, logits_to_keep=2):
        values = nnsight.save({})
        for site in names:
            values[site] = sites.get(block, site)
        if "z" in names:
            added = block.heads(values["z"])  # linear: the sum over heads
            values["added"] = block.attn_add(added) if model.architecture.attn_add else added
        logits = nn.unembed.output.save()
    return values, logits


def _patched(nn, ids, layer, site, value, head):
    with nn.trace(input_ids=ids, logits_to_keep=2):
        sites.put(nn.layers[layer], site, [0], [N_TOKENS - 2], value, head)
        logits = nn.unembed.output.save()
    return logits


def _check_shapes(model, values) -> None:
    for site in model.architecture.patchable:
        value = values[site]
        heads, width = site_shape(model.config, site)
        if tuple(value.shape) != (1, N_TOKENS, heads * width):
            raise _failed(
                model, site, f"its shape is {tuple(value.shape)}, not (1, {N_TOKENS}, {heads} x {width})"
            )


def _check_identity(model, values, layer) -> None:
    middle = values.get("resid_mid", values["resid_pre"] + values["attn_out"])
    for site, expected in [
        ("resid_mid", values["resid_pre"] + values["attn_out"]),
        ("resid_post", middle + values["mlp_out"]),
    ]:
        value = values.get(site, expected)
        if (value - expected).float().abs().max() > tolerance(model.dtype) * value.float().abs().max():
            raise _failed(model, site, f"it is not what the stream of block {layer} adds up to")
    if "added" in values:
        added, allowed = values["added"], tolerance(model.dtype) * values["added"].float().abs().max()
        if (values["attn_out"] - added).float().abs().max() > allowed:
            raise _failed(model, "z", "projected, its heads are not what attention adds")


def _failed(model, site: str, what: str) -> TracerError:
    return TracerError(
        f"model {model.name}: site {site}: {what}; "
        "its architecture is spelled unlike the known ones, describe it in tracers/models/architecture.py"
    )
