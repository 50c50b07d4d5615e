"""What the study `knowledge` stores: the declaration of its groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from posttrace.pipeline.studies.knowledge.inputs import PairSet
from posttrace.pipeline.studies.knowledge.job import KnowledgeJob
from posttrace.pipeline.studies.knowledge.pairing import roles_within, token_texts
from posttrace.pipeline.tensors import filled
from posttrace.stores import Array, Coord, Group


def grid_arrays(job: KnowledgeJob) -> tuple[str, ...]:
    """Names of the arrays that a unit of the patch grid writes.

    Examples
    --------
    >>> grid_arrays(job)                                              # doctest: +SKIP
    ('logit_diff', 'logit_diff_corrupt')
    """
    estimate = ("logit_diff_attribution",) if job.method == "attribution" else ()
    return ("logit_diff", "logit_diff_corrupt", *estimate)


def knowledge_group(
    job: KnowledgeJob, pairs: PairSet, layers: Sequence[int], heads: int, width: int
) -> Group:
    """Return the group `knowledge/<set>`: arrays, coordinates and attributes (names that readers rely on).

    Parameters
    ----------
    job
        With its dtype resolved.
    layers
        Block numbers.
    heads, width
        Values per block and token, and components of each (see tracers.models.architecture.site_shape); at `z` the
        dimension `head` follows `layer`. With `method: attribution` there is one more array.

    Examples
    --------
    >>> knowledge_group(job, pairs, range(8), 1, 160).path  # doctest: +SKIP
    'knowledge/cities'
    """
    stages = list(job.stage_names)
    prompts = pairs.prompts[stages[0]]
    block = job.pairs_per_unit
    nats = f"logit difference, nats: logit({job.answers[0]}) - logit({job.answers[1]}) at the last token"
    where = ("layer", "head") if job.site == "z" else ("layer",)
    grid = ("source", "target", "pair", *where, "token")
    arrays = [
        Array(
            name="logit_diff",
            dims=grid,
            dtype="float32",
            unit=nats,
            description=f"corrupt run of target, {job.site} at ({', '.join(where)}, token) replaced by that of the "
            "source's clean run",
            block={"target": 1, "pair": block},
        ),
        Array(
            name="logit_diff_clean",
            dims=("source", "pair"),
            dtype="float32",
            unit=nats,
            description="clean (true) prompt, unpatched",
            block={"source": 1, "pair": block},
        ),
        Array(
            name="logit_diff_corrupt",
            dims=("target", "pair"),
            dtype="float32",
            unit=nats,
            description="corrupt (false) prompt, unpatched",
            block={"target": 1, "pair": block},
        ),
        Array(
            name="activation",
            dims=("source", "pair", *where, "token", "hidden"),
            dtype=job.dtype,
            unit="activation, model units",
            description=f"{job.site} of the clean run",
            block={"source": 1, "pair": block},
            kind="activation",
        ),
    ]
    if job.method == "attribution":
        arrays.append(
            Array(
                name="logit_diff_attribution",
                dims=grid,
                dtype="float32",
                unit=nats,
                description="first-order estimate of logit_diff (attribution patching), not the exact value",
                block={"target": 1, "pair": block},
            )
        )
    labels = [
        filled(token_texts(clean, true + job.suffix), pairs.width, "")
        for (clean, _), (true, _) in zip(prompts, pairs.aligned.pairs, strict=True)
    ]
    coords = [
        Coord("source", ("source",), stages, "stage that the activation comes from"),
        Coord("target", ("target",), stages, "stage that the activation is put into"),
        Coord("pair", ("pair",), np.arange(len(prompts)), "number of the pair"),
        Coord("layer", ("layer",), np.array(layers), "block, from 0"),
        Coord("token", ("token",), np.arange(pairs.width), "statement token, from 0"),
        Coord("token_label", ("token",), list(pairs.aligned.labels), "text or role of the token"),
        Coord("token_role", ("token",), list(pairs.aligned.roles), "subject, object, last or other"),
        Coord("token_label_of_pair", ("pair", "token"), labels, "text of the clean run's token"),
        Coord("n_tokens", ("pair",), np.array(pairs.lengths), "statement tokens of the pair"),
        Coord("clean_prompt", ("pair",), [c.text for c, _ in prompts], "prompt of the clean run"),
        Coord("corrupt_prompt", ("pair",), [c.text for _, c in prompts], "prompt of the corrupt run"),
        Coord("clean_statement", ("pair",), [c for c, _ in pairs.aligned.pairs], "the true statement"),
        Coord("corrupt_statement", ("pair",), [c for _, c in pairs.aligned.pairs], "the false statement"),
    ]
    if job.site == "z":
        coords.append(Coord("head", ("head",), np.arange(heads), "attention head, from 0"))
    if job.method == "attribution":
        coords.append(
            Coord("exact", ("pair",), list(pairs.exact), "whether logit_diff has the pair's exact grid")
        )
    if pairs.spec.pairs == "free":
        roles = [roles_within(clean, corrupt, pairs.width) for clean, corrupt in prompts]
        coords.append(
            Coord("token_role_of_pair", ("pair", "token"), roles, "knowledge (differs), last, other")
        )
    return Group(
        path=pairs.path,
        sizes={
            "source": len(stages),
            "target": len(stages),
            "pair": len(prompts),
            "layer": len(layers),
            **({"head": heads} if job.site == "z" else {}),
            "token": pairs.width,
            "hidden": width,
        },
        arrays=tuple(arrays),
        coords=tuple(coords),
        attrs={
            "study": "knowledge",
            "method": job.method,
            "set": pairs.spec.name,
            "family": job.family.name,
            "site": job.site,
            "alignment": pairs.spec.pairs,
            "answer_tokens": list(job.answers),
            "seed": job.seed,
            "n_pairs": len(prompts),
            "n_pairs_available": pairs.aligned.available,
        },
    )
