"""What the study `trace` stores: the declaration of its groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from posttrace.pipeline.studies.trace.job import TraceJob, as_text
from posttrace.stores import Array, Coord, Group
from posttrace.tracers.operations import Lens, Patch, Read


def output_group(job: TraceJob) -> Group:
    """Return the group `trace/output`: what each model says next, with and without the operations.

    >>> output_group(job).shape("logprob")                     # doctest: +SKIP
    (3, 2, 2, 10)
    """
    dims = ("model", "intervention", "prompt", "rank")
    block = {"model": 1, "prompt": job.prompts_per_unit}
    arrays = (
        Array("logprob", dims, "float32", "nats", "log probability of the next token of that rank", block),
        Array("next_token", dims, "string", "text", "that token", block),
        Array(
            "next_token_id",
            dims,
            "int32",
            "token id",
            "its id; texts of several tokens may be the same",
            block,
        ),
        Array("entropy", dims[:3], "float32", "nats", "entropy of the distribution of the next token", block),
    )
    sizes = {**_sizes(job), "rank": job.top}
    coords = (*_coords(job), Coord("rank", ("rank",), np.arange(job.top), "0: the most probable"))
    return Group("trace/output", sizes, arrays, coords, _attrs(job))


def completion_group(job: TraceJob) -> Group:
    """Return the group `trace/completion`: what each model goes on to say.

    >>> completion_group(job).shape("completion")              # doctest: +SKIP
    (3, 2, 2)
    """
    dims, block = ("model", "intervention", "prompt"), {"model": 1, "prompt": job.prompts_per_unit}
    text = f"greedy, at most {job.generate} new tokens, special ones left out"
    ids = "its token ids, up to and with the one that ended it; -1 after that"
    arrays = (
        Array("completion", dims, "string", "text", text, block),
        Array("completion_id", (*dims, "new_token"), "int32", "token id", ids, block),
    )
    sizes = {**_sizes(job), "new_token": job.generate}
    coords = (
        *_coords(job),
        Coord("new_token", ("new_token",), np.arange(job.generate), "0: the first new one"),
    )
    return Group("trace/completion", sizes, arrays, coords, _attrs(job))


def activation_group(
    job: TraceJob,
    operation: Read | Patch,
    number: int,
    layers: Sequence[int],
    tokens: Sequence[int],
    texts: Sequence[Sequence[str]],
    ids: Sequence[Sequence[int]],
    hidden_size: int,
) -> Group:
    """Return the group `trace/read-N` of a read, or `trace/source-N` of the runs that a patch takes its values from.

    >>> activation_group(job, job.reads[0], 0, range(8), [-1], [[" in"]], [[287]], 160).path # doctest: +SKIP
    'trace/read-0'

    job: with its dtype resolved. tokens: positions, negative ones from the end. texts, ids: per
    prompt, those tokens.
    """
    is_read = isinstance(operation, Read)
    models = (operation.source,) if isinstance(operation, Patch) else job.stage_names
    interventions = job.interventions if is_read else ("none",)
    activation = Array(
        "activation",
        ("model", "intervention", "prompt", "layer", "token", "hidden"),
        job.dtype,
        "activation, model units",
        f"{operation.site}{'' if is_read else ' of the source prompts'}; NaN past the end of a shorter prompt",
        {"model": 1, "prompt": job.prompts_per_unit},
        "activation",
    )
    arrays = [activation]
    coords = [*_coords(job, models, interventions), *_cells(models[0], layers, tokens, texts, ids)]
    sizes = {
        **_sizes(job),
        "model": len(models),
        "intervention": len(interventions),
        "layer": len(layers),
        "token": len(tokens),
        "hidden": hidden_size,
    }
    if is_read and job.directions:
        sizes["direction"] = len(job.directions)
        arrays.append(projection_array(job))
        coords.append(Coord("direction", ("direction",), list(job.directions), "what is projected on"))
    attrs = {**_attrs(job), "site": operation.site, "operation": operation.model_dump(mode="json")}
    name = f"trace/{'read' if is_read else 'source'}-{number}"
    return Group(name, sizes, tuple(arrays), tuple(coords), attrs)


def projection_array(job: TraceJob) -> Array:
    """Declare the array with the components of what a read keeps along the declared directions."""
    return Array(
        "projection",
        ("model", "intervention", "prompt", "layer", "token", "direction"),
        "float32",
        "activation, model units",
        "component along the direction, taken to length 1; NaN past the end of a shorter prompt",
        {"model": 1, "prompt": job.prompts_per_unit},
    )


def lens_group(
    job: TraceJob,
    operation: Lens,
    number: int,
    layers: Sequence[int],
    tokens: Sequence[int],
    texts: Sequence[Sequence[str]],
    ids: Sequence[Sequence[int]],
) -> Group:
    """Declare the group `trace/lens-N`: what the stream at each layer and token would say next.

    >>> lens_group(job, job.lenses[0], 0, range(8), [-1], [[" in"]], [[287]]).path  # doctest: +SKIP
    'trace/lens-0'
    """
    dims = ("model", "intervention", "prompt", "layer", "token", "rank")
    block = {"model": 1, "prompt": job.prompts_per_unit}
    arrays = (
        Array("lens_logprob", dims, "float32", "nats", "log probability of the token of that rank, by final norm and "
              f"unembedding of {operation.site}; NaN past the end of a shorter prompt", block),
        Array("lens_token", dims, "string", "text", "that token", block),
        Array("lens_token_id", dims, "int32", "token id", "its id; -1 past the end", block),
    )  # fmt: skip
    sizes = {**_sizes(job), "layer": len(layers), "token": len(tokens), "rank": operation.top}
    coords = (
        *_coords(job),
        *_cells(job.stage_names[0], layers, tokens, texts, ids),
        Coord("rank", ("rank",), np.arange(operation.top), "0: the most probable"),
    )
    attrs = {**_attrs(job), "site": operation.site, "operation": operation.model_dump(mode="json")}
    return Group(f"trace/lens-{number}", sizes, arrays, coords, attrs)


def _cells(stage: str, layers, tokens, texts, ids) -> tuple[Coord, ...]:
    first = f", for stage {stage}"
    return (
        Coord("layer", ("layer",), np.array(layers), "block, from 0"),
        Coord("token", ("token",), np.array(tokens), "position, from 0, negative ones from the end"),
        Coord("token_text", ("prompt", "token"), [list(t) for t in texts], f"text of the token{first}"),
        Coord("token_id", ("prompt", "token"), np.array(ids), f"its id{first}; -1 past the end"),
    )


def _sizes(job: TraceJob) -> dict[str, int]:
    return {
        "model": len(job.stage_names),
        "intervention": len(job.interventions),
        "prompt": len(job.prompts),
    }


def _coords(job: TraceJob, models=None, interventions=None) -> tuple[Coord, ...]:
    return (
        Coord("model", ("model",), list(models or job.stage_names), "stage that is run"),
        Coord(
            "intervention",
            ("intervention",),
            list(interventions or job.interventions),
            "none: the prompt as it is; all: every patch and steer of the job at work",
        ),
        Coord("prompt", ("prompt",), np.arange(len(job.prompts)), "number of the prompt"),
        Coord(
            "prompt_text",
            ("prompt",),
            [as_text(p.run) for p in job.prompts],
            "text, or messages, that are run",
        ),
        Coord("source_text", ("prompt",), [as_text(p.source_run) for p in job.prompts], "source of patches"),
    )


def _attrs(job: TraceJob) -> dict:
    return {
        "study": "trace",
        "family": job.family.name,
        "operations": [o.model_dump(mode="json") for o in job.operations],
    }
