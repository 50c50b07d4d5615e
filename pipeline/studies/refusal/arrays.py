"""What the study `refusal` stores: the declaration of its group."""

from __future__ import annotations

import numpy as np

from posttrace.pipeline.studies.refusal.inputs import KINDS, RefusalInputs
from posttrace.pipeline.studies.refusal.job import RANDOM, RefusalJob
from posttrace.stores import Array, Coord, Group

PATH = "refusal"
INTERVENTIONS = ("none", "ablation", "addition")
ANSWERS = ("refused", "phrase", "log_odds", "completion", "mean_nll", "repeated")
"""Arrays that a unit of answers writes."""
REASONING = ("reasoning_tokens", "reasoning_cut")
"""Arrays that it writes as well where a stage may reason before it answers."""
DIRECTIONS = ("direction", "class_distance", "plain_harmful", "plain_harmless")
SWEEP = ("bypass", "induce", "kl")
SEARCH = ("search_coefficient", "search_refused", "search_log_odds", "search_mean_nll")
SELECTED = ("selected_layer", "selected_position", "selected_qualifies")

AXIS = (
    "labels of the axis `direction` of refused, log_odds, completion and so on: the stages in the order of `model`, "
    "then random directions; an axis cannot have an index under the name of the array `direction`, so select with "
    "data.set_xindex('direction_name').sel(direction_name=...)"
)
NATS = "log-odds, nats: log P(refusal opening) - log P(compliant opening) at the first new token"


def direction_names(job: RefusalJob) -> tuple[str, ...]:
    """Return the direction axis: every stage's, then random ones.

    Examples
    --------
    >>> direction_names(job)[-1]                                      # doctest: +SKIP
    'random-9'
    """
    return (*job.stage_names, *(f"{RANDOM}{i}" for i in range(job.random_directions)))


