"""What a job comes to: the arrays that it will fill, and the units of work that fill them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any, Protocol

from posttrace.pipeline.job import Job
from posttrace.pipeline.spec import HERE
from posttrace.stores import Group, Unit
from posttrace.tracers.cost import Cost
from posttrace.tracers.models.loading import load_config
from posttrace.tracers.operations import canonical_hash

STUDIES: dict[str, str] = {
    "knowledge": "posttrace.pipeline.studies.knowledge.study:Knowledge",
    "truthfulness": "posttrace.pipeline.studies.truthfulness.study:Truthfulness",
    "confidence": "posttrace.pipeline.studies.confidence.study:Confidence",
    "refusal": "posttrace.pipeline.studies.refusal.study:Refusal",
    "trace": "posttrace.pipeline.studies.trace.study:Trace",
}
"""Study -> the class that plans and runs it (`module:class`, imported when used)."""

FORMAT = 1
"""Raised when the same job begins to give other arrays, so that an old store is not continued."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """One unit: what is done, with which stage's model, and after which others."""

    unit: Unit
    kind: str
    """What is done; a study has one method for each of its kinds."""
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


class Study(Protocol):
    """A job made concrete: every study offers this to the runner, which knows nothing else of it."""

    job: Job
    groups: tuple[Group, ...]
    work: tuple[Work, ...]
    """In the order that opens each model least often; what a unit needs comes before it."""
    content: Mapping[str, Any]
    """Identity of everything that was read to make the plan: models, statement files."""
    gaps: frozenset[str]
    """Arrays in which NaN says that there is no value; `run` checks that those there are finite, the caller does it for
    all others."""

    def run(self, work: Work, model, store) -> tuple[dict, dict]:
        """Do one unit: arrays by name, and what to note of it beside what it took (see pipeline.record)."""

    def cost(self, work: Work) -> Cost:
        """Forward passes and multiply-adds that a unit takes."""

    def summary(self) -> list[dict[str, Any]]:
        """A row per group, for people."""


def prepare(job: Job) -> Study:
    """The study that a job declares, its models' tokenizers and its statements read and checked.

    >>> prepare(load_job("knowledge")).summary()[0]["set"]     # doctest: +SKIP
    'cities'

    Raises JobError or TracerError for whatever in the job does not fit the models or the statements.
    """
    return resolve_name(STUDIES[job.study])(_as_on_the_server(job))


def _as_on_the_server(job: Job) -> Job:
    """`dtype: auto` on a server is the checkpoint's own, whatever this machine is."""
    if job.execution.backend != "remote" or job.dtype != "auto":
        return job
    first = job.family.stages[job.stage_names[0]]
    dtype = load_config(first.model, first.revision).dtype or "float32"
    return job.model_copy(update={"dtype": str(dtype).removeprefix("torch.")})


def declaration(study: Study) -> dict[str, Any]:
    """The job as the store keeps it: everything that bears on the results, with the content it was read from."""
    job = _portable(study.job.model_dump(mode="json", exclude={"execution"}))
    return {**job, "content": {**study.content, "format": FORMAT}}


def fingerprint(study: Study) -> str:
    """Hash of what bears on the results, however it is written down and wherever it is read from.

    >>> len(fingerprint(prepare(load_job("knowledge"))))       # doctest: +SKIP
    64
    """
    declared = declaration(study)
    declared["family"]["stages"] = declared["stages"] = list(study.job.stage_names)
    # A file counts by its content, which the study keeps the hash of, not by where it lies.
    for one in declared.get("sets", ()):
        del one["csv"]
    return canonical_hash(study.job.identity(declared))


def _portable(value):
    """Paths into this package, wherever it is installed, under one name."""
    if isinstance(value, dict):
        return {key: _portable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_portable(one) for one in value]
    return value.replace(f"{HERE}/", "posttrace:", 1) if isinstance(value, str) else value
