"""What a job of the study `confidence` declares."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from posttrace.pipeline.spec import FamilyJob, Spec, StatementSet

TEXT = "text"
"""Name of the group that ablation on text goes to, which no statement set may have."""


class Text(Spec):
    """Text on which neurons are ablated."""

    file: str | None = None
    """A UTF-8 text file; if absent, documents of the kind that the embedded family was trained on, drawn with the job's
    seed and not with those of training."""
    documents: int = Field(default=96, ge=2, le=100_000)
    """Documents to take, from the beginning of a file; a document is one observation of the intervals."""
    tokens: int = Field(default=128, ge=3, le=1_000_000)
    """Tokens of a document at most."""
    per_unit: int = Field(default=32, ge=1)
    """Documents in one unit of work."""


class ConfidenceJob(FamilyJob):
    """Entropy neurons in the weights and on text, and the calibration of answers (Du et al. 2025, section 6)."""

    reads_weights = True
    study: Literal["confidence"]
    layer: Literal["last"] | Annotated[int, Field(ge=0)] = "last"
    """Block whose MLP is looked at."""
    top_share: float = Field(default=0.25, gt=0, le=1)
    """Share of the neurons, those with the longest output vectors, among which candidates are chosen."""
    candidates: int = Field(default=10, ge=1)
    """How many of them, those with the smallest LogitVar, are candidates."""
    text: Text | None = Text()
    """Where the candidates' effect is measured; null: not at all."""
    controls: int = Field(default=50, ge=50)
    """Random neurons, and random sets as large as that of the candidates, of the candidates' range of norms."""
    sets: tuple[StatementSet, ...] = ()
    """Statement sets on whose judgement calibration is measured."""
    max_statements: int | None = Field(default=None, ge=2)
    """Statements per set, drawn with the seed; all of them if absent."""
    few_shot: int = Field(default=4, ge=0, le=32, multiple_of=2)
    """Labelled examples before the statement, half of them true (0: none)."""
    suffix: str = " This statement is:"
    """What follows the statement and asks for the answer."""
    answers: tuple[str, str] = (" TRUE", " FALSE")
    """The two answers, single tokens each, that for a true statement first."""
    statements_per_unit: int = Field(default=64, ge=1)
    """Statements in one unit of work."""

    @field_validator("sets")
    @classmethod
    def _names_that_are_free(cls, sets):
        if any(s.name == TEXT for s in sets):
            raise ValueError(
                f"a set cannot be called {TEXT!r} here: ablation on text has that name; rename it"
            )
        return sets

    def identity(self, declared: dict) -> dict:
        """Return the part of the job that enters its fingerprint; a text file counts by its content (see FamilyJob)."""
        if self.text is not None and self.text.file is not None:
            declared["text"]["file"] = "given"
        return declared
