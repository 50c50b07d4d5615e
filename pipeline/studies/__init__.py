"""One folder for each study: what a job declares, reads, stores and does (docs/add-a-study.md)."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any

STUDIES: dict[str, str] = {
    "knowledge": "posttrace.pipeline.studies.knowledge",
    "truthfulness": "posttrace.pipeline.studies.truthfulness",
    "confidence": "posttrace.pipeline.studies.confidence",
    "refusal": "posttrace.pipeline.studies.refusal",
    "difference": "posttrace.pipeline.studies.difference",
    "trace": "posttrace.pipeline.studies.trace",
    "stages": "posttrace.pipeline.studies.stages",
}
"""Study -> its package, which has a `job.py` and a `study.py`; they are imported when used."""


def job_class(study: str) -> Any:
    """Return the class of a study's jobs.

    >>> job_class("knowledge").__name__
    'KnowledgeJob'
    """
    return resolve_name(f"{STUDIES[study]}.job:{_camel(study)}Job")


def study_class(study: str) -> Any:
    """Return the class that plans and runs a study's jobs.

    >>> study_class("knowledge").__name__
    'Knowledge'
    """
    return resolve_name(f"{STUDIES[study]}.study:{_camel(study)}")


def _camel(name: str) -> str:
    return name.title().replace("_", "")
