"""The units that need no model: directions, probes, accuracies and effects, from what the store holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from posttrace.figures.measures.intervals import wilson
from posttrace.figures.measures.interventions import intervention_effect
from posttrace.pipeline import interrupts
from posttrace.pipeline.errors import JobError
from posttrace.pipeline.finite import SAME
from posttrace.pipeline.studies.truthfulness.arrays import direction_names
from posttrace.pipeline.studies.truthfulness.inputs import StatementInputs
from posttrace.pipeline.studies.truthfulness.job import TruthfulnessJob, topic
from posttrace.pipeline.studies.truthfulness.probes import (
    Sample,
    centre_of,
    cosine,
    direction,
    fit,
    sample,
)
from posttrace.pipeline.tensors import from_stored

AT_ONCE = 2**26
"""Values that are read from the store at once: half a gigabyte as float64."""


def training_sets(sets: Mapping[str, StatementInputs], *left_out: str) -> list[str]:
    """Names of the sets whose topic is none of those left out.

    >>> training_sets({"cities": None, "neg_cities": None, "facts": None}, "cities")
    ['facts']
    """
    topics = {topic(name) for name in left_out}
    return [name for name in sets if topic(name) not in topics]


def learn(
    job: TruthfulnessJob, sets: Mapping[str, StatementInputs], held_out: str, n_layers: int, store
) -> dict[str, np.ndarray]:
    """Directions without one set, how alike the stages' are, and how well probes do within the training sets.

    >>> learn(job, sets, "cities", 8, store)["direction"].shape       # doctest: +SKIP
    (3, 1, 8, 160)

    Returns direction, cosine, sweep_accuracy and probe_layer, with a `held_out` dim of one, and intervene_layer where
    it is given. The held-out set is not looked at.
    """
    stages, training = job.stage_names, training_sets(sets, held_out)
    found, within, lengths = [], [], []
    for samples in read_layers(job, sets, training, n_layers, store):
        everything = [[samples[name][m] for name in training] for m in range(len(stages))]
        lengths.append([np.linalg.norm(centre_of(some)) for some in everything])
        found.append([direction(some) for some in everything])
        within.append([_within(samples, training, m) for m in range(len(stages))])
    directions = np.stack(found, axis=1)  # model x layer x hidden
    accuracy = np.array(within).T
    first, last = job.layers_given
    if last is None:
        last = earliest_good(accuracy[0], sum(len(sets[name].statements) for name in training), first or 0)
    for stage, vector, length in zip(stages, directions[:, last], lengths[last], strict=True):
        if not np.linalg.norm(vector) > SAME * length:
            raise JobError(
                f"held out {held_out}: stage {stage}: after block {last} the true and the false statements of "
                f"{', '.join(training)} are the same on average: there is no direction; look for statements that are "
                "labelled both true and false, or set another probe_layer"
            )
    with np.errstate(invalid="ignore"):  # at other layers there may be none
        cosines = cosine(directions[:, None], directions[None])[:, :, None]
    arrays = {
        "direction": directions.astype(np.float32)[:, None],
        "cosine": cosines.astype(np.float32),
        "sweep_accuracy": accuracy.astype(np.float32)[:, None],
        "probe_layer": np.array([last], dtype=np.int32),
    }
    return arrays if first is None else {**arrays, "intervene_layer": np.array([first], dtype=np.int32)}


def _within(samples: Mapping[str, list[Sample]], training: list[str], model: int) -> float:
    """Mean accuracy over the training sets, each left out in turn; NaN where they are of one topic."""
    shares = []
    for name in training:
        rest = [samples[other][model] for other in training if topic(other) != topic(name)]
        if rest:
            one = samples[name][model]
            judged = fit("mass_mean", rest).judges_true(one, one.mean)
            shares.append((judged == one.truth).mean())
    return float(np.mean(shares)) if shares else np.nan


def earliest_good(accuracy: np.ndarray, n: int, begin: int = 0) -> int:
    """The first layer, from `begin`, whose accuracy is not distinguishably worse than the best one's.

    >>> earliest_good(np.array([0.5, 0.96, 0.97]), n=500)
    1

    That is: within the best one's 95 % Wilson interval for n statements. Beyond that layer, which is best is chance.
    """
    best = np.nanmax(accuracy[begin:])
    low, _ = wilson(best, n)
    return begin + int(np.argmax(accuracy[begin:] >= min(low, best)))


def try_probes(
    job: TruthfulnessJob, sets: Mapping[str, StatementInputs], held_out: str, n_layers: int, store
) -> dict[str, np.ndarray]:
    """Train every probe on every stage without one set, and test it on every stage with that set.

    >>> try_probes(job, sets, "cities", 8, store)["correct"].shape   # doctest: +SKIP
    (3, 3, 3, 260, 8)

    Returns correct; dims probe x source x target x statement x layer.
    """
    stages, training = job.stage_names, training_sets(sets, held_out)
    truth = np.array(sets[held_out].labels)
    correct = np.zeros((len(job.probes), len(stages), len(stages), len(truth), n_layers), dtype=bool)
    every = read_layers(job, sets, [*training, held_out], n_layers, store)
    for layer, samples in enumerate(every):
        trained = [[samples[name][m] for name in training] for m in range(len(stages))]
        centres = [centre_of(some) for some in trained]
        for k, kind in enumerate(job.probes):
            for source in range(len(stages)):
                probe = fit(kind, trained[source])
                for target in range(len(stages)):
                    judged = probe.judges_true(samples[held_out][target], centres[target])
                    correct[k, source, target, :, layer] = judged == truth
    return {"correct": correct}


def accuracies(prepared: StatementInputs, store) -> dict[str, np.ndarray]:
    """Share of the held-out statements that a probe gets right; dims probe x source x target x 1 x layer.

    >>> accuracies(sets["cities"], store)["accuracy"].shape           # doctest: +SKIP
    (3, 3, 3, 1, 8)
    """
    correct = store.read(prepared.path, "correct")
    return {"accuracy": correct.mean(axis=3, dtype=np.float64)[:, :, :, None].astype(np.float32)}


def effects(job: TruthfulnessJob, prepared: StatementInputs, store) -> dict[str, np.ndarray]:
    """Effects of the interventions on one set; dims direction x target x 1.

    >>> effects(job, sets["cities"], store)["effect"].shape           # doctest: +SKIP
    (24, 3, 1)
    """
    used = np.array(prepared.usable(0, len(prepared.statements)))
    truth = np.array(prepared.labels)[used]
    p_diff = store.read(prepared.path, "p_diff")[..., used]
    none = direction_names(job).index("none")
    arrays = dict(zip(("effect_false_to_true", "effect_true_to_false"), _effects(p_diff, p_diff[none], truth),
                      strict=True))  # fmt: skip
    arrays["effect"] = (arrays["effect_false_to_true"] + arrays["effect_true_to_false"]) / 2
    if job.coefficient_sweep:
        swept = store.read(prepared.path, "p_diff_coefficient")[..., used]
        both = [_effects(one, p_diff[none], truth) for one in swept]
        arrays["effect_coefficient"] = np.stack([(up + down) / 2 for up, down in both])
    return {name: values[..., None].astype(np.float32) for name, values in arrays.items()}


def _effects(p_diff: np.ndarray, before: np.ndarray, truth: np.ndarray) -> tuple:
    """Both effects; dims direction x target. p_diff: direction x target x statement; before: target x statement."""
    both = [intervention_effect(before[t], p_diff[:, t], truth) for t in range(len(before))]
    return tuple(np.stack(one, axis=1) for one in zip(*both, strict=True))


def read_layers(
    job: TruthfulnessJob, sets: Mapping[str, StatementInputs], names: Sequence[str], n_layers: int, store
) -> Iterator[dict[str, list[Sample]]]:
    """Layer by layer, the activations of some sets: name -> one sample per stage.

    >>> next(read_layers(job, sets, ["cities"], 8, store))["cities"][0].centred.shape    # doctest: +SKIP
    (260, 160)

    As many layers are read at once as `AT_ONCE` values hold, since every read has a price of its own.
    """
    statements = sum(len(sets[name].statements) for name in names)
    step = max(
        1, AT_ONCE // (statements * len(job.stage_names) * store.groups[sets[names[0]].path].sizes["hidden"])
    )
    for begin in range(0, n_layers, step):
        end = min(begin + step, n_layers)
        some = {
            name: from_stored(store.read(sets[name].path, "activation", {"layer": (begin, end)}), job.dtype)
            for name in names
        }
        for layer in range(end - begin):
            interrupts.check()
            yield {name: _samples(sets[name], values[:, :, layer]) for name, values in some.items()}


def _samples(prepared: StatementInputs, values) -> list[Sample]:
    """A sample per stage; values: tensor, dims model x statement x hidden."""
    negated = prepared.spec.name != topic(prepared.spec.name)
    truth = np.array(prepared.labels)
    return [sample(one, truth, negated) for one in values.double().numpy()]
