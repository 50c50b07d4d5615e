"""Prove, when a model is loaded, that its sites are where we think they are.

A wrong site gives plausible numbers, so an architecture that is spelled differently must lose the site here. One block
of every kind is checked; it costs two forward passes over eight tokens per site and kind, and a few more.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import nnsight
import torch

from posttrace.tracers import sites
from posttrace.tracers.errors import TracerError
from posttrace.tracers.models.architecture import Architecture, site_shape
from posttrace.tracers.oracles.compare import tolerance

N_TOKENS = 8
STREAM = ("resid_pre", "resid_post")
"""Sites without which a model is of no use."""


def check_sites(model) -> None:
    """Check shapes, the residual identity and the effect of a patch at every site, in one block of every kind.

    Raises
    ------
    TracerError
        Naming the site and what it did.

    Examples
    --------
    >>> check_sites(open_model("path/to/checkpoint"))         # doctest: +SKIP
    """
    for site, what in misplaced(model).items():
        raise _failed(model, site, what)


def proven(model) -> Architecture:
    """Return the architecture as far as it holds: its sites without those that fail, and the level.

    Raises
    ------
    TracerError
        If the stream between blocks cannot be read and replaced.

    Examples
    --------
    >>> proven(open_model("path/to/checkpoint", check=False)).sites    # doctest: +SKIP
    ('resid_pre', 'attn_out', 'resid_mid', 'mlp_out', 'resid_post')
    """
    architecture, wrong = model.architecture, misplaced(model)
    for site in STREAM:
        if site in wrong:
            raise _failed(model, site, wrong[site])
    lost = {part for site in wrong if (part := sites.ROWS[site].requires)}
    if "attn_add" in lost:  # heads add to it, and what lies between the halves is changed through it
        lost |= {"mid", "heads"}
    nothing: Any = ()
    architecture = replace(architecture, **dict.fromkeys(lost, nothing))
    if architecture.whole is None and (why := _why_not_cached(replace(model, architecture=architecture))):
        architecture = replace(architecture, whole=why)
    return architecture


def misplaced(model) -> dict[str, str]:
    """Sites that are not what they should be, and what they did; none where all is well."""
    ids = torch.arange(N_TOKENS).remainder(model.config.vocab_size - 1)[None] + 1
    wrong: dict[str, str] = {}
    with torch.no_grad():
        for layer in one_of_each_kind(model):
            for site, what in _misplaced(model, ids, layer):
                wrong.setdefault(site, what)
    return wrong


def one_of_each_kind(model) -> list[int]:
    """Of each kind of block the one nearest to the middle; just that one where a server shows no modules."""
    kinds: dict[tuple, list[int]] = {}  # modules and parameters of a block -> layers
    if model.nn._module is None:
        return [model.n_layers // 2]
    for layer, block in enumerate(model.nn._module.get_submodule(model.architecture.layers)):
        modules = ((name, type(module)) for name, module in block.named_modules())
        kind = (*modules, *(name for name, _ in block.named_parameters()))
        kinds.setdefault(kind, []).append(layer)
    middle = model.n_layers // 2
    return sorted(min(layers, key=lambda layer: abs(layer - middle)) for layers in kinds.values())


def _misplaced(model, ids, layer):
    """(site, what it did) of one block, in forward order."""
    values, logits = _read_block(model, ids, layer)
    found = dict(_shapes(model, values))
    if not found.keys() & set(STREAM):
        found |= {site: what for site, what in _sums(model, values, layer) if site not in found}
    scale = logits.float().abs().max()
    for site in model.architecture.patchable:
        if site in found:
            continue
        heads, width = site_shape(model.config, site)
        clean = values[site][0, -2][None, -width:]
        again = _patched(model.nn, ids, layer, site, clean, heads - 1)
        signs = (torch.arange(clean.shape[-1]) % 2 * 2 - 1).to(clean)
        noise = clean + 0.5 * clean.std() * signs
        moved = _patched(model.nn, ids, layer, site, noise, heads - 1)
        if (again - logits).float().abs().max() > tolerance(model.dtype) * scale:
            found[site] = "patching it by its own value changes the logits"
        elif torch.equal(moved, logits):
            found[site] = "patching it by another value leaves the logits as they were"
    yield from found.items()


def _read_block(model, ids, layer):
    """Return values at the sites of a block, and logits.

    Under `added` is what its heads add to the stream once projected, under `next` the stream that enters the block
    after it, under `later` the stream with another token at the end.
    """
    nn, block, names = model.nn, model.nn.layers[layer], model.architecture.patchable
    other = ids.clone()
    other[0, -1] = 0
    with nn.trace(input_ids=other, use_cache=False, logits_to_keep=2):
        later = nnsight.save(sites.get(block, "resid_post"))
    with nn.trace(input_ids=ids, use_cache=False, logits_to_keep=2):
        values = nnsight.save({})
        for site in names:
            values[site] = sites.get(block, site)
        if "z" in names:
            out = block.heads(values["z"])  # linear: the sum over heads
            values["added"] = sites.added(block, block.attn_add(out) if model.architecture.attn_norm else out)
        if layer + 1 < model.n_layers:
            values["next"] = sites.get(nn.layers[layer + 1], "resid_pre")
        logits = nn.unembed.output.save()
    values["later"] = later
    return values, logits


def _patched(nn, ids, layer, site, value, head):
    with nn.trace(input_ids=ids, use_cache=False, logits_to_keep=2):
        sites.put(nn.layers[layer], site, [0], [N_TOKENS - 2], value, head)
        logits = nn.unembed.output.save()
    return logits


def _shapes(model, values):
    for site in model.architecture.patchable:
        value = values[site]
        heads, width = site_shape(model.config, site)
        if value.ndim == 4 and site in STREAM:
            yield (
                site,
                f"blocks hand on {value.shape[2]} streams (hyper-connections), so that none is the residual one",
            )
        elif tuple(value.shape) != (1, N_TOKENS, heads * width):
            yield site, f"its shape is {tuple(value.shape)}, not (1, {N_TOKENS}, {heads} x {width})"


def _sums(model, values, layer):
    allowed = tolerance(model.dtype)

    def far(value, expected):
        return (value - expected).float().abs().max() > allowed * expected.float().abs().max()

    end = values["resid_post"]
    if far(values["later"][:, :-1], end[:, :-1]):
        yield "resid_post", "it changes with the tokens after it: the model is an encoder"
    elif "next" in values and far(values["next"], end):
        yield (
            "resid_post",
            f"block {layer + 1} is entered by another stream: blocks hand each other more than one",
        )
    if "attn_out" not in values:
        return
    middle = values["resid_pre"] + values["attn_out"]
    if "resid_mid" in values and far(values["resid_mid"], middle):
        yield "resid_mid", f"it is not what the stream of block {layer} adds up to"
        yield "attn_out", "it is not what the block adds"
    if "mlp_out" in values and far(end, values.get("resid_mid", middle) + values["mlp_out"]):
        yield "mlp_out", f"the stream of block {layer} does not add up with it"
        if "resid_mid" not in values:
            yield "attn_out", f"the stream of block {layer} does not add up with it"
    if "added" in values and far(values["added"], values["attn_out"]):
        yield "z", "projected, its heads are not what attention adds"


def _why_not_cached(model) -> str | None:
    """Why cached prefixes and skipped blocks do not give what whole passes give; None where they do."""
    from posttrace.tracers.engines.patching import Place, patch_grid
    from posttrace.tracers.oracles.patching import naive_rows, patch
    from posttrace.tracers.prompts import Prompt

    ids = tuple((torch.arange(N_TOKENS) % (model.config.vocab_size - 1) + 1).tolist())
    half, layer, answers = N_TOKENS // 2, (model.n_layers - 1) // 2, (0, 1)
    prompt = Prompt("", ids, start=half, spans=((0, 0),) * half)
    source = torch.linspace(-1, 1, half * model.hidden_size).reshape(1, 1, 1, half, -1).to(model.dtype)
    edits = [
        patch(prompt, token, source[0, 0, 0, token], "resid_post", Place(layer)) for token in range(half)
    ]
    naive = naive_rows(model, [prompt] * half, edits, answers)
    try:
        grid = patch_grid(model, [prompt], source, site="resid_post", layers=[layer], answers=answers)
    except Exception as error:  # of whatever library
        return f"cached runs end with {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    away = float((grid.patched[0, 0, 0, :half] - naive).abs().max())
    if not away <= 10 * tolerance(model.dtype) * max(1.0, float(naive.abs().max())):
        return f"cached runs differ from whole ones by {away:.2g} nats"
    return None


def _failed(model, site: str, what: str) -> TracerError:
    return TracerError(
        f"model {model.name}: architecture {type(model.nn._module).__name__}: site {site}: {what}"
    )
