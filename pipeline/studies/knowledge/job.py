"""What a job of the study `knowledge` declares."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from posttrace.pipeline.spec import FamilyJob, StatementSet
from posttrace.tracers.operations import Patch, Site


class KnowledgeJob(FamilyJob):
    """Causal tracing within and across the stages of a family (Du et al. 2025, section 3)."""

    study: Literal["knowledge"]
    sets: tuple[StatementSet, ...] = Field(min_length=1)
    """True and false statements that pairs are made from."""
    site: Site = "resid_post"
    """What is patched."""
    layers: Literal["all"] | tuple[int, ...] = "all"
    """Block numbers, from 0; `all` for every block of the model."""
    method: Literal["exact", "attribution"] = "exact"
    """`exact`: every cell by a run; `attribution`: a first-order estimate of every cell from one backward pass,
    together with exact values for a share of the pairs, against which the figures report it."""
    exact_share: float = Field(default=0.25, gt=0, le=1)
    """With `method: attribution`: share of the pairs (at least two) whose exact grid is computed too."""
    max_pairs: int | None = Field(default=None, ge=1)
    """Pairs per set, drawn with the seed; all of them if absent."""
    few_shot: int = Field(default=4, ge=0, le=32, multiple_of=2)
    """Labelled examples before the statement, half of them true (0: none)."""
    pair_by: Literal["prompt", "bare"] = "prompt"
    """Which tokens decide on the pairs: `prompt`, those that statements have after the examples; `bare`, those that
    they have alone, as in Du et al. 2025. For SentencePiece tokenizers the two differ."""
    suffix: str = " This statement is:"
    """What follows the statement and asks for the answer."""
    answers: tuple[str, str] = (" TRUE", " FALSE")
    """The two answers, single tokens each; what is stored is the first one's logit minus the second one's."""
    pairs_per_unit: int = Field(default=16, ge=1, le=64)
    """Pairs in one unit of work, the smallest piece that a rerun need not repeat."""

    @model_validator(mode="after")
    def _operations_hold(self):
        # The operation's own checks (order, range of layers) hold for the job's fields.
        for stage in self.stage_names:
            self.patch_from(stage)
        return self

    def patch_from(self, source: str) -> Patch:
        """Return the operation that this study repeats for every source."""
        return Patch(site=self.site, layers=self.layers, tokens="statement", source=source)

    def identity(self, declared: dict) -> dict:
        """Keys that are as they were before there was a choice change nothing (see FamilyJob)."""
        if self.pair_by == "prompt":
            del declared["pair_by"]
        if self.method == "exact":
            del declared["method"], declared["exact_share"]
        return declared
