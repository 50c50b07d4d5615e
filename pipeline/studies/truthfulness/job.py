"""What a job of the study `truthfulness` declares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator, model_validator

from posttrace.pipeline.spec import FamilyJob, StatementSet
from posttrace.tracers.operations import Length, Read, Steer

ProbeKind = Literal["mass_mean", "logistic", "ttpd"]

KNOWN_LAYERS = {"llama-3.1-8b": (8, 12), "mistral-7b": (8, 13), "llama-2-13b": (8, 14)}
"""Family -> (intervene_layer, probe_layer) of Du et al. 2025; for others they are chosen on the training sets."""


class TruthfulnessJob(FamilyJob):
    """Truth directions, probe transfer and interventions across the stages of a family (Du et al. 2025, section 4)."""

    reserved = ("none", "random-")
    study: Literal["truthfulness"]
    sets: tuple[StatementSet, ...]
    """Each is left out in turn. A set named `neg_X` is the negation of X: the two are left out together."""
    max_statements: int | None = Field(default=None, ge=8)
    """Statements per set, drawn with the seed, true and false alike; all of them if absent."""
    probes: tuple[ProbeKind, ...] = Field(default=("mass_mean", "logistic", "ttpd"), min_length=1)
    """`mass_mean`: difference of class means with a fitted bias; `logistic`: regression on the whole vector; `ttpd`:
    Bürger et al. 2024."""
    intervene_layer: int | None = Field(default=None, ge=0)
    """First block that is steered. Known for the families of the paper, otherwise the one from which steering has the
    largest effect on the training sets."""
    probe_layer: int | None = Field(default=None, ge=0)
    """Block whose direction is used and the last one that is steered; known or chosen likewise."""
    sweep_statements: int = Field(default=8, ge=2, multiple_of=2)
    """Statements of each training set on which the first steered block is chosen, half of them true."""
    coefficient: Length = 1.0
    """Factor of the direction in interventions."""
    coefficient_sweep: tuple[Length, ...] = ()
    """Further coefficients to steer with; their effects are stored too."""
    random_directions: int = Field(default=20, ge=20, le=1000)
    """Random directions of the same norm, the control of every intervention."""
    few_shot: int = Field(default=4, ge=0, le=32, multiple_of=2)
    """Labelled examples before the statement in interventions, half of them true (0: none)."""
    suffix: str = Field(default=" This statement is:", min_length=1)
    """What follows the statement and asks for the answer."""
    answers: tuple[str, str] = (" TRUE", " FALSE")
    """The two answers, single tokens each."""
    samples: int = Field(default=2, ge=0, le=100)
    """Statements per set whose completions are stored, before and after."""
    completion_tokens: int = Field(default=4, ge=1, le=64)
    """Tokens of a sample completion."""
    statements_per_unit: int = Field(default=32, ge=1, le=256)
    """Statements in one unit of interventions, the smallest piece that a rerun need not repeat; eight times as many in
    one that reads."""

    @field_validator("sets")
    @classmethod
    def _enough_sets(cls, sets):
        topics = {topic(one.name) for one in sets}
        if len(topics) < 2:
            raise ValueError(
                f"{len(topics)} to leave one out of ({', '.join(sorted(topics))}; a set and its negation count as "
                "one); a direction is learned on the sets that are not left out: name at least 2"
            )
        return sets

    @field_validator("probes")
    @classmethod
    def _probes_once(cls, probes):
        if len(set(probes)) < len(probes):
            raise ValueError("probes are listed once each")
        return probes

    @field_validator("coefficient_sweep")
    @classmethod
    def _coefficients_once(cls, coefficients):
        if list(coefficients) != sorted(set(coefficients)):
            raise ValueError("coefficients are listed once each in increasing order")
        return coefficients

    @model_validator(mode="after")
    def _layers_in_order(self):
        first, last = self.layers_given
        if first is not None and last is not None and first > last:
            raise ValueError(
                f"intervene_layer: {first} comes after probe_layer {last}; blocks are steered from the one to the other"
            )
        if None in (first, last) and len({topic(one.name) for one in self.sets}) < 3:
            raise ValueError(
                "2 sets leave one to learn from, too few to choose layers on; give intervene_layer and probe_layer, "
                "or a third set"
            )
        return self

    @property
    def layers_given(self) -> tuple[int | None, int | None]:
        """(intervene_layer, probe_layer) as far as they are given or known for the family."""
        intervene, probe = KNOWN_LAYERS.get(self.family.name, (None, None))
        return (
            intervene if self.intervene_layer is None else self.intervene_layer,
            probe if self.probe_layer is None else self.probe_layer,
        )

    @property
    def statements_per_read(self) -> int:
        """Statements in one unit that reads: it takes one run each, not one for every direction."""
        return 8 * self.statements_per_unit

    @property
    def read(self) -> Read:
        """The operation that keeps the activations: of the bare statement's last token, in every block."""
        return Read(site="resid_post", layers="all", tokens="last")

    def steer(
        self, direction: str, layers: Sequence[int], tokens: Sequence[int], label: bool, coefficient: float
    ) -> Steer:
        """Return an intervention's operation: false statements are steered towards true, true ones towards false.

        Examples
        --------
        >>> job.steer("base", (3, 4), (-6, -5), label=True, coefficient=1.0).mode      # doctest: +SKIP
        'subtract'
        """
        return Steer(
            site="resid_post",
            layers=tuple(layers),
            tokens=tuple(tokens),
            direction=direction,
            mode="subtract" if label else "add",
            coefficient=coefficient,
        )


def topic(name: str) -> str:
    """Return what a set and its negation have in common.

    Examples
    --------
    >>> topic("neg_cities")
    'cities'
    """
    return name.removeprefix("neg_")