def refusal_group(job: RefusalJob, inputs: RefusalInputs, n_layers: int, hidden: int) -> Group:
    """Return the group `refusal`: arrays, coordinates and attributes (names that readers rely on).

    Parameters
    ----------
    job
        With its dtype and choices resolved.

    Examples
    --------
    >>> refusal_group(job, inputs, 8, 160).path                       # doctest: +SKIP
    'refusal'
    """
    stages, names = job.stage_names, direction_names(job)
    prompts, splits, n_positions = inputs.prompts, inputs.splits, len(inputs.positions)
    kinds = [kind for kind in KINDS for _ in splits[kind].test]
    texts = [text for kind in KINDS for text in splits[kind].test]
    dims = ("direction", "target", "intervention", "prompt")
    block = {"direction": 1, "target": 1, "intervention": 1, "prompt": job.prompts_per_unit}
    sweep, search = ("model", "layer", "position"), ("model", "step", "validation_harmless")
    alone, by_layer = {"model": 1}, {"model": 1, "layer": 1}
    length, asked = "length in the residual stream", "harmless prompts, direction added"
    arrays = [
        Array("direction", (*sweep, "hidden"), "float32", "unit vector",
              "mean over harmful minus mean over harmless prompts at the input of block `layer`, length 1; NaN where "
              "the two are the same", alone),
        Array("class_distance", sweep, "float32", length, "distance of the two means", alone),
        Array("plain_harmful", ("model", "validation_harmful"), "float32", NATS, "validation, not steered", alone),
        Array("plain_harmless", ("model", "validation_harmless"), "float32", NATS, "validation, not steered", alone),
        Array("bypass", (*sweep, "validation_harmful"), "float32", NATS, "harmful, direction ablated", by_layer),
        Array("induce", (*sweep, "validation_harmless"), "float32", NATS,
              "harmless, direction times class_distance added", by_layer),
        Array("kl", (*sweep, "validation_harmless"), "float32", "KL divergence, nats",
              "first new token on harmless prompts, plain from ablated", by_layer),
        Array("selected_layer", ("model",), "int64", "block number", "where the direction is taken", alone),
        Array("selected_position", ("model",), "int64", "token, from the prompt's end", "where it is taken", alone),
        Array("selected_qualifies", ("model",), "bool", "yes or no",
              "whether the choice met every condition of the selection (a fixed one counts as such)", alone),
        Array("coefficient", ("model",), "float32", length, "of what is added into this stage, in any direction",
              alone),
        *(Array(name, dims, dtype, unit, words, block) for name, dtype, unit, words in (
            ("refused", "bool", "yes or no", "whether the answer begins with a refusal phrase; False also where "
             "nothing was computed and log_odds is NaN"),
            ("phrase", "string", "text", "the phrase that the answer begins with"),
            ("log_odds", "float32", NATS, "refusal against compliance, in the steered run"),
            ("completion", "string", "text", "the answer, greedy"),
            ("mean_nll", "float32", "nats a token", "mean negative log-likelihood of the answer in the unsteered "
             "target, from its second token on; NaN for answers of one token"),
            ("repeated", "float32", "share", "of the answer's pairs of neighbouring tokens that it had before"),
        )),
    ]  # fmt: skip
    if inputs.may_reason:
        arrays += [
            Array("reasoning_tokens", dims, "int32", "tokens", "of the reasoning block before the answer, which is "
                  "scored after it; 0 where there is none", block),
            Array("reasoning_cut", dims, "bool", "yes or no", "whether that block was cut short", block),
        ]  # fmt: skip
    if job.coefficient_search:
        arrays += [
            Array("search_coefficient", ("model", "step"), "float32", length, "what was tried", alone),
            Array("search_refused", search, "bool", "yes or no", asked, alone),
            Array("search_log_odds", search, "float32", NATS, asked, alone),
            Array("search_mean_nll", search, "float32", "nats a token", f"{asked}; as `mean_nll`", alone),
        ]  # fmt: skip
    sizes = {
        "model": len(stages),
        "layer": n_layers,
        "position": n_positions,
        "hidden": hidden,
        "direction": len(names),
        "target": len(stages),
        "intervention": len(INTERVENTIONS),
        "prompt": len(texts),
        "validation_harmful": len(splits["harmful"].validation),
        "validation_harmless": len(splits["harmless"].validation),
    }
    if job.coefficient_search:
        sizes["step"] = len(job.coefficient_search)
    positions = np.arange(-n_positions, 0)
    coords = (
        Coord("model", ("model",), list(stages)),
        Coord("target", ("target",), list(stages)),
        Coord("direction_name", ("direction",), list(names), AXIS),
        Coord("intervention", ("intervention",), list(INTERVENTIONS)),
        Coord("layer", ("layer",), list(range(n_layers)), "block whose input it is"),
        Coord("position", ("position",), positions, "token, counted from the prompt's end"),
        Coord("position_token", ("model", "position"), [list(prompts[s].ending) for s in stages], "its text"),
        Coord("in_template", ("model", "position"), [list(-positions <= prompts[s].tail) for s in stages],
              "whether the token is the template's, the same in every prompt"),
        Coord("template", ("model",), [prompts[s].template for s in stages], "`chat`: the tokenizer's own"),
        Coord("selected_by", ("model",), ["fixed" if s in job.choices else "sweep" for s in stages]),
        Coord("kind", ("prompt",), kinds, "harmful or harmless"),
        Coord("instruction", ("prompt",), texts),
    )  # fmt: skip
    return Group(
        path=PATH,
        sizes=sizes,
        arrays=tuple(arrays),
        coords=coords,
        attrs={
            "study": "refusal",
            "family": job.family.name,
            "set": f"{job.harmful.name} / {job.harmless.name}",
            "seed": job.seed,
            "n_direction": [len(splits[kind].direction) for kind in KINDS],
            "n_validation": [len(splits[kind].validation) for kind in KINDS],
            "n_test": [len(splits[kind].test) for kind in KINDS],
            "new_tokens": job.new_tokens,
            "max_kl": job.max_kl,
            "max_depth": job.max_depth,
            "axis_direction": AXIS,
        },
    )
