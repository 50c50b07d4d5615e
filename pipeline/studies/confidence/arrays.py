"""What the study `confidence` stores: the declaration of its groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from posttrace.pipeline.studies.confidence.inputs import AskedSet
from posttrace.pipeline.studies.confidence.job import TEXT, ConfidenceJob
from posttrace.stores import Array, Coord, Group
from posttrace.tracers.models.mlp_neurons import Neurons

PATH = "confidence"
WEIGHTS = ("weight_norm", "logit_var", "candidate")
MEANS = ("activation_mean", "entropy", "loss", "n_tokens")
EFFECTS = ("entropy_total", "loss_total", "entropy_direct", "loss_direct")
ANSWERS = ("logit_diff", "answer_mass", "entropy")


def kinds(job: ConfidenceJob) -> list[str]:
    """Return what every ablation holds at its mean: all candidates, one of them, a random set, a random neuron.

    Examples
    --------
    >>> kinds(job)[:2]                                                # doctest: +SKIP
    ['candidates', 'candidate']
    """
    return [
        "candidates",
        *["candidate"] * job.candidates,
        *["random_set"] * job.controls,
        *["random_neuron"] * job.controls,
    ]


def neurons_group(job: ConfidenceJob, neurons: Neurons) -> Group:
    """Return the group `confidence`: what the weights say of every neuron (names that readers rely on)."""
    arrays = [
        Array(
            "weight_norm",
            ("model", "neuron"),
            "float64",
            "length, model units",
            "|w_out|, length of the neuron's output vector"
            + (", its mean over the hidden dimension taken out" if neurons.form.centres else ""),
            {"model": 1},
        ),
        Array(
            "logit_var",
            ("model", "neuron"),
            "float64",
            "variance of a cosine, no unit",
            "Var_v(cos(w_out, W_U[v])), final norm folded into W_U, mean over the vocabulary taken out, unbiased",
            {"model": 1},
        ),
        Array(
            "candidate",
            ("model", "rank"),
            "int32",
            "number of a neuron",
            f"the smallest logit_var first, of the top {job.top_share:.0%} by weight_norm",
            {"model": 1},
        ),
    ]
    coords = [
        _stages(job),
        Coord("neuron", ("neuron",), np.arange(neurons.n_neurons), "hidden unit of the MLP, from 0"),
        Coord("rank", ("rank",), np.arange(job.candidates), "rank by logit_var, from 0"),
    ]
    return Group(
        path=PATH,
        sizes={"model": len(job.stage_names), "neuron": neurons.n_neurons, "rank": job.candidates},
        arrays=tuple(arrays),
        coords=tuple(coords),
        attrs={**_attributes(job, "neurons"), "layer": neurons.layer, "top_share": job.top_share,
               "final_norm_centres": neurons.form.centres},
    )  # fmt: skip


def text_group(job: ConfidenceJob, neurons: Neurons, documents: Sequence[str]) -> Group:
    """Return the group `confidence/text`: entropy and loss on text, unablated and with neurons at their mean."""
    text = job.text
    assert text is not None, "a job without text has no documents"
    per_document, per_ablation = ("model", "document"), ("model", "ablation", "document")
    arrays = [
        Array(
            "activation_mean",
            ("model", "neuron"),
            "float32",
            "activation, model units",
            "mean over all scored tokens",
            {"model": 1},
        ),
        Array(
            "entropy",
            per_document,
            "float32",
            "nats",
            "entropy of the next token, mean over scored tokens, unablated",
            {"model": 1},
        ),
        Array(
            "loss",
            per_document,
            "float32",
            "nats",
            "-log P(next token), mean over scored tokens, unablated",
            {"model": 1},
        ),
        Array("n_tokens", per_document, "int64", "tokens", "scored tokens", {"model": 1}),
        Array(
            "ablated",
            ("model", "ablation", "member"),
            "int32",
            "number of a neuron, -1 for none",
            "neurons held at their mean activation",
            {"model": 1},
        ),
        *(
            Array(
                f"{what}_{how}",
                per_ablation,
                "float32",
                "nats",
                f"{words}, mean over scored tokens, with neurons at their mean activation{norm}",
                {"model": 1, "document": text.per_unit},
            )
            for how, norm in (
                ("total", ""),
                ("direct", ", the final norm's scale as in the unablated run"),
            )
            for what, words in (("entropy", "entropy of the next token"), ("loss", "-log P(next token)"))
        ),
    ]
    made = kinds(job)
    coords = [
        _stages(job),
        Coord("neuron", ("neuron",), np.arange(neurons.n_neurons), "hidden unit of the MLP, from 0"),
        Coord("ablation", ("ablation",), np.arange(len(made)), "number of the ablation"),
        Coord("kind", ("ablation",), made, "candidates (all), candidate (one), random_set, random_neuron"),
        Coord("document", ("document",), np.arange(len(documents)), "number of the document"),
        Coord(
            "document_text", ("document",), list(documents), "text, of which only the beginning may be run"
        ),
    ]
    return Group(
        path=f"{PATH}/{TEXT}",
        sizes={
            "model": len(job.stage_names),
            "neuron": neurons.n_neurons,
            "ablation": len(made),
            "member": job.candidates,
            "document": len(documents),
        },
        arrays=tuple(arrays),
        coords=tuple(coords),
        attrs={
            **_attributes(job, "text"),
            "layer": neurons.layer,
            "text": "embedded corpus" if text.file is None else "a file",
            "tokens_at_most": text.tokens,
        },
    )


def answers_group(job: ConfidenceJob, asked: AskedSet) -> Group:
    """Return the group `confidence/<set>`: how sure each stage is of each statement."""
    dims, block = ("model", "statement"), {"model": 1, "statement": job.statements_per_unit}
    first, second = job.answers
    arrays = [
        Array(
            "logit_diff",
            dims,
            "float32",
            f"logit difference, nats: logit({first}) - logit({second}) at the last token",
            f"P({first}) / (P({first}) + P({second})) is its sigmoid",
            block,
        ),
        Array("answer_mass", dims, "float32", "probability", f"P({first}) + P({second})", block),
        Array(
            "entropy", dims, "float32", "nats", "entropy of the next token over the whole vocabulary", block
        ),
    ]
    coords = [
        _stages(job),
        Coord("statement", ("statement",), np.arange(len(asked.statements)), "number of the statement"),
        Coord("label", ("statement",), [s.label for s in asked.statements], "whether the statement is true"),
        Coord("statement_text", ("statement",), [s.text for s in asked.statements], "the statement"),
        Coord(
            "prompt",
            ("statement",),
            [p.text for p in asked.prompts[job.stage_names[0]]],
            "what was asked, examples included",
        ),
    ]
    return Group(
        path=asked.path,
        sizes={"model": len(job.stage_names), "statement": len(asked.statements)},
        arrays=tuple(arrays),
        coords=tuple(coords),
        attrs={
            **_attributes(job, "answers"),
            "set": asked.spec.name,
            "answer_tokens": list(job.answers),
            "few_shot": job.few_shot,
        },
    )


def _attributes(job: ConfidenceJob, part: str) -> dict:
    return {"study": "confidence", "part": part, "family": job.family.name, "seed": job.seed}


def _stages(job: ConfidenceJob) -> Coord:
    return Coord("model", ("model",), list(job.stage_names), "stage")
