"""What the study `stages` stores: the declaration of its groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from posttrace.pipeline.studies.stages.inputs import PATH, Asked
from posttrace.pipeline.studies.stages.job import StagesJob
from posttrace.stores import Array, Coord, Group
from posttrace.tracers.engines.weights import KINDS
from posttrace.tracers.models.weighted import ENDS, MODULES

ORDERS = ("below", "above")
SLOPE_ENDS = ("start", "end", "final")
DATA_ORDERS = 2
"""Retrained with the data as they came, and with the same data in another order."""
ESTIMATORS = ("task_vector", "propagated", "propagated_linear")
WEIGHTS = ("update_norm", "weight_norm", "changed", "update_cosine")
ATTRIBUTION = ("attribution", "attribution_embed", "attribution_unembed", "residual", "nodes", "slope")
SWAPS = {
    "insert": ("insert", "insert_ends"),
    "remove": ("remove", "remove_ends"),
    "cumulative": ("cumulative",),
}
"""Kind of swap -> the arrays that it fills."""
NANS = frozenset({"update_cosine", "attribution", "attribution_embed"})
"""No value: cosines with an update of norm 0, and beyond a prompt's tokens."""


def updates(job: StagesJob) -> tuple[str, ...]:
    """Return the updates, each named after the stage that it made.

    >>> updates(load_job("stages"))
    ('sft', 'instruct', 'narrow')
    """
    return job.stage_names[1:]


def left_out(job: StagesJob) -> tuple[str, ...]:
    """Return the stages that training is repeated without: all that made an update, the last aside."""
    return updates(job)[:-1] if job.recipe else ()


def weights_group(job: StagesJob, parameters: Mapping[str, int]) -> Group:
    """Return the group `stages`: how much each update changed each weight tensor; parameters: name -> entries."""
    names = updates(job)
    dims, block = ("update", "parameter"), {"update": 1}
    length = "Frobenius norm, model units"
    arrays: tuple[Array, ...] = (
        Array("update_norm", dims, "float64", length, "of the update", block),
        Array("weight_norm", dims, "float64", length, "of the weight before the update", block),
        Array("changed", dims, "float64", "share", "of the tensor's entries that the update changed", block),
        Array(
            "update_cosine",
            ("update", "other_update", "parameter"),
            "float64",
            "cosine",
            "of two updates of one tensor; NaN where one of them is 0",
            block,
        ),
    )
    coords: tuple[Coord, ...] = (
        _updates(job),
        Coord("other_update", ("other_update",), list(names), "the other one"),
        Coord("parameter", ("parameter",), list(parameters), "weight tensor; a tied one stands once"),
        Coord("entries", ("parameter",), list(parameters.values()), "entries of the tensor"),
    )
    sizes = {"update": len(names), "other_update": len(names), "parameter": len(parameters)}
    attributes = _attributes(job, "weights")
    if job.recipe:
        attributes["recipe"] = job.recipe
        arrays += tuple(_trained_weights())
        coords += _without(job)
        sizes |= {"without": len(left_out(job)), "data_order": DATA_ORDERS, "entry": sum(parameters.values())}
    return Group(PATH, sizes, arrays, coords, attributes)


def _trained_weights() -> Iterator[Array]:
    texts = {
        "replayed_weights": "final weights, when the stages after this one are trained again (float32)",
        "propagated_update": "J d: what a small change of this stage's weights along its update becomes by the end of "
        "that training, per unit of the change",
        "retrained_weights": "final weights, when they are trained from the stage before this one",
    }
    for name, text in texts.items():
        by = ("without", "data_order") if name == "retrained_weights" else ("without",)
        text += "; the entries of all parameters in their order"
        yield Array(name, (*by, "entry"), "float32", "model units", text, dict.fromkeys(by, 1))


def _without(job: StagesJob) -> tuple[Coord, ...]:
    return (
        Coord("without", ("without",), list(left_out(job)), "stage that training is repeated without"),
        Coord(
            "data_order", ("data_order",), np.arange(DATA_ORDERS), "0: the data as they came; else shuffled"
        ),
    )


