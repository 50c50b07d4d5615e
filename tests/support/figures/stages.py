"""Groups of the stages study whose effects, attributions and swaps are known."""

import numpy as np
import xarray as xr

from posttrace.figures.studies.stages.data import read

STAGES = ("base", "sft", "instruct")
N, LAYERS, TOKENS, DRAWS = 8, 2, 16, 20
ALPHAS = (0.5, 1.0)


def behaviour(name="refusal", finished=N, at_end=True, retrained=False):
    """sft raises harmful prompts by 6 and lowers harmless by 2 nats; instruct changes all by +1 or -1 in turn.

    All of an effect arises in the attention of layer 1, half of it at the last token and half at the fourth; inserting
    that module does 1.5 times as much as the effect, removing it half as much. Prompts have 14 tokens, odd ones 16.
    The sum misses the effect of prompt 0 by half a nat for sft. Controls do a tenth of a nat in each direction.
    retrained: trained without sft, the final stage is as base, and half a nat higher for even prompts; in another order
    a tenth of a nat more. The task vector is a nat too high, the propagated update 0.2, and read out linearly always 3.
    """
    kinds = np.array(["harmful"] * (N // 2) + ["harmless"] * (N // 2), dtype=object)
    effect = np.stack([np.where(kinds == "harmful", 6.0, -2.0), np.where(np.arange(N) % 2, 1.0, -1.0)])
    f = np.concatenate([np.zeros((1, N)), effect.cumsum(axis=0)])
    attribution = np.zeros((2, N, LAYERS, 2, TOKENS))
    labels = np.full((N, TOKENS), "", dtype=object)
    for i in range(N):
        n = TOKENS if i % 2 else TOKENS - 2
        attribution[:, i, ..., n:] = np.nan
        attribution[:, i, 1, 0, n - 1] = attribution[:, i, 1, 0, 3] = effect[:, i] / 2
        labels[i, :n] = [*(f"t{i}" for _ in range(n - 2)), "<answer>", "\n"]
    residual = np.zeros((2, N))
    residual[0, 0] = 0.5
    insert, removed = np.zeros((2, 2, N, LAYERS, 2))
    insert[:, :, 1, 0], removed[:, :, 1, 0] = 1.5 * effect, 0.5 * effect
    cumulative = np.stack([np.linspace(f[k], f[k + 1], 2 * LAYERS + 3) for k in range(2)])
    alternating = np.where(np.arange(DRAWS) % 2, 0.1, -0.1)
    per = {
        "behaviour": (("model", "prompt"), f),
        "removed": (("update", "alpha", "prompt"), effect[:, None] * np.array(ALPHAS)[:, None]),
        "slope": (("update", "slope_end", "prompt"), np.stack([effect] * 3, axis=1)),
        "attribution": (("update", "prompt", "layer", "module", "token"), attribution),
        "attribution_embed": (
            ("update", "prompt", "token"),
            np.where(np.isnan(attribution[:, :, 0, 0]), np.nan, 0),
        ),
        "attribution_unembed": (("update", "prompt"), np.zeros((2, N))),
        "residual": (("update", "prompt"), residual),
        "nodes": (("update", "prompt"), np.full((2, N), 8)),
        "insert": (("update", "prompt", "layer", "module"), insert),
        "remove": (("update", "prompt", "layer", "module"), removed),
        "insert_ends": (("update", "prompt", "end"), np.zeros((2, N, 2))),
        "remove_ends": (("update", "prompt", "end"), np.zeros((2, N, 2))),
        "cumulative": (("update", "order", "cut", "prompt"), np.stack([cumulative] * 2, axis=1)),
        "control_removed": (
            ("update", "control", "draw", "prompt"),
            np.broadcast_to(alternating[:, None], (2, 2, DRAWS, N)).copy(),
        ),
        "rounding": (("draw", "prompt"), np.broadcast_to(0.1 * alternating[:, None], (DRAWS, N)).copy()),
    }
    if retrained:
        truth = f[0] + np.where(np.arange(N) % 2, 0.0, 0.5)
        per |= {
            "retrained": (("without", "data_order", "prompt"), np.stack([truth, truth + 0.1])[None]),
            "estimate": (
                ("without", "estimator", "prompt"),
                np.stack([truth + 1, truth + 0.2, np.full(N, 3.0)])[None],
            ),
            "replayed": (("without", "prompt"), f[None, -1] + 0.01 * truth),
        }
    for dims, values in per.values():
        if values.dtype.kind == "f":
            values[(*[slice(None)] * dims.index("prompt"), slice(finished, None))] = np.nan
    coords = {
        "model": list(STAGES),
        "update": list(STAGES[1:]),
        "alpha": list(ALPHAS),
        "slope_end": ["start", "end", "final"],
        "layer": np.arange(LAYERS),
        "module": ["attn", "mlp"],
        "end": ["embed", "unembed"],
        "order": ["below", "above"],
        "control": ["gaussian", "permuted"],
        "kind": ("prompt", kinds if name == "refusal" else np.full(N, "", dtype=object)),
        "token_label": (("prompt", "token"), labels),
        "prompt_text": ("prompt", [f"Prompt {i}" for i in range(N)]),
    }
    if retrained:
        coords |= {"without": ["sft"], "estimator": ["task_vector", "propagated", "propagated_linear"]}
    attrs = dict(study="stages", part="behaviour", family="tiny", behaviour=name, set=name, tolerance=0.02)
    data = xr.Dataset(per, coords, {**attrs, "template": "chat", "few_shot": 4, "read_at_end": at_end})
    data["behaviour"].attrs["units"] = "log-odds, nats: log P(refusal) - log P(compliant)"
    return read(data)


def weights():
    """Two tensors: sft's update is a tenth of the first, orthogonal to instruct's; instruct leaves the second alone."""
    dims = ("update", "parameter")
    data = xr.Dataset(
        {
            "update_norm": (dims, [[1.0, 3.0], [2.0, 0.0]]),
            "weight_norm": (dims, [[10.0, 4.0], [10.0, 5.0]]),
            "changed": (dims, [[1.0, 0.5], [0.25, 0.0]]),
            "update_cosine": (
                ("update", "other_update", "parameter"),
                [[[1.0, 1.0], [0.0, np.nan]], [[0.0, np.nan], [1.0, np.nan]]],
            ),
        },
        {
            "update": ["sft", "instruct"],
            "other_update": ["sft", "instruct"],
            "parameter": ["model.layers.0.mlp.up_proj.weight", "lm_head.weight"],
            "entries": ("parameter", [300, 100]),
        },
        dict(study="stages", part="weights", family="tiny"),
    )
    return read(data)
