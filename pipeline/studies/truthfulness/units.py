"""The units of the study `truthfulness`: what each writes, with which stage's model, and which others it reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from posttrace.pipeline.studies.truthfulness.arrays import SUMMARY, direction_names, shown_names
from posttrace.pipeline.studies.truthfulness.inputs import StatementInputs
from posttrace.pipeline.studies.truthfulness.job import TruthfulnessJob
from posttrace.pipeline.study import Work, blocks, make_work

FITTED = ("direction", "centre", "sweep_accuracy", "probe_truth", "probe_polarity", "probe_bias")
LEARNED = ("cosine", "probe_layer")
AT_ONCE = 2**27
"""Activations that a unit of fits reads: half a gigabyte as float32."""
TRIED = ("sweep_effect", "sweep_effect_random", "sweep_effect_random_highest", "intervene_layer")
EFFECTS = ("effect", "effect_false_to_true", "effect_true_to_false")
GAPS = frozenset(
    {"sweep_accuracy", *TRIED, *EFFECTS, "effect_coefficient", "p_diff", "p_diff_coefficient", "cosine"}
)
"""Arrays in which NaN says that there is no value: training sets of one topic, blocks that are not tried, answers that
were certain before, statements that are examples, stages and layers without a direction."""


def planned(
    job: TruthfulnessJob,
    sets: Mapping[str, StatementInputs],
    shown: Mapping[str, Sequence[int]],
    tried: Mapping[str, int],
    shape: tuple[int, int],
) -> Iterator[Work]:
    """Read every stage, the first one last, since it stays open; learn and probe; steer, beginning with that one.

    Parameters
    ----------
    shown
        Per set, numbers of the statements whose completions are kept.
    tried
        Per set that is left out, the runs of the sweep for its first block.
    shape
        Blocks of the models, and their hidden size.

    Examples
    --------
    >>> next(planned(job, sets, shown, tried, (8, 160))).unit.id                  # doctest: +SKIP
    'truthfulness/cities/read/instruct/0000'
    """
    stages, swept = job.stage_names, job.layers_given[0] is None
    read: dict[str, list[str]] = {name: [] for name in sets}
    read_by: dict[str, list[str]] = {stage: [] for stage in stages}
    for m, stage in reversed(list(enumerate(stages))):
        for name, one in sets.items():
            for begin, end in blocks(len(one.statements), job.statements_per_read):
                region = {"model": (m, m + 1), "statement": (begin, end)}
                work = _of_set(
                    "read",
                    one,
                    stage,
                    begin,
                    region=region,
                    arrays=["activation"],
                    stage=stage,
                    cells=end - begin,
                )
                yield work
                read[name].append(work.unit.id)
                read_by[stage].append(work.unit.id)
    fitted: list[str] = []
    for m, stage in reversed(list(enumerate(stages))):
        for layers in layer_blocks(sets, shape):
            region = {"model": (m, m + 1), "layer": layers}
            cells = sum(len(one.statements) for one in sets.values()) * (layers[1] - layers[0])
            work = make_work(
                "fit",
                SUMMARY,
                stage,
                layers[0],
                region=region,
                arrays=FITTED,
                stage=None,
                cells=cells,
                needs=read_by[stage],
                set="",
            )
            yield work
            fitted.append(work.unit.id)
    learned = LEARNED if swept else (*LEARNED, "intervene_layer")
    for name in sets:
        yield _held_out("learn", sets, name, arrays=learned, needs=fitted)
    for name, one in sets.items():
        yield _of_set(
            "probe",
            one,
            region={},
            arrays=["correct"],
            stage=None,
            cells=len(one.statements),
            needs=[*fitted, *read[name]],
        )
    for name, one in sets.items():
        yield _held_out("accuracy", sets, name, arrays=["accuracy"], needs=[f"{one.path}/probe"])
    chosen: dict[str, list[str]] = {name: [*fitted, f"{SUMMARY}/learn/{name}"] for name in sets}
    if swept:
        for name in sets:
            yield _held_out(
                "sweep", sets, name, arrays=TRIED, stage=stages[0], cells=tried[name], needs=chosen[name]
            )
            chosen[name] = [*chosen[name], f"{SUMMARY}/sweep/{name}"]
    steered: dict[str, list[str]] = {name: [] for name in sets}
    by_coefficient = ("p_diff_coefficient",) if job.coefficient_sweep else ()
    for t, stage in enumerate(stages):
        for name, one in sets.items():
            for begin, end in blocks(len(one.statements), job.statements_per_unit):
                work = _of_set(
                    "steer",
                    one,
                    stage,
                    begin,
                    region={"target": (t, t + 1), "statement": (begin, end)},
                    arrays=("p_diff", *by_coefficient),
                    stage=stage,
                    cells=(end - begin) * variants_of(job),
                    needs=chosen[name],
                )
                yield work
                steered[name].append(work.unit.id)
            if shown[name]:
                yield _of_set(
                    "complete",
                    one,
                    stage,
                    region={"target": (t, t + 1)},
                    arrays=["completion"],
                    stage=stage,
                    cells=len(shown[name]) * len(shown_names(job)),
                    needs=chosen[name],
                )
    effects = (*EFFECTS, "effect_coefficient") if job.coefficient_sweep else EFFECTS
    for name in sets:
        yield _held_out("effect", sets, name, arrays=effects, needs=steered[name])


def layer_blocks(sets: Mapping[str, StatementInputs], shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the layers of each unit of fits. shape: blocks of the models, and their hidden size.

    Examples
    --------
    >>> layer_blocks(sets, (8, 160))                                   # doctest: +SKIP
    [(0, 8)]
    """
    n_layers, hidden = shape
    statements = sum(len(one.statements) for one in sets.values())
    return blocks(n_layers, max(1, AT_ONCE // (statements * hidden)))


def variants_of(job: TruthfulnessJob) -> int:
    """Answers that are kept of each statement: one for every direction and coefficient.

    Examples
    --------
    >>> variants_of(job)                                              # doctest: +SKIP
    24
    """
    return len(direction_names(job)) * (1 + len(job.coefficient_sweep))


def _of_set(kind: str, one: StatementInputs, *names: str | int, **declared) -> Work:
    """Return a unit in the group of one set."""
    return make_work(kind, one.path, *names, **declared, set=one.spec.name)


def _held_out(
    kind: str, sets: Mapping[str, StatementInputs], name: str, *, stage=None, cells=None, **declared
) -> Work:
    """Return a unit of one set that is left out, in the group over all sets."""
    h = list(sets).index(name)
    cells = len(sets[name].statements) if cells is None else cells
    region = {"held_out": (h, h + 1)}
    return make_work(kind, SUMMARY, name, region=region, stage=stage, cells=cells, **declared, set=name)
