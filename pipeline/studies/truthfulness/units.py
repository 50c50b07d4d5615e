"""The units of the study `truthfulness`: what each writes, with which stage's model, and which others it reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from posttrace.pipeline.plan import Work
from posttrace.pipeline.studies.truthfulness.analysis import training_sets
from posttrace.pipeline.studies.truthfulness.arrays import SUMMARY, direction_names, shown_names
from posttrace.pipeline.studies.truthfulness.inputs import PreparedSet
from posttrace.pipeline.studies.truthfulness.job import TruthfulnessJob
from posttrace.stores import Unit

LEARNED = ("direction", "cosine", "sweep_accuracy", "probe_layer")
TRIED = ("sweep_effect", "sweep_effect_random", "sweep_effect_random_highest", "intervene_layer")
EFFECTS = ("effect", "effect_false_to_true", "effect_true_to_false")
GAPS = frozenset(
    {"sweep_accuracy", *TRIED, *EFFECTS, "effect_coefficient", "p_diff", "p_diff_coefficient", "cosine"}
)
"""Arrays in which NaN says that there is no value: training sets of one topic, blocks that are not tried, answers that
were certain before, statements that are examples, stages and layers without a direction."""


def units(
    job: TruthfulnessJob,
    sets: Mapping[str, PreparedSet],
    shown: Mapping[str, Sequence[int]],
    tried: Mapping[str, int],
) -> Iterator[Work]:
    """Read every stage, the first one last, since it stays open; learn and probe; push, beginning with that one.

    >>> next(units(job, sets, shown, tried)).unit.id                  # doctest: +SKIP
    'truthfulness/cities/read/instruct/0000'

    shown: per set, numbers of the statements whose completions are kept. tried: per set that is left out, the pushes of
    the sweep for its first block.
    """
    stages, swept = job.stage_names, job.layers_given[0] is None
    read: dict[str, list[str]] = {name: [] for name in sets}
    for m, stage in reversed(list(enumerate(stages))):
        for name, prepared in sets.items():
            for begin, end in _blocks(prepared, job.statements_per_read):
                unit = f"{prepared.path}/read/{stage}/{begin:04d}"
                region = {"model": (m, m + 1), "statement": (begin, end)}
                declared = Unit(unit, prepared.path, region, ("activation",))
                yield _of_set("read", name, declared, stage, end - begin)
                read[name].append(unit)
    for name, prepared in sets.items():
        training = tuple(unit for one in training_sets(sets, name) for unit in read[one])
        arrays = LEARNED if swept else (*LEARNED, "intervene_layer")
        yield _summary(sets, "learn", name, arrays, None, len(prepared.statements), training)
    for name, prepared in sets.items():
        training = tuple(unit for one in training_sets(sets, name) for unit in read[one])
        declared = Unit(f"{prepared.path}/probe/0000", prepared.path, {}, ("correct",))
        yield _of_set("probe", name, declared, None, len(prepared.statements), (*training, *read[name]))
    for name, prepared in sets.items():
        needs = (f"{prepared.path}/probe/0000",)
        yield _summary(sets, "accuracy", name, ("accuracy",), None, len(prepared.statements), needs)
    chosen: dict[str, tuple[str, ...]] = {name: (f"{SUMMARY}/learn/{name}",) for name in sets}
    if swept:
        for name in sets:
            yield _summary(sets, "sweep", name, TRIED, stages[0], tried[name], chosen[name])
            chosen[name] += (f"{SUMMARY}/sweep/{name}",)
    pushed: dict[str, list[str]] = {name: [] for name in sets}
    by_coefficient = ("p_diff_coefficient",) if job.coefficient_sweep else ()
    for t, stage in enumerate(stages):
        for name, prepared in sets.items():
            for begin, end in _blocks(prepared, job.statements_per_unit):
                unit = f"{prepared.path}/steer/{stage}/{begin:04d}"
                region = {"target": (t, t + 1), "statement": (begin, end)}
                declared = Unit(unit, prepared.path, region, ("p_diff", *by_coefficient))
                cells = (end - begin) * variants_of(job)
                yield _of_set("steer", name, declared, stage, cells, chosen[name])
                pushed[name].append(unit)
            if shown[name]:
                unit = f"{prepared.path}/complete/{stage}"
                declared = Unit(unit, prepared.path, {"target": (t, t + 1)}, ("completion",))
                cells = len(shown[name]) * len(shown_names(job))
                yield _of_set("complete", name, declared, stage, cells, chosen[name])
    effects = (*EFFECTS, "effect_coefficient") if job.coefficient_sweep else EFFECTS
    for name, prepared in sets.items():
        yield _summary(sets, "effect", name, effects, None, len(prepared.statements), tuple(pushed[name]))


def variants_of(job: TruthfulnessJob) -> int:
    """Answers that are kept of each statement: one for every direction and coefficient.

    >>> variants_of(job)                                              # doctest: +SKIP
    24
    """
    return len(direction_names(job)) * (1 + len(job.coefficient_sweep))


def _summary(sets, kind: str, name: str, arrays, stage: str | None, cells: int, needs) -> Work:
    """A unit of one set that is left out, in the group over all sets."""
    h = list(sets).index(name)
    unit = Unit(f"{SUMMARY}/{kind}/{name}", SUMMARY, {"held_out": (h, h + 1)}, tuple(arrays))
    return _of_set(kind, name, unit, stage, cells, needs)


def _of_set(kind: str, name: str, unit: Unit, stage: str | None, cells: int, needs=()) -> Work:
    return Work(unit=unit, kind=kind, stage=stage, cells=cells, needs=tuple(needs), about={"set": name})


def _blocks(prepared: PreparedSet, block: int) -> list[tuple[int, int]]:
    n = len(prepared.statements)
    return [(begin, min(begin + block, n)) for begin in range(0, n, block)]
