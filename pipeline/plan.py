"""From a job to its plan, and what makes two plans the same."""

from __future__ import annotations

from typing import Any

from posttrace.pipeline.job import Job
from posttrace.pipeline.spec import portable
from posttrace.pipeline.studies import study_class
from posttrace.pipeline.study import Study
from posttrace.tracers.models.loading import load_config
from posttrace.tracers.operations import canonical_hash

FORMAT = 2
"""Raised when the same job begins to give other arrays, so that an old store is not continued."""


def prepare(job: Job) -> Study:
    """Return the study that a job declares, its models' tokenizers and its statements read and checked.

    >>> prepare(load_job("knowledge")).summary()[0]["set"]     # doctest: +SKIP
    'cities'

    Raises JobError or TracerError for whatever in the job does not fit the models or the statements.
    """
    return study_class(job.study)(_as_on_the_server(job))


def _as_on_the_server(job: Job) -> Job:
    """`dtype: auto` on a server is the checkpoint's own, whatever this machine is."""
    if job.execution.backend != "remote" or job.dtype != "auto":
        return job
    first = job.family.stages[job.stage_names[0]]
    dtype = load_config(first.model, first.revision).dtype or "float32"
    return job.model_copy(update={"dtype": str(dtype).removeprefix("torch.")})


def declaration(study: Study) -> dict[str, Any]:
    """Return the job as the store keeps it: all that bears on the results, with the content it was read from."""
    job = portable(study.job.model_dump(mode="json", exclude={"execution"}))
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
        if one["like"] is None:
            del one["like"]
    return canonical_hash(study.job.identity(declared))
