"""Calls of TransformerLens's `generic_activation_patch` in versions 3 and 4."""

from __future__ import annotations

import functools

import pandas as pd
import torch
import transformer_lens.patching as patching

patching.tqdm = functools.partial(patching.tqdm, disable=True)


def read_clean(model, task):
    """Return TransformerLens's cache of the clean runs' streams after every block."""
    _, cache = model.run_with_cache(
        torch.tensor(task.clean, device=model.cfg.device),
        names_filter=lambda name: name.endswith("hook_resid_post"),
    )
    return cache


def patch_cells(model, cache, task, cells, **options) -> list[float]:
    """Return the logit differences of cells, which must be the same (layer, token) for each pair.

    With the option `reduce="none"` (version 4), pairs are batched; otherwise there must be a single pair, because the
    metric is a scalar.
    """
    pairs = sorted({pair for pair, _, _ in cells})
    where = list(dict.fromkeys((layer, token) for _, layer, token in cells))
    places = pd.DataFrame([(layer, task.start + token) for layer, token in where], columns=["layer", "pos"])
    some = {name: cache[name][pairs] for name in cache}
    first, second = task.answers

    def difference(logits):
        each = logits[:, -1, first] - logits[:, -1, second]
        return each if options else each[0]

    patched = patching.generic_activation_patch(
        model,
        torch.tensor([task.corrupt[pair] for pair in pairs], device=model.cfg.device),
        type(cache)(some, model),
        difference,
        patching.layer_pos_patch_setter,
        "resid_post",
        index_df=places,
        **options,
    )
    values = patched.values if options else patched[:, None]
    return [float(values[where.index((layer, token)), pairs.index(pair)]) for pair, layer, token in cells]
