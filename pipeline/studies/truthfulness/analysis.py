"""The units that need no model: directions, probes, accuracies and effects, from what the store holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from posttrace.figures.measures.intervals import wilson
from posttrace.figures.measures.interventions import intervention_effect
from posttrace.pipeline import interrupts
from posttrace.pipeline.errors import JobError
from posttrace.pipeline.finite import SAME
from posttrace.pipeline.studies.truthfulness.arrays import SUMMARY, direction_names
from posttrace.pipeline.studies.truthfulness.inputs import StatementInputs
from posttrace.pipeline.studies.truthfulness.job import TruthfulnessJob, topic
from posttrace.pipeline.studies.truthfulness.probes import (
    Layer,
    Probes,
    cosine,
    directions,
    fit,
    judged_true,
    layer_of,
)
from posttrace.pipeline.tensors import from_stored


def training_sets(sets: Mapping[str, StatementInputs], *left_out: str) -> list[str]:
    """Names of the sets whose topic is none of those left out.

    Examples
    --------
    >>> training_sets({"cities": None, "neg_cities": None, "facts": None}, "cities")
    ['facts']
    """
    topics = {topic(name) for name in left_out}
    return [name for name in sets if topic(name) not in topics]


def training_of(sets: Mapping[str, StatementInputs], *also: str) -> torch.Tensor:
    """Which sets train when each is left out (bool); dims held_out x set. also: further sets to leave out.

    Examples
    --------
    >>> training_of({"cities": None, "neg_cities": None, "facts": None})[2]
    tensor([ True,  True, False])
    """
    rows = [[one in training_sets(sets, name, *also) for one in sets] for name in sets]
    return torch.tensor(rows)


def fit_layers(
    job: TruthfulnessJob, sets: Mapping[str, StatementInputs], model: int, layers: tuple[int, int], store
) -> dict[str, np.ndarray]:
    """Directions and probes of a stage at some layers, without each of the sets in turn.

    Returns direction, centre, sweep_accuracy, probe_truth, probe_polarity and probe_bias of one model. The
    activations are read once, whatever the number of sets and probes.

    Examples
    --------
    >>> fit_layers(job, sets, 0, (0, 2), store)["direction"].shape    # doctest: +SKIP
    (1, 6, 2, 160)
    """
    training = training_of(sets)
    arrays: dict[str, list] = {name: [] for name in ("direction", "centre", "sweep_accuracy")}
    fitted: dict[str, list] = {name: [] for name in ("truth", "polarity", "bias")}
    for layer in read_layers(job, sets, model, layers, store):
        arrays["direction"].append(directions(layer, training))
        arrays["centre"].append(layer.centres(training))
        arrays["sweep_accuracy"].append(_within(layer, sets))
        probes = [fit(kind, layer, training) for kind in job.probes]
        for name, values in fitted.items():
            values.append(torch.stack([getattr(one, name) for one in probes]))
    found = {name: torch.stack(values, dim=1) for name, values in arrays.items()}  # held_out x layer ...
    found |= {f"probe_{name}": torch.stack(values, dim=2) for name, values in fitted.items()}
    lead = {name: (slice(None), None) if name.startswith("probe_") else (None,) for name in found}
    return {name: values[lead[name]].float().numpy() for name, values in found.items()}


def learn(
    job: TruthfulnessJob, sets: Mapping[str, StatementInputs], held_out: str, store
) -> dict[str, np.ndarray]:
    """Return the layers of interventions without one set, and how alike the stages' directions are.

    Returns cosine and probe_layer, with a `held_out` dim of one, and intervene_layer where it is given. The held-out
    set is not looked at.

    Examples
    --------
    >>> learn(job, sets, "cities", store)["cosine"].shape             # doctest: +SKIP
    (3, 3, 1, 8)
    """
    h, training = list(sets).index(held_out), training_sets(sets, held_out)
    here = {"held_out": (h, h + 1)}
    found, centres, accuracy = (
        store.read(SUMMARY, name, here)[:, 0].astype(np.float64)
        for name in ("direction", "centre", "sweep_accuracy")
    )
    first, last = job.layers_given
    if last is None:
        last = earliest_good(accuracy[0], sum(len(sets[name].statements) for name in training), first or 0)
    for stage, vector, centre in zip(job.stage_names, found[:, last], centres[:, last], strict=True):
        if not np.linalg.norm(vector) > SAME * np.linalg.norm(centre):
            raise JobError(
                f"held out {held_out}: stage {stage}: after block {last} the true and the false statements of "
                f"{', '.join(training)} are the same on average: there is no direction; look for statements that are "
                "labelled both true and false, or set another probe_layer"
            )
    with np.errstate(invalid="ignore"):  # at other layers there may be none
        cosines = cosine(found[:, None], found[None])[:, :, None]
    arrays = {"cosine": cosines.astype(np.float32), "probe_layer": np.array([last], dtype=np.int32)}
    return arrays if first is None else {**arrays, "intervene_layer": np.array([first], dtype=np.int32)}


def _within(layer: Layer, sets: Mapping[str, StatementInputs]) -> torch.Tensor:
    """Mean accuracy over the training sets of each problem, each left out in turn; NaN where they are of one topic."""
    names = list(sets)
    shares = torch.full((len(names), len(names)), torch.nan, dtype=torch.float64)
    for j, tested in enumerate(names):
        # Problem k learns without the topics of sets k and j, and is tested on set j.
        training = training_of(sets, tested)
        held_out = [k for k, name in enumerate(names) if topic(name) != topic(tested) and training[k].any()]
        if not held_out:
            continue
        judged = judged_true(fit("mass_mean", layer, training[held_out]), layer, j)
        right = judged == layer.truth[layer.of_set == j]
        shares[held_out, j] = right.double().mean(1)
    return shares.nanmean(1)


def earliest_good(accuracy: np.ndarray, n: int, begin: int = 0) -> int:
    """Return the first layer, from `begin`, whose accuracy is not distinguishably worse than the best one's.

    That is: within the best one's 95 % Wilson interval for n statements. Beyond that layer, which is best is chance.

    Examples
    --------
    >>> earliest_good(np.array([0.5, 0.96, 0.97]), n=500)
    1
    """
    best = np.nanmax(accuracy[begin:])
    low, _ = wilson(best, n)
    return begin + int(np.argmax(accuracy[begin:] >= min(low, best)))


def try_probes(
    job: TruthfulnessJob, sets: Mapping[str, StatementInputs], held_out: str, n_layers: int, store
) -> dict[str, np.ndarray]:
    """Test every probe that was trained without a set on that set, for every pair of stages.

    Returns correct; dims probe x source x target x statement x layer.

    Examples
    --------
    >>> try_probes(job, sets, "cities", 8, store)["correct"].shape   # doctest: +SKIP
    (3, 3, 3, 260, 8)
    """
    h = list(sets).index(held_out)
    here = {"held_out": (h, h + 1)}
    truth, polarity, bias = (
        torch.from_numpy(store.read(SUMMARY, f"probe_{name}", here)[:, :, 0]).double()
        for name in ("truth", "polarity", "bias")
    )  # probe x source x layer (x hidden)
    centres = torch.from_numpy(store.read(SUMMARY, "centre", here)[:, 0]).double()
    n_probes, n_stages = bias.shape[:2]
    one = {held_out: sets[held_out]}
    correct = np.zeros((n_probes, n_stages, n_stages, len(one[held_out].statements), n_layers), dtype=bool)
    for target in range(n_stages):
        for i, layer in enumerate(read_layers(job, one, target, (0, n_layers), store)):
            all_probes = Probes(
                truth[:, :, i].flatten(0, 1), polarity[:, :, i].flatten(0, 1), bias[:, :, i].flatten()
            )
            judged = judged_true(all_probes, layer, 0, centres[target, i].expand_as(all_probes.truth))
            right = (judged == layer.truth).unflatten(0, (n_probes, n_stages))
            correct[:, :, target, :, i] = right.numpy()
    return {"correct": correct}


def accuracies(inputs: StatementInputs, store) -> dict[str, np.ndarray]:
    """Share of the held-out statements that a probe gets right; dims probe x source x target x 1 x layer.

    Examples
    --------
    >>> accuracies(sets["cities"], store)["accuracy"].shape           # doctest: +SKIP
    (3, 3, 3, 1, 8)
    """
    correct = store.read(inputs.path, "correct")
    return {"accuracy": correct.mean(axis=3, dtype=np.float64)[:, :, :, None].astype(np.float32)}


def effects(job: TruthfulnessJob, inputs: StatementInputs, store) -> dict[str, np.ndarray]:
    """Effects of the interventions on one set; dims direction x target x 1.

    Examples
    --------
    >>> effects(job, sets["cities"], store)["effect"].shape           # doctest: +SKIP
    (24, 3, 1)
    """
    used = np.array(inputs.usable(0, len(inputs.statements)))
    truth = np.array(inputs.labels)[used]
    p_diff = store.read(inputs.path, "p_diff")[..., used]
    none = direction_names(job).index("none")
    arrays = dict(zip(("effect_false_to_true", "effect_true_to_false"), _effects(p_diff, p_diff[none], truth),
                      strict=True))  # fmt: skip
    arrays["effect"] = (arrays["effect_false_to_true"] + arrays["effect_true_to_false"]) / 2
    if job.coefficient_sweep:
        swept = store.read(inputs.path, "p_diff_coefficient")[..., used]
        both = [_effects(one, p_diff[none], truth) for one in swept]
        arrays["effect_coefficient"] = np.stack([(up + down) / 2 for up, down in both])
    return {name: values[..., None].astype(np.float32) for name, values in arrays.items()}


def _effects(p_diff: np.ndarray, before: np.ndarray, truth: np.ndarray) -> tuple:
    """Both effects; dims direction x target. p_diff: direction x target x statement; before: target x statement."""
    both = [intervention_effect(before[t], p_diff[:, t], truth) for t in range(len(before))]
    return tuple(np.stack(one, axis=1) for one in zip(*both, strict=True))


def read_layers(
    job: TruthfulnessJob, sets: Mapping[str, StatementInputs], model: int, layers: tuple[int, int], store
) -> Iterator[Layer]:
    """Layer by layer, the activations of some sets in one model.

    Examples
    --------
    >>> next(read_layers(job, sets, 0, (0, 8), store)).centred.shape   # doctest: +SKIP
    torch.Size([1480, 160])
    """
    region = {"model": (model, model + 1), "layer": layers}
    values = [from_stored(store.read(one.path, "activation", region)[0], job.dtype) for one in sets.values()]
    truths = [np.array(one.labels) for one in sets.values()]
    negated = [one.spec.name != topic(one.spec.name) for one in sets.values()]
    for i in range(layers[1] - layers[0]):
        interrupts.check()
        yield layer_of([one[:, i] for one in values], truths, negated)