def behaviour_group(job: StagesJob, asked: Asked, n_layers: int) -> Group:
    """Return the group of one behaviour on one set (names that readers rely on)."""
    per, unit = job.prompts_per_unit, asked.unit
    by_prompt = {"update": 1, "prompt": per}
    halves, ends = ("update", "prompt", "layer", "module"), ("update", "prompt", "end")
    arrays = [
        Array(
            "behaviour", ("model", "prompt"), "float32", unit, "f of each stage", {"model": 1, "prompt": per}
        ),
        Array(
            "removed",
            ("update", "alpha", "prompt"),
            "float32",
            unit,
            "f(final) - f(final - alpha x update): exact about weights, says nothing about training",
            by_prompt,
        ),
        Array(
            "slope",
            ("update", "slope_end", "prompt"),
            "float32",
            unit,
            "<grad f, update> at one point: start and end of the update's path, and the final stage. A warning, "
            "not a result: where the three differ the path is not straight",
            {**by_prompt, "slope_end": 1},
        ),
        Array(
            "attribution",
            ("update", "prompt", "layer", "module", "token"),
            "float32",
            unit,
            "part of f(update) - f(stage before) that arises there along the straight path; NaN beyond the prompt",
            by_prompt,
        ),
        Array(
            "attribution_embed",
            ("update", "prompt", "token"),
            "float32",
            unit,
            "the same of the embeddings",
            by_prompt,
        ),
        Array(
            "attribution_unembed",
            ("update", "prompt"),
            "float32",
            unit,
            "the same of final norm and unembedding",
            by_prompt,
        ),
        Array(
            "residual",
            ("update", "prompt"),
            "float32",
            unit,
            "sum of all attributions minus the effect; flagged above tolerance x |effect| + 0.01",
            by_prompt,
        ),
        Array("nodes", ("update", "prompt"), "int32", "nodes", "Gauss-Legendre nodes of the sum", by_prompt),
    ]
    words = {
        "insert": "f(stage before, with this module's update) - f(stage before)",
        "remove": "f(stage) - f(stage, without this module's update)",
    }
    for kind, text in words.items():
        if kind in job.swaps:
            arrays.append(Array(kind, halves, "float32", unit, text, by_prompt))
            arrays.append(Array(f"{kind}_ends", ends, "float32", unit, text, by_prompt))
    sizes = {
        "model": len(job.stage_names),
        "update": len(updates(job)),
        "prompt": len(asked.questions),
        "alpha": len(job.alphas),
        "slope_end": len(SLOPE_ENDS),
        "layer": n_layers,
        "module": len(MODULES),
        "token": asked.n_tokens,
        "end": len(ENDS),
    }
    coords = [
        Coord("model", ("model",), list(job.stage_names), "stage"),
        _updates(job),
        Coord("alpha", ("alpha",), list(job.alphas), "share of the update that is removed"),
        Coord("slope_end", ("slope_end",), list(SLOPE_ENDS), "where the slope is taken"),
        Coord("layer", ("layer",), np.arange(n_layers), "block, from 0"),
        Coord("module", ("module",), list(MODULES), "half of a block, with the norm that feeds it"),
        Coord("end", ("end",), list(ENDS), "embeddings; final norm and unembedding"),
        Coord("token_label", ("prompt", "token"), asked.token_labels(), "the token as text"),
        Coord("kind", ("prompt",), list(asked.kinds), "harmful or harmless, true or false; else empty"),
        Coord("prompt_text", ("prompt",), list(asked.texts), "the prompt"),
    ]
    if "cumulative" in job.swaps:
        sizes |= {"order": len(ORDERS), "cut": 2 * n_layers + 3}
        arrays.append(
            Array(
                "cumulative",
                ("update", "order", "cut", "prompt"),
                "float32",
                unit,
                "f with the update of the first (below) or last (above) `cut` parts only: 0 is the stage before, the "
                "last cut the stage itself",
                by_prompt,
            )
        )
        coords += [
            Coord("order", ("order",), list(ORDERS), "from where parts are counted"),
            Coord("cut", ("cut",), np.arange(2 * n_layers + 3), "parts of embed, attn 0, mlp 0 ... unembed"),
        ]
    if job.controls:
        sizes |= {"control": len(KINDS), "draw": job.controls}
        arrays += [
            Array(
                "control_removed",
                ("update", "control", "draw", "prompt"),
                "float32",
                unit,
                "f(final) - f(final - direction), direction as long as the update in every tensor",
                {"update": 1, "control": 1},
            ),
            Array(
                "rounding",
                ("draw", "prompt"),
                "float32",
                unit,
                "f(final) - f(final with weights moved within half a last place of bfloat16)",
            ),
        ]
        coords += [
            Coord("control", ("control",), list(KINDS), "Gaussian, or the update's entries permuted"),
            Coord("draw", ("draw",), np.arange(job.controls), "draw of a control"),
        ]
    if job.recipe:
        sizes |= {"without": len(left_out(job)), "data_order": DATA_ORDERS, "estimator": len(ESTIMATORS)}
        by_stage = {"without": 1, "data_order": DATA_ORDERS, "prompt": per}
        arrays += [
            Array(
                "retrained",
                ("without", "data_order", "prompt"),
                "float32",
                unit,
                "f of the final stage trained without the stage: later stages trained from the one before it",
                by_stage,
            ),
            Array(
                "estimate",
                ("without", "estimator", "prompt"),
                "float32",
                unit,
                "the same, estimated: f(final - update), f(final - J update), f(final) - <grad f, J update>",
                {"without": 1, "prompt": per},
            ),
            Array(
                "replayed",
                ("without", "prompt"),
                "float32",
                unit,
                "f of the final stage, when the stages after this one are trained again in float32",
                {"without": 1, "prompt": per},
            ),
        ]
        coords += _without(job)
        coords.append(Coord("estimator", ("estimator",), list(ESTIMATORS), "how it is estimated"))
    if job.effects_only:
        arrays = arrays[:1]
        sizes = {dim: sizes[dim] for dim in arrays[0].dims}
        coords = [one for one in coords if set(one.dims) <= set(sizes)]
    about = {
        "behaviour": asked.behaviour,
        "set": asked.path.removeprefix(f"{PATH}/"),
        "read_at_end": asked.at_end,
        "tolerance": job.tolerance,
        "template": job.template,
        "few_shot": job.few_shot,
    }
    return Group(asked.path, sizes, tuple(arrays), tuple(coords), {**_attributes(job, "behaviour"), **about})


def _attributes(job: StagesJob, part: str) -> dict[str, Any]:
    return {"study": "stages", "part": part, "family": job.family.name, "seed": job.seed}


def _updates(job: StagesJob) -> Coord:
    return Coord("update", ("update",), list(updates(job)), "named after the stage that it made")
