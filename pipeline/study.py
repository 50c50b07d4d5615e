"""What every study is: its inputs, the arrays that it stores, its units of work, and a method for each kind of unit."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from posttrace.pipeline.chat import reads_clock
from posttrace.pipeline.errors import JobError
from posttrace.pipeline.job import Job
from posttrace.pipeline.spec import ChatJob
from posttrace.pipeline.stages import Stages, name_of
from posttrace.pipeline.statements import file_hash, repeated_rows
from posttrace.stores import Group, Unit
from posttrace.stores.schema import DTYPES
from posttrace.tracers.cost import Cost

TEXT = 40
"""Bytes of a text in a store, about."""
JobT = TypeVar("JobT", bound=Job)
InputsT = TypeVar("InputsT")
Result = tuple[dict[str, np.ndarray], dict[str, Any]]
"""What a unit gives: arrays by name, and what its record adds to what every unit's has (see pipeline.record)."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """One unit: what is done, with which stage's model, and after which others."""

    unit: Unit
    kind: str
    """What is done: the study's method `run_<kind>`."""
    stage: str | None
    """The stage whose model must be open. None: the unit reads only the store and files."""
    cells: int
    """Values of the patch grid (or prompts read, or rows computed) that the unit gives."""
    needs: tuple[str, ...] = ()
    """Ids of the units whose results it reads; they are in the store before it starts."""
    about: Mapping[str, str] = field(default_factory=dict, hash=False)
    """What else tells it from others of its kind: a set, a direction ..."""

    @property
    def open_stage(self) -> str:
        """The stage whose model is open, for a unit that needs one."""
        assert self.stage is not None, f"unit {self.unit.id} is done without a model"
        return self.stage


class Study(ABC, Generic[JobT, InputsT]):
    """A job made concrete: what it reads is read and checked, what it will do is planned.

    A study fills in `check`, `read_inputs`, `arrays`, `units`, `cost` and a method `run_<kind>` for each kind of unit;
    docs/add-a-study.md goes through them. Making one opens no model.

    Raises
    ------
    JobError or TracerError for whatever in the job does not fit the models or the files.
    """

    gaps: ClassVar[frozenset[str]] = frozenset()
    """Arrays in which NaN says that there is no value. All others must be finite, which is checked when a unit is
    done; for these the study checks the values that are there."""

    def __init__(self, job: JobT):
        self.stages = Stages(job)
        if job.execution.backend != "remote":
            self.stages.check_weights()
        self.check(job)
        self.job: JobT = job.model_copy(update=self.resolved(job))
        self.inputs: InputsT = self.read_inputs()
        self.groups = tuple(self.arrays())
        _check_names(self.groups)
        self.work = tuple(self.units())
        self.content: dict[str, Any] = {"models": self.stages.identities, **self.input_content()}
        """Identity of everything that was read to make the plan."""

    def check(self, job: JobT) -> None:
        """Raise JobError for what in the job does not fit its models; by default: stages of one size."""
        self.stages.check_one_size()

    def resolved(self, job: JobT) -> dict[str, Any]:
        """Keys of the job whose value is known now that the models are; by default the dtype."""
        return {"dtype": name_of(self.stages.dtype)}

    @abstractmethod
    def read_inputs(self) -> InputsT:
        """Read and tokenise what is run."""

    def input_content(self) -> dict[str, Any]:
        """Hashes of what was read, part of the fingerprint; by default of every statement set's file."""
        return {"sets": {spec.name: file_hash(spec.csv) for spec in getattr(self.job, "sets", ())}}

    def notes(self) -> Iterator[str]:
        """Yield what a user should know before a run, a line each: repeated rows, templates that read the clock."""
        job = self.job
        for spec in getattr(job, "sets", ()):
            if repeated := repeated_rows(spec):
                yield (
                    f"set {spec.name}: {repeated} rows repeat earlier ones and count again, so intervals come out too "
                    "narrow; take them out of the file"
                )
        if not isinstance(job, ChatJob) or job.date is not None:
            return
        for stage in self.chats():
            if reads_clock(self.stages.tokenizers[stage]):
                yield (
                    f"stage {stage}: its chat template writes the date of today: after midnight the job is another one "
                    'and its store cannot go on; pin it with `date: "YYYY-MM-DD"`'
                )

    def chats(self) -> Iterable[str]:
        """Stages whose prompts are written by their chat templates."""
        return ()

    @abstractmethod
    def arrays(self) -> Iterable[Group]:
        """Return the groups that are stored."""

    @abstractmethod
    def units(self) -> Iterator[Work]:
        """Yield the units in the order that opens each model least often; what a unit needs comes before it."""

    def run(self, work: Work, model, store) -> Result:
        """Do one unit; model: the open model of its stage, or None."""
        return getattr(self, f"run_{work.kind}")(work, model, store)

    @abstractmethod
    def cost(self, work: Work) -> Cost:
        """Forward passes and multiply-adds of a unit."""

    @cached_property
    def unit_sizes(self) -> dict[str, int]:
        """Unit id -> bytes of the arrays that it writes, before compression."""
        return {one.unit.id: size_of_unit(self.groups, one.unit) for one in self.work}

    def reads(self, work: Work) -> int:
        """Return the bytes that a unit holds of what others stored; by default all that the units it needs wrote."""
        return sum(self.unit_sizes[unit] for unit in work.needs)

    def summary(self) -> list[dict[str, Any]]:
        """Return a row for each part of the job, for people: what it has, and what it costs."""
        rows = []
        for facts, work in self.parts():
            cost = sum(map(self.cost, work), Cost())
            costs = {"forwards": cost.forwards, "multiply-adds": f"{cost.multiply_adds:.2e}"}
            rows.append({**facts, "units": len(work), **costs})
        return rows

    def parts(self) -> Iterator[tuple[dict[str, Any], list[Work]]]:
        """Yield the rows of the summary: facts and the units that they are about; by default group by group."""
        for group in self.groups:
            yield self.facts(group), [one for one in self.work if one.unit.group == group.path]

    def facts(self, group: Group) -> dict[str, Any]:
        """Return what the summary says of a group."""
        return {"group": group.path}


