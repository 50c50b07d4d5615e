"""What the study `difference` stores: the declaration of its groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from posttrace.pipeline.studies.difference.inputs import SLOTS, TextSet
from posttrace.pipeline.studies.difference.job import DifferenceJob
from posttrace.pipeline.studies.difference.measures import RANK
from posttrace.pipeline.studies.difference.patchscope import DRAWN
from posttrace.pipeline.tensors import filled
from posttrace.stores import Array, Coord, Group
from posttrace.stores.schema import DTYPES

MEASURES = ("occurring", "kl_by_token")
PREDICTORS = ("identity", "shift", "linear")
COMPONENTS, SHOWN, EXTREME, LENS = 32, 3, 5, 10
"""Principal components stored, those with contexts and lens, contexts at each of their ends, tokens of a lens."""
TOPICS = 6
"""Groups of tokens that rise together."""

TOKENS = ("stream", "final", "entropy", "loss", "norm")
READ = (*TOKENS, "hidden_sum", "sampled_activation")
COMPARED = ("kl", "js", "norm_difference", "cosine", "token_sum", "slot_count", "squared_difference_sum",
            "rounding_sum", "rise_token", "rise_logprob")  # fmt: skip
ANALYSED = ("cka", "r2", "variance_share", "variance_null", "participation", "n_above_null", "mean_share",
            "extreme_sample", "component_token", "component_z", "shared", "lens_token", "lens_z",
            "lens_bound", "topic_share", "topic_token", "topic_weight", "topic_sample")  # fmt: skip
PATCHED = ("known_rank", "patchscope_token", "patchscope_logprob", "random_token")
STEERED = ("recovered", "js_steered", "js_unsteered", "completion")
GAPS = frozenset(
    {*TOKENS, "kl", "js", "norm_difference", "cosine", "cka", "r2", "variance_share", "variance_null", "participation",
     "mean_share", "component_z", "topic_share", "topic_weight", "shared", "lens_z", "recovered", "js_steered",
     "js_unsteered", "patchscope_logprob"}
)  # fmt: skip
"""Arrays with places where there is no value: padding, the end of a document, slots without tokens, no difference."""

APPROXIMATE = ("norm_difference", "cosine", "squared_difference_sum", "shared")
"""What a projection of the streams makes approximate; everything else is exact, locally and on a server."""


def directions(job: DifferenceJob) -> list[str]:
    """Return what is added to the stream of a source.

    >>> directions(job)[:4]                                           # doctest: +SKIP
    ['mean', 'other', 'control', 'random-0']
    """
    assert job.steering is not None, "the job steers"
    return ["mean", "other", "control", *(f"random-{i}" for i in range(job.steering.random))]


def completed(job: DifferenceJob) -> list[str]:
    """Directions whose completions are stored; `none` is the unsteered source."""
    return ["none", "mean", *(["control"] if job.control else []), "random-0"]


def blank(group: Group, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return whole arrays of a group, by name, that hold no value yet.

    >>> blank(group, ANALYSED)["cka"].shape                           # doctest: +SKIP
    (6, 8)
    """
    dtypes = {name: group.array(name).dtype for name in names}
    return {name: np.full(group.shape(name), DTYPES[dtype][1], dtype) for name, dtype in dtypes.items()}


