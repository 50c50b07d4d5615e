"""The views that the viewer offers first for each study; every other array can be chosen too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from posttrace.figures.viewer.slices import ALL, MEAN

Shown = Literal["map", "lines", "table"]


@dataclass(frozen=True)
class Page:
    """A first look at an array; not offered for groups that lack the array."""

    title: str
    array: str
    shown: Shown
    x: str
    y: str
    at: Mapping[str, str] = field(default_factory=dict)
    """Axis -> one of `slices.WAYS`; of every other axis the first label is shown."""
    text: str = ""
    """Text array that a map shows in its cells."""


PAGES: dict[str, tuple[Page, ...]] = {
    "knowledge": (
        Page("pairs, layer by token", "logit_diff", "map", "token", "layer"),
        Page("mean over pairs", "logit_diff", "map", "token", "layer", {"pair": MEAN}),
        Page("pairs, layer by token (estimates)", "logit_diff_attribution", "map", "token", "layer"),
        Page("clean answers", "logit_diff_clean", "table", "source", "pair"),
    ),
    "truthfulness": (
        Page("statements steered", "p_diff", "table", "direction", "statement"),
        Page("probe accuracy by layer", "accuracy", "lines", "layer", "target"),
        Page("cosine of directions by layer", "cosine", "lines", "layer", "target"),
        Page("effect of directions", "effect", "table", "target", "direction"),
        Page("effect by coefficient", "effect_coefficient", "lines", "coefficient", "direction"),
        Page("length of directions", "direction", "lines", "layer", "model"),
        Page("answers", "completion", "table", "shown", "sample", {"target": ALL}),
    ),
    "refusal": (
        Page("answers side by side", "completion", "table", "target", "prompt"),
        Page("sweep: ablated, harmful", "bypass", "map", "position", "layer", {"validation_harmful": MEAN}),
        Page("sweep: added, harmless", "induce", "map", "position", "layer", {"validation_harmless": MEAN}),
        Page("sweep: side effect", "kl", "map", "position", "layer", {"validation_harmless": MEAN}),
        Page("distance of the two means", "class_distance", "map", "position", "layer"),
        Page("share of refusals", "refused", "table", "target", "direction", {"prompt": MEAN}),
    ),
    "trace": (
        Page("completions side by side", "completion", "table", "model", "prompt", {"intervention": ALL}),
        Page("next tokens", "next_token", "table", "rank", "prompt"),
        Page("logit lens", "lens_logprob", "map", "token", "layer", text="lens_token"),
        Page("length of activations", "activation", "map", "token", "layer"),
    ),
    "stages": (
        Page("effect of updates removed", "removed", "lines", "alpha", "update", {"prompt": MEAN}),
        Page("attribution, layer by token", "attribution", "map", "token", "layer"),
        Page("behaviour of every stage", "behaviour", "table", "model", "prompt"),
    ),
    "confidence": (
        Page("logit differences", "logit_diff", "table", "model", "statement"),
        Page("weight norm of neurons", "weight_norm", "lines", "neuron", "model"),
        Page("entropy of documents", "entropy", "table", "model", "document"),
    ),
    "difference": (
        Page("divergence by token", "kl", "map", "token", "pair"),
        Page("cosine, layer by token", "cosine", "map", "token", "layer"),
        Page("tokens' loss", "loss", "map", "token", "model"),
        Page("answers of steered sources", "completion", "table", "completed", "prompt"),
    ),
}
"""Study -> its pages."""