def make_work(
    kind: str,
    group: str,
    *names: str | int,
    region: Mapping[str, tuple[int, int]],
    arrays: Sequence[str],
    stage: str | None,
    cells: int,
    needs: Iterable[str] = (),
    **about: str,
) -> Work:
    """Return a unit that fills a region of some arrays of a group.

    >>> make_work("read", "toy", "base", 16, region={"pair": (16, 32)}, arrays=["a"], stage="base", cells=16).unit.id
    'toy/read/base/0016'

    Parameters
    ----------
    names: what tells its id from that of others of its kind; numbers are written with four digits.
    region: dimension -> (begin, end); a dimension that is left out is filled whole.
    about: kept in `Work.about`.
    """
    parts = [name if isinstance(name, str) else f"{name:04d}" for name in names]
    unit = Unit("/".join([group, kind, *parts]), group, dict(region), tuple(arrays))
    return Work(unit=unit, kind=kind, stage=stage, cells=cells, needs=tuple(needs), about=about)


def size_of_unit(groups: Sequence[Group], unit: Unit) -> int:
    """Return the bytes of the arrays that a unit writes, before compression.

    Examples
    --------
    >>> from posttrace.stores import Array
    >>> x = Array("x", ("pair",), "float32", "nats", "a number", {"pair": 2})
    >>> size_of_unit([Group("demo", {"pair": 4}, (x,))], Unit("demo/0", "demo", {"pair": (0, 2)}, ("x",)))
    8
    """
    group = next(one for one in groups if one.path == unit.group)
    total = 0
    for name in unit.arrays:
        window = group.window(name, {d: s for d, s in unit.region.items() if d in group.sizes}, unit.id)
        dtype = group.array(name).dtype
        each = TEXT if dtype == "string" else np.dtype(DTYPES[dtype][0]).itemsize
        total += math.prod(w.stop - w.start for w in window) * each
    return total


def blocks(n: int, size: int) -> list[tuple[int, int]]:
    """Ranges that cut n items into blocks.

    >>> blocks(5, 2)
    [(0, 2), (2, 4), (4, 5)]
    """
    return [(begin, min(begin + size, n)) for begin in range(0, n, size)]


def _check_names(groups: Sequence[Group]) -> None:
    """Raise JobError where a group lies in the store at the place of another one's array or coordinate."""
    taken = {f"{g.path}/{a.name}" for g in groups for a in g.arrays}
    taken |= {f"{g.path}/{c.name}" for g in groups for c in g.coords}
    for group in groups:
        if group.path in taken:
            name = group.path.rsplit("/", 1)[-1]
            raise JobError(
                f"set {name}: results of the study are stored under that name ({group.path}); rename the set: "
                f"{{name: my-{name}, csv: ...}}"
            )
