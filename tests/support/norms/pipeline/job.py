"""What a job of the study `norms` declares."""

from typing import Literal

from pydantic import Field

from posttrace.pipeline.spec import FamilyJob, StatementSet


class NormsJob(FamilyJob):
    """Length of the residual stream at the last token of statements."""

    study: Literal["norms"]
    sets: tuple[StatementSet, ...] = Field(min_length=1)
    statements_per_unit: int = Field(default=32, ge=1)
    """Statements in one unit of work."""
