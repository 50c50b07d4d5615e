"""What the study `truthfulness` stores: the declaration of its groups (names that readers rely on)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from posttrace.pipeline.studies.truthfulness.inputs import StatementInputs
from posttrace.pipeline.studies.truthfulness.job import TruthfulnessJob, topic
from posttrace.stores import Array, Coord, Group

SUMMARY = "truthfulness"
"""Path of the group over all sets."""

SWEEP_RANDOM = 5
"""Random directions that the learned one is compared with when the first steered block is chosen."""


def direction_names(job: TruthfulnessJob) -> list[str]:
    """Return what a run was steered along: `none`, each stage's direction, and the random ones.

    Examples
    --------
    >>> direction_names(job)[:3]                                      # doctest: +SKIP
    ['none', 'base', 'sft']
    """
    return ["none", *job.stage_names, *(f"random-{i}" for i in range(job.random_directions))]


def shown_names(job: TruthfulnessJob) -> list[str]:
    """Those of `direction_names` after which sample completions are kept.

    Examples
    --------
    >>> shown_names(job)                                              # doctest: +SKIP
    ['none', 'base', 'sft', 'instruct', 'random-0']
    """
    return ["none", *job.stage_names, "random-0"]


def set_group(
    job: TruthfulnessJob, inputs: StatementInputs, shown: list[int], n_layers: int, hidden: int
) -> Group:
    """Return the group `truthfulness/<set>`: what was read and answered, per statement.

    Parameters
    ----------
    job
        With its dtype resolved.
    shown
        Numbers of the statements whose completions are kept.

    Examples
    --------
    >>> set_group(job, inputs, [3, 8], 8, 160).path                 # doctest: +SKIP
    'truthfulness/cities'
    """
    stages, block = list(job.stage_names), job.statements_per_unit
    names = direction_names(job)
    difference = f"probability difference: P({job.answers[0]}) - P({job.answers[1]}) at the last token"
    steered = (
        "steered along direction, learned without this set: false statements towards true, true ones towards "
        "false; none: as it is; NaN for statements that are examples"
    )
    arrays = [
        Array(
            "activation",
            ("model", "statement", "layer", "hidden"),
            job.dtype,
            "activation, model units",
            f"{job.read.site} of the bare statement's last token",
            {"model": 1, "statement": job.statements_per_read},
            "activation",
        ),
        Array(
            "correct",
            ("probe", "source", "target", "statement", "layer"),
            "bool",
            "whether the probe is right",
            "probe trained on source's activations of the other sets, tested on target's of this one",
        ),
        Array(
            "p_diff",
            ("direction", "target", "statement"),
            "float32",
            difference,
            f"{steered}; coefficient {job.coefficient:g}",
            {"target": 1, "statement": block},
        ),
    ]
    sizes = {
        "model": len(stages),
        "source": len(stages),
        "target": len(stages),
        "probe": len(job.probes),
        "direction": len(names),
        "statement": len(inputs.statements),
        "layer": n_layers,
        "hidden": hidden,
    }
    usable = set(inputs.usable(0, len(inputs.statements)))
    coords = [
        Coord("model", ("model",), stages, "stage that was read"),
        Coord("source", ("source",), stages, "stage that a probe was trained on"),
        Coord("target", ("target",), stages, "stage that a probe or a direction was tested on"),
        Coord("probe", ("probe",), list(job.probes), "kind of probe"),
        Coord("direction", ("direction",), names, "what the run was steered along"),
        Coord("statement", ("statement",), np.arange(len(inputs.statements)), "number of the statement"),
        Coord("layer", ("layer",), np.arange(n_layers), "block, from 0"),
        Coord("label", ("statement",), np.array(inputs.labels).astype(int), "1 true, 0 false"),
        Coord("text", ("statement",), [s.text for s in inputs.statements], "the statement"),
        Coord("prompt", ("statement",), [a.prompt.text if a else "" for a in inputs.asked[stages[0]]],
              "what is answered: the examples, then the statement; empty for an example"),
        Coord("example", ("statement",), [i not in usable for i in range(len(inputs.statements))],
              "whether the statement is one of the examples in front of the others"),
    ]  # fmt: skip
    if job.coefficient_sweep:
        sizes["coefficient"] = len(job.coefficient_sweep)
        arrays.append(
            Array(
                "p_diff_coefficient",
                ("coefficient", "direction", "target", "statement"),
                "float32",
                difference,
                f"{steered}; by coefficient",
                {"target": 1, "statement": block},
            )
        )
        coords.append(Coord("coefficient", ("coefficient",), np.array(job.coefficient_sweep), "factor"))
    if shown:
        sizes |= {"shown": len(shown_names(job)), "sample": len(shown)}
        arrays.append(
            Array(
                "completion",
                ("shown", "target", "sample"),
                "string",
                "text",
                f"greedy continuation of {job.completion_tokens} tokens, steered (shown) at the prompt's two tokens",
                {"target": 1},
            )
        )
        coords += [
            Coord("shown", ("shown",), shown_names(job), "what the run was steered along"),
            Coord("sample_statement", ("sample",), np.array(shown), "number of the statement"),
        ]
    return Group(
        path=inputs.path,
        sizes=sizes,
        arrays=tuple(arrays),
        coords=tuple(coords),
        attrs={
            "study": "truthfulness",
            "set": inputs.spec.name,
            "family": job.family.name,
            "read_site": job.read.site,
            "topic": topic(inputs.spec.name),
            "answer_tokens": list(job.answers),
            "suffix": job.suffix,
            "examples": list(inputs.examples),
            "coefficient": job.coefficient,
            "seed": job.seed,
            "n_statements": len(inputs.statements),
            "n_statements_available": inputs.available,
        },
    )


def summary_group(
    job: TruthfulnessJob,
    sets: Mapping[str, StatementInputs],
    n_layers: int,
    hidden: int,
    swept: bool,
    layers_at_once: int,
) -> Group:
    """Return the group `truthfulness`: directions, accuracies and effects, per set that was left out.

    Parameters
    ----------
    swept
        Whether the first steered block is chosen by trying interventions on the training sets.
    layers_at_once
        Layers of a unit of fits.

    Examples
    --------
    >>> summary_group(job, sets, 8, 160, swept=True, layers_at_once=8).path   # doctest: +SKIP
    'truthfulness'
    """
    stages, names = list(job.stage_names), direction_names(job)
    one, by_layer = {"held_out": 1}, {"model": 1, "layer": layers_at_once}
    learned = ("model", "held_out", "layer", "hidden")
    effects = ("direction", "target", "held_out")
    share = "share of the way to certainty"
    arrays = [
        Array("direction", learned, "float32", "activation, model units",
              "mean(h | true) - mean(h | false) over the other sets, each centred", by_layer),
        Array("centre", learned, "float32", "activation, model units", "mean over the other sets", by_layer),
        Array("probe_truth", ("probe", *learned), "float32", "per activation unit",
              "probe trained on the other sets: true where (h - mean of its set) @ probe_truth + (h - centre) @ "
              "probe_polarity + probe_bias > 0", by_layer),
        Array("probe_polarity", ("probe", *learned), "float32", "per activation unit",
              "zero where a probe looks at centred activations only", by_layer),
        Array("probe_bias", ("probe", *learned[:-1]), "float32", "no unit", "see probe_truth", by_layer),
        Array("cosine", ("source", "target", "held_out", "layer"), "float32", "cosine",
              "of the directions of two stages", one),
        Array("accuracy", ("probe", "source", "target", "held_out", "layer"), "float32", "share of statements",
              "probe trained on source's activations of the other sets, tested on target's of the held-out one", one),
        Array("sweep_accuracy", ("model", "held_out", "layer"), "float32", "share of statements",
              "mass-mean probe within the training sets: each of them left out in turn; mean over them", by_layer),
        Array("probe_layer", ("held_out",), "int32", "block", "whose direction is used, and the last one steered", one),
        Array("intervene_layer", ("held_out",), "int32", "block", "first one that is steered", one),
        Array("effect", effects, "float32", share, "mean of effect_false_to_true and effect_true_to_false", one),
        Array("effect_false_to_true", effects, "float32", share, "(~P- - P-) / (1 - P-) of the false statements", one),
        Array("effect_true_to_false", effects, "float32", share, "(~P+ - P+) / (-1 - P+) of the true statements", one),
    ]  # fmt: skip
    sizes = {
        "model": len(stages),
        "source": len(stages),
        "target": len(stages),
        "probe": len(job.probes),
        "direction": len(names),
        "held_out": len(sets),
        "layer": n_layers,
        "hidden": hidden,
    }
    coords = [
        Coord("model", ("model",), stages, "stage that the direction was learned on"),
        Coord("source", ("source",), stages, "stage that a probe or direction was learned on"),
        Coord("target", ("target",), stages, "stage that it was tested on"),
        Coord("probe", ("probe",), list(job.probes), "kind of probe"),
        Coord("direction_name", ("direction",), names, "what the run was steered along"),
        Coord("held_out", ("held_out",), list(sets), "set that was left out of the training"),
        Coord("layer", ("layer",), np.arange(n_layers), "block, from 0"),
        Coord("n_statements", ("held_out",), [len(p.statements) for p in sets.values()], "statements tested"),
        Coord("n_steered", ("held_out",), [len(p.usable(0, len(p.statements))) for p in sets.values()],
              "statements steered: those that are not examples"),
    ]  # fmt: skip
    if swept:
        tried = ("held_out", "layer")
        arrays += [
            Array("sweep_effect", tried, "float32", share,
                  f"effect on training statements in {stages[0]}, its own direction steered from layer to probe_layer",
                  one),
            Array("sweep_effect_random", tried, "float32", share,
                  f"the same with {SWEEP_RANDOM} random directions of the same norm, their mean", one),
            Array("sweep_effect_random_highest", tried, "float32", share, "the same, the highest of them", one),
        ]  # fmt: skip
    if job.coefficient_sweep:
        sizes["coefficient"] = len(job.coefficient_sweep)
        arrays.append(
            Array(
                "effect_coefficient",
                ("coefficient", *effects),
                "float32",
                share,
                "effect, by coefficient",
                one,
            )
        )
        coords.append(Coord("coefficient", ("coefficient",), np.array(job.coefficient_sweep), "factor"))
    return Group(
        path=SUMMARY,
        sizes=sizes,
        arrays=tuple(arrays),
        coords=tuple(coords),
        attrs={
            "study": "truthfulness",
            "family": job.family.name,
            "read_site": job.read.site,
            "coefficient": job.coefficient,
            "layers_chosen": "on the training sets" if None in job.layers_given else "given",
            **({"sweep_random_directions": SWEEP_RANDOM} if swept else {}),
            "negated_sets": [name for name in sets if name != topic(name)],
            "seed": job.seed,
        },
    )