def difference_group(
    job: DifferenceJob,
    one: TextSet,
    *,
    n_layers: int,
    hidden: int,
    vocabulary: Sequence[str],
    sampled: Sequence[int],
    steered: Sequence[int],
    known: Sequence[int],
    stream_dtype: str,
    labels: Sequence[Sequence[str]],
) -> Group:
    """Return the group `difference/<set>`.

    vocabulary: text of every token that stages share. sampled, steered: blocks. known: samples of the patchscope.
    labels: text of every place.
    """
    document = {"document": one.units[0][1]}
    token, layered = ("model", "document", "token"), ("model", "document", "layer", "token")
    in_pair, pair_layer = ("pair", "document", "token"), ("pair", "document", "layer", "token")
    stage, block = {"model": 1}, {"model": 1, **document}
    samples = {"sample": one.samples_per_unit}
    n_components = min(COMPONENTS, hidden, len(one.samples) - 1)
    per_component = ("pair", "sampled_layer", "component")
    shown = ("pair", "sampled_layer", "shown", "end")
    about = (
        ""
        if job.projection is None
        else f"; approximate, of streams projected to {job.projection} dimensions"
    )
    arrays = [
        Array("stream", (*layered, "kept"), stream_dtype, "activation, model units",
              "resid_post of every token" + ("" if job.projection is None else ", projected at random"), block, "activation"),  # noqa: E501
        Array("final", (*token, "hidden"), job.dtype, "activation, model units", "what enters the unembedding", block),
        Array("entropy", token, "float32", "nats", "entropy of the next token's distribution", block),
        Array("loss", token, "float32", "nats", "-log P(next token)", block),
        Array("norm", layered, "float16", "length, model units", "|resid_post|", block),
        Array("hidden_sum", ("model", "unit", "layer", "slot", "hidden"), "float32", "activation, model units",
              "sum of resid_post over the slot's tokens of the unit", {"model": 1, "unit": 1}),
        Array("sampled_activation", ("model", "sample", "sampled_layer", "hidden"), job.dtype,
              "activation, model units", "resid_post of the samples", {**stage, **samples}),
        Array("kl", in_pair, "float32", "nats", "KL(target || source) of the next token's distributions", document),
        Array("js", in_pair, "float32", "nats", "Jensen-Shannon divergence of the two, at most ln 2", document),
        Array("norm_difference", pair_layer, "float16", "length, model units", "|target - source|" + about, document),
        Array("cosine", pair_layer, "float16", "cosine", "of resid_post of target and source" + about, document),
        Array("token_sum", ("pair", "unit", "measure", "vocabulary"), "float32", "tokens; nats",
              "sums over the unit's tokens: occurring, how often a token is among the 20 that rise most; kl_by_token, "
              "q log(q / p), whose sum over the vocabulary is KL", {"unit": 1}),
        Array("slot_count", ("unit", "slot"), "int64", "tokens", "tokens in each slot", {"unit": 1}),
        Array("squared_difference_sum", ("pair", "unit", "layer", "slot"), "float32", "squared model units",
              "sum of |resid_post target - source|²" + about, {"unit": 1}),
        Array("rounding_sum", ("model", "unit", "layer", "slot"), "float32", "squared model units",
              "sum of the mean squared error that the stream's 16 bits make", {"unit": 1}),
        Array("rise_token", ("pair", "sample", "rank"), "int32", "token id", "tokens that rise most", samples),
        Array("rise_logprob", ("pair", "sample", "rank"), "float32", "nats", "log q - log p of those", samples),
        Array("cka", ("pair", "sampled_layer"), "float32", "0 to 1", "linear CKA of the samples"),
        Array("r2", ("pair", "predictor", "sampled_layer"), "float32", "R²",
              "of the target's resid_post on held-out documents, predicted from the source's"),
        Array("variance_share", per_component, "float32", "share", "of the variance of target - source, PCA"),
        Array("variance_null", per_component, "float32", "share", "95th percentile with columns shuffled"),
        Array("participation", ("pair", "sampled_layer"), "float32", "components", "participation ratio"),
        Array("n_above_null", ("pair", "sampled_layer"), "int32", "components", "leading ones above the null"),
        Array("mean_share", ("pair", "sampled_layer"), "float32", "share", "|mean difference|² / mean |difference|²"),
        Array("extreme_sample", (*shown, "extreme"), "int32", "sample", "samples with extreme scores"),
        Array("component_token", (*shown, "lens_rank"), "int32", "token id", "what a component points to"),
        Array("component_z", (*shown, "lens_rank"), "float32", "z", "cosine with the unembedding's row, times √hidden"),
        Array("shared", ("pair", "layer", "slot"), "float32", "share",
              "<mean difference of even units, of odd units> / mean |difference|²" + about),
        Array("lens_token", ("pair", "layer", "slot", "lens_rank"), "int32", "token id",
              "what the mean difference points to"),
        Array("lens_z", ("pair", "layer", "slot", "lens_rank"), "float32", "z",
              "cosine with the target's unembedding row, times √hidden"),
        Array("lens_bound", ("pair",), "float32", "z", "95 % of 200 random directions have no z above it"),
        Array("topic_share", ("pair", "topic"), "float32", "share", "of what all topics (NMF) add to the rises"),
        Array("topic_token", ("pair", "topic", "lens_rank"), "int32", "token id", "tokens of a topic"),
        Array("topic_weight", ("pair", "topic", "lens_rank"), "float32", "share", "of a topic that a token has"),
        Array("topic_sample", ("pair", "topic", "extreme"), "int32", "sample", "samples in which a topic weighs most"),
    ]  # fmt: skip
    pairs = [f"{source}→{target}" for source, target in job.pairs]
    width = one.width
    sizes = {
        "model": len(job.stage_names), "pair": len(pairs), "document": len(one.documents), "token": width,
        "layer": n_layers, "hidden": hidden, "kept": job.projection or hidden, "unit": len(one.units),
        "slot": len(SLOTS), "measure": len(MEASURES), "vocabulary": len(vocabulary), "sample": len(one.samples),
        "rank": min(RANK, len(vocabulary)), "sampled_layer": len(sampled), "predictor": len(PREDICTORS),
        "component": n_components, "shown": min(SHOWN, n_components), "end": 2, "extreme": EXTREME, "lens_rank": LENS,
        "topic": min(TOPICS, len(one.samples), len(vocabulary)),
    }  # fmt: skip
    ids = np.full((len(one.documents), width), -1)
    for row, doc in zip(ids, one.documents, strict=True):
        row[: len(doc)] = [doc.ids[job.stage_names[0]][i] for i in doc.places[job.stage_names[0]]]
    coords = [
        Coord("model", ("model",), list(job.stage_names), "stage"),
        Coord("pair", ("pair",), pairs, "source→target"),
        Coord("pair_source", ("pair",), [source for source, _ in job.pairs], "stage"),
        Coord("pair_target", ("pair",), [target for _, target in job.pairs], "stage"),
        Coord("layer", ("layer",), np.arange(n_layers), "block, from 0"),
        Coord("sampled_layer", ("sampled_layer",), np.array(sampled), "block, from 0"),
        Coord("slot", ("slot",), list(SLOTS), "tokens of which a mean is taken"),
        Coord("measure", ("measure",), list(MEASURES), "ordering of tokens"),
        Coord("predictor", ("predictor",), list(PREDICTORS), "of the target's stream from the source's"),
        Coord("end", ("end",), ["low", "high"], "end of a component"),
        Coord("vocabulary_text", ("vocabulary",), list(vocabulary), "text of a token"),
        Coord("document_text", ("document",), [d.text for d in one.documents], "of which the beginning is run"),
        Coord("n_tokens", ("document",), np.array([len(d) for d in one.documents]), "places"),
        Coord("token_id", ("document", "token"), ids, f"for stage {job.stage_names[0]}; -1: no token"),
        Coord("token_text", ("document", "token"), [filled(row, width, "") for row in labels], "text of a place"),
        Coord("token_role", ("document", "token"), [filled(d.roles, width, "") for d in one.documents],
              "begin, template, user, answer or text"),
        Coord("unit_end", ("unit",), np.array([end for _, end in one.units]), "document after the unit's last"),
        Coord("held_out", ("unit",), np.arange(len(one.units)) >= one.n_train, "left out of learned maps and means"),
        Coord("sample_document", ("sample",), np.array([d for d, _ in one.samples]), "document of a sample"),
        Coord("sample_token", ("sample",), np.array([p for _, p in one.samples]), "place of a sample"),
    ]  # fmt: skip
    if job.steering is not None:
        some = range(*one.held_out)[: job.steering.documents]
        first = one.documents[one.prompts[0][0]].places[job.stage_names[0]]
        assert first, "a document has places"
        dims = ("pair", "direction", "coefficient", "steered_layer", "steered_document")
        one_pair = {"pair": 1}
        arrays += [
            Array("recovered", dims, "float32", "share", "1 - JS(target, steered) / JS(target, source)", one_pair),
            Array("js_steered", dims, "float32", "nats", "JS(target, steered source), mean over tokens", one_pair),
            Array("js_unsteered", ("pair", "steered_document"), "float32", "nats", "JS(target, source), mean over tokens", one_pair),  # noqa: E501
            Array("completion", ("pair", "completed", "coefficient", "steered_layer", "prompt"), "string", "text",
                  "greedy continuation by the source, steered", one_pair),
        ]  # fmt: skip
        names = directions(job)
        sizes |= {
            "direction": len(names), "coefficient": len(job.steering.coefficients), "steered_layer": len(steered),
            "steered_document": len(some), "completed": len(completed(job)), "prompt": len(one.prompts),
        }  # fmt: skip
        coords += [
            Coord("direction", ("direction",), names, "what is added to the source's stream"),
            Coord("coefficient", ("coefficient",), list(map(float, job.steering.coefficients)), "times it"),
            Coord("steered_layer", ("steered_layer",), np.array(steered), "block after which it is added"),
            Coord("steered_document", ("steered_document",), np.array(some), "held-out document"),
            Coord("completed", ("completed",), completed(job), "what is added; none: nothing"),
            Coord("prompt_document", ("prompt",), np.array([d for d, _ in one.prompts]), "held-out document"),
            Coord("prompt_tokens", ("prompt",), np.array([n for _, n in one.prompts]), "of which so many tokens"),
        ]  # fmt: skip
    if job.patchscope is not None:
        read = ("model", "source", "sampled_layer", "slot", "lens_rank")
        arrays += [
            Array("known_rank", ("model", "sampled_layer", "known"), "int32", "place",
                  "of a known token among the ten most probable ones after the patchscope's prompt, the token's own "
                  "stream in it; 0: not among them", {"model": 1}),
            Array("patchscope_token", read, "int32", "token id",
                  "most probable ones, the mean difference of a source and this stage in the prompt, as long as "
                  "the known tokens' streams; -1: not readable there", {"model": 1}),
            Array("patchscope_logprob", read, "float32", "nats", "log probabilities of those", {"model": 1}),
            Array("random_token", ("model", "sampled_layer", "drawn", "lens_rank"), "int32", "token id",
                  "the same for random directions of that length", {"model": 1}),
        ]  # fmt: skip
        sizes |= {"source": len(job.stage_names), "known": len(known), "drawn": DRAWN}
        coords += [
            Coord("source", ("source",), list(job.stage_names), "stage that the difference is from"),
            Coord("known_sample", ("known",), np.array(known), "sample"),
        ]
    return Group(
        path=one.path,
        sizes=sizes,
        arrays=tuple(arrays),
        coords=tuple(coords),
        attrs={
            "study": "difference",
            "family": job.family.name,
            "set": one.spec.name,
            "seed": job.seed,
            "render": job.render,
            "control": list(job.control) if job.control else [],
            "projection": job.projection or 0,
            "approximate": list(APPROXIMATE) if job.projection else [],
        },
    )
