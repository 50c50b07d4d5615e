"""The units that steer: which directions, over which blocks, at which tokens, and what the answers become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from posttrace.figures.measures.interventions import intervention_effect
from posttrace.pipeline.finite import check_finite
from posttrace.pipeline.spot_checks import checked, combined, drawn_for
from posttrace.pipeline.studies.truthfulness.analysis import training_sets
from posttrace.pipeline.studies.truthfulness.arrays import SUMMARY, SWEEP_RANDOM, direction_names, shown_names
from posttrace.pipeline.studies.truthfulness.inputs import StatementInputs
from posttrace.pipeline.studies.truthfulness.job import TruthfulnessJob
from posttrace.pipeline.studies.truthfulness.probes import random_direction
from posttrace.tracers.engines.edits import Edit, edit_of
from posttrace.tracers.engines.steered_answers import steered_answers
from posttrace.tracers.errors import TracerError
from posttrace.tracers.oracles.steered_answers import check_steered_answers, steered_completions


def steered_layers(sets: Mapping[str, StatementInputs], held_out: str, store) -> range:
    """Return the blocks that are steered when a set is left out.

    Examples
    --------
    >>> steered_layers(sets, "cities", store)                          # doctest: +SKIP
    range(3, 6)
    """
    here = _place(sets, held_out)
    first, last = (int(store.read(SUMMARY, name, here)[0]) for name in ("intervene_layer", "probe_layer"))
    return range(first, last + 1)


def vectors(
    job: TruthfulnessJob, sets: Mapping[str, StatementInputs], held_out: str, target: str, store
) -> dict[str, torch.Tensor]:
    """Direction -> what is added: each stage's direction at its probe layer, and random ones as long as the target's.

    The difference of the class means is the direction scaled to the class distance, so it is added as it is.

    Examples
    --------
    >>> list(vectors(job, sets, "cities", "sft", store))[:3]          # doctest: +SKIP
    ['base', 'sft', 'instruct']
    """
    here = _place(sets, held_out)
    layer = int(store.read(SUMMARY, "probe_layer", here)[0])
    learned = store.read(SUMMARY, "direction", {**here, "layer": (layer, layer + 1)})[:, 0, 0]
    found = dict(zip(job.stage_names, learned, strict=True))
    norm, hidden = float(np.linalg.norm(found[target].astype(np.float64))), learned.shape[-1]
    for i in range(job.random_directions):
        found[f"random-{i}"] = random_direction(job.seed, held_out, i, norm, hidden)
    return {name: torch.from_numpy(vector.astype(np.float32)) for name, vector in found.items()}


def steered(
    job: TruthfulnessJob, sets, held_out: str, target: str, span: tuple[int, int], model, store, unit: str
) -> tuple[dict[str, np.ndarray], dict]:
    """Answers of a block of statements after every edit: p_diff (and p_diff_coefficient), and what was checked.

    Examples
    --------
    >>> steered(job, sets, "cities", "sft", (0, 32), model, store, unit)[0]["p_diff"].shape       # doctest: +SKIP
    (24, 1, 32)
    """
    inputs, names = sets[held_out], direction_names(job)
    (begin, end), used = span, sets[held_out].usable(*span)
    factors = (job.coefficient, *job.coefficient_sweep)
    values = np.full((len(factors), len(names), 1, end - begin), np.nan, dtype=np.float32)
    record: dict = {}
    if used:
        added, layers = vectors(job, sets, held_out, target, store), steered_layers(sets, held_out, store)
        edits = [
            [
                _edit(job, inputs, i, target, name, added, layers, factor, model.n_layers)
                for factor in factors
                for name in names
            ]
            for i in used
        ]
        answers, record = _answers(job, inputs, used, target, edits, model, unit)
        rows = answers.numpy().reshape(len(used), len(factors), len(names))
        values[:, :, 0, [i - begin for i in used]] = rows.transpose(1, 2, 0)
    arrays = {"p_diff": values[0]}
    if job.coefficient_sweep:
        arrays["p_diff_coefficient"] = values[1:]
    return arrays, record


def completions(
    job: TruthfulnessJob, sets, held_out: str, target: str, shown: Sequence[int], model, store, tokenizer
) -> dict[str, np.ndarray]:
    r"""Return how a few prompts go on, before and after; dims shown x 1 x sample.

    Examples
    --------
    >>> completions(job, sets, "cities", "sft", [3, 8], model, store, tokenizer)["completion"]   # doctest: +SKIP
    array([[[' TRUE\nThe city', ...
    """
    inputs = sets[held_out]
    added, layers = vectors(job, sets, held_out, target, store), steered_layers(sets, held_out, store)
    edits = [
        [
            _edit(job, inputs, i, target, name, added, layers, job.coefficient, model.n_layers)
            for name in shown_names(job)
        ]
        for i in shown
    ]
    prompts = [inputs.asked[target][i].prompt for i in shown]
    ids = model.run(steered_completions, prompts, edits, n_tokens=job.completion_tokens)
    texts = np.empty((ids.shape[1], 1, ids.shape[0]), dtype=object)
    for i, variants in enumerate(ids.tolist()):
        for v, one in enumerate(variants):
            texts[v, 0, i] = tokenizer.decode(one, clean_up_tokenization_spaces=False)
    return {"completion": texts}


def choose_first_layer(
    job: TruthfulnessJob, sets: Mapping[str, StatementInputs], held_out: str, model, store, unit: str
) -> tuple[dict[str, np.ndarray], dict]:
    """Try every first block on some training statements, with the first stage's own direction and random ones.

    Chosen is the block from which the learned direction's effect is largest (the earliest of equals). The random ones
    play no part in the choice: they are stored to show how much of that effect any direction of that length has. The
    held-out set is not looked at.

    Examples
    --------
    >>> choose_first_layer(job, sets, "cities", model, store, unit)[0]["intervene_layer"]         # doctest: +SKIP
    array([3], dtype=int32)
    """
    target = job.stage_names[0]
    last = int(store.read(SUMMARY, "probe_layer", _place(sets, held_out))[0])
    added = vectors(job, sets, held_out, target, store)
    names = [target, *(f"random-{i}" for i in range(SWEEP_RANDOM))]
    answers, truth, records = [], [], []
    for name in training_sets(sets, held_out):
        inputs = sets[name]
        used = inputs.sample(job.sweep_statements, f"{job.seed}/{held_out}/{name}/sweep")
        edits = [
            [None, *(
                _edit(job, inputs, i, target, one, added, range(first, last + 1), job.coefficient, model.n_layers)
                for first in range(last + 1)
                for one in names
            )]
            for i in used
        ]  # fmt: skip
        some, record = _answers(job, inputs, used, target, edits, model, f"{unit}/{name}")
        answers.append(some)
        truth += [inputs.labels[i] for i in used]
        records.append(record)
    values = torch.cat(answers).numpy().T
    up, down = intervention_effect(values[0], values[1:], np.array(truth))
    found = ((up + down) / 2).reshape(last + 1, len(names))
    own, mean, highest = np.full((3, 1, model.n_layers), np.nan, dtype=np.float32)
    own[0, : last + 1] = found[:, 0]
    mean[0, : last + 1], highest[0, : last + 1] = found[:, 1:].mean(axis=1), found[:, 1:].max(axis=1)
    if not np.isfinite(own).any():
        raise TracerError(
            f"held out {held_out}: no direction has a defined effect on the training sets: the answers are certain; "
            "give intervene_layer"
        )
    arrays = {
        "sweep_effect": own,
        "sweep_effect_random": mean,
        "sweep_effect_random_highest": highest,
        "intervene_layer": np.array([np.nanargmax(own[0])], dtype=np.int32),
    }
    return arrays, combined(records)


def _edit(job, inputs, i, target, name, added, layers, factor, n_layers) -> Edit | None:
    """How one statement is steered along a named direction."""
    if name == "none":
        return None
    tokens = inputs.asked[target][i].tokens
    return edit_of(job.steer(name, layers, tokens, inputs.labels[i], factor), added[name], n_layers)


def _answers(job, inputs, used, target, edits, model, unit):
    """P(TRUE) - P(FALSE), dims statement x variant, a share of them recomputed by whole forward passes."""
    prompts = [inputs.asked[target][i].prompt for i in used]
    options = dict(answers=inputs.answers[target])
    found = model.run(steered_answers, prompts, edits, max_tokens=job.execution.max_tokens, **options)
    check_finite(unit, job.dtype, {"p_diff": found})
    if not job.execution.check_share:
        return found, {}
    drawn = drawn_for(job, unit)
    return found, checked(*model.run(check_steered_answers, prompts, edits, found, **drawn, **options))


def _place(sets: Mapping[str, StatementInputs], held_out: str) -> dict[str, tuple[int, int]]:
    h = list(sets).index(held_out)
    return {"held_out": (h, h + 1)}
