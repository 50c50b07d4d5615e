"""Recognise a job that is finished already, without importing torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrace.pipeline.errors import JobError
from posttrace.pipeline.job import Job
from posttrace.pipeline.statements import file_hash
from posttrace.stores import StoreError, summary
from posttrace.tracers.errors import TracerError
from posttrace.tracers.models.identity import model_identity
from posttrace.tracers.operations import canonical_hash


def asked(job: Job) -> str:
    """Hash of a job as it was asked for: its keys, its models and the content of every file that it names.

    Coarser than a fingerprint: two jobs with the same hash give the same results, others may do so as well.

    Raises
    ------
    TracerError
        A model that cannot be found.

    Examples
    --------
    >>> len(asked(load_job("knowledge")))                              # doctest: +SKIP
    64
    """
    declared = job.model_dump(mode="json")
    return canonical_hash(
        {
            "job": declared,
            "models": {
                name: model_identity(stage.model, stage.revision) for name, stage in job.family.stages.items()
            },
            "files": {path: file_hash(path) for path in sorted(set(_files(declared)))},
        }
    )


def finished(job: Job, url: str) -> int | None:
    """Return the number of units in a store that holds exactly this job, complete; None if it does not, or may not.

    Examples
    --------
    >>> finished(load_job("knowledge"), "runs/knowledge")              # doctest: +SKIP
    84
    """
    if any(getattr(one, "store", None) for one in getattr(job, "directions", {}).values()):
        return None  # what another store holds now is known only once it is read
    try:
        known = summary(url)
        if known["complete"] and known["provenance"].get("asked") == asked(job):
            return known["units"]["total"]
    except (JobError, StoreError, TracerError):  # the run itself says what is wrong
        pass
    return None


def _files(value: Any):
    """Every text in a job that names a file."""
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _files(one)
    elif isinstance(value, str) and "/" in value and len(value) < 4096 and Path(value).is_file():
        yield value
