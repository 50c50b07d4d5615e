"""What a job of the study `refusal` declares."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from posttrace.pipeline.plain_yaml import load_yaml
from posttrace.pipeline.spec import ChatJob, Spec
from posttrace.pipeline.studies.refusal.instructions import EMBEDDED, PUBLISHED
from posttrace.tracers.operations import Length, Read, Steer

HERE = Path(__file__).resolve().parent
BASE_TEMPLATE = "User: {instruction}\nAssistant:"
RANDOM = "random-"
"""Directions drawn at random are `random-0`, `random-1` ..."""


class Choice(Spec):
    """Where a stage's direction is taken, and how much of it is added."""

    layer: int = Field(ge=0)
    """Block whose input the direction is taken from."""
    position: int = Field(le=-1)
    """Token of the prompt, counted from its end."""
    coefficient: Length | None = None
    """Length of what is added; the distance of the class means (or the search's) if absent."""


class InstructionSet(Spec):
    """Instructions, from a CSV file with a column `instruction`, or a published set that is downloaded."""

    short_form = "embedded, a published set, or a CSV file"
    name: str = Field(min_length=1)
    """How figures call it; a published set is downloaded by its name."""
    csv: str | None = None
    """File; absent for published sets."""
    column: str = "instruction"
    """Column of the texts."""
    where: dict[str, str] = Field(default_factory=dict)
    """Keep rows whose column has this value."""


class RefusalJob(ChatJob):
    """Directions of refusal, ablated and added while generating (Arditi et al. 2024; Du et al. 2025, section 5)."""

    reserved = ("none", RANDOM)
    study: Literal["refusal"]
    harmful: InstructionSet
    """`embedded`, `advbench` (downloaded), a CSV file, or `{name, csv, column, where}`."""
    harmless: InstructionSet
    """`embedded`, `alpaca` (downloaded), a CSV file, or `{name, csv, column, where}`."""
    direction_prompts: int = Field(default=128, ge=4)
    """Instructions of each kind, at most, that a direction is the difference of."""
    validation_prompts: int = Field(default=32, ge=4)
    """Instructions of each kind, at most, that layer, position and coefficient are chosen on."""
    test_prompts: int = Field(default=100, ge=4)
    """Instructions of each kind, at most, that are answered."""
    templates: dict[str, str] = Field(default_factory=dict)
    """Stage -> `chat` (the tokenizer's), `base`, or a text with `{instruction}`; by default `base` for the stage
    named base and `chat` for the others."""
    selected: dict[str, Choice] | None = None
    """Stage -> where its direction is taken; a stage that is not named is swept. Absent: the published choice of a
    known family. `{}`: sweep them all."""
    max_kl: float = Field(default=0.1, gt=0)
    """Directions whose ablation changes the first token of harmless answers by more (KL, nats, mean) do not qualify."""
    max_depth: float = Field(default=0.8, gt=0, le=1)
    """Blocks from this share of the depth on do not qualify: a direction there is close to the words themselves."""
    coefficient_search: tuple[Length, ...] = ()
    """Multiples of the distance of the class means to try; the smallest that does nearly as much as the best is taken.
    Empty: the distance itself."""
    new_tokens: int = Field(default=16, ge=1, le=512)
    """Length of the answers, in tokens."""
    reasoning_tokens: int = Field(default=512, ge=0, le=32_768)
    """Length of a reasoning block before an answer, in tokens, at which it is closed; answers are scored after it."""
    random_directions: int = Field(default=10, ge=0, le=100)
    """Directions drawn at random, as control."""
    phrases: str = str(HERE / "phrases.txt")
    """File with a refusal phrase per line; an answer that begins with one is a refusal."""
    openings: str = str(HERE / "openings.yaml")
    """File with the openings (`refusal`, `compliant`) that log-odds are of."""
    prompts_per_unit: int = Field(default=64, ge=1, le=1024)
    """Instructions in one unit of work, the smallest piece that a rerun need not repeat."""

    @model_validator(mode="before")
    @classmethod
    def _named_sets(cls, raw: Any):
        if not isinstance(raw, dict):
            return raw
        return {**raw, **{kind: instruction_set(kind, raw.get(kind)) for kind in PUBLISHED if kind in raw}}

    @model_validator(mode="after")
    def _stages_exist(self):
        for key in ("templates", "selected"):
            unknown = [stage for stage in getattr(self, key) or () if stage not in self.family.stages]
            if unknown:
                raise ValueError(
                    f"{key}: {unknown} not in family {self.family.name}; it has {list(self.family.stages)}; edit {key}"
                )
        for stage, template in self.templates.items():
            if template not in ("chat", "base") and template.count("{instruction}") != 1:
                raise ValueError(
                    f"templates.{stage}: {template!r} is neither chat nor base nor a text with {{instruction}} once"
                )
        if self.chat_keys and "chat" not in map(self.template_name, self.stage_names):
            key = self.chat_keys[0]
            raise ValueError(
                f"{key}: no stage's prompts are written by its chat template; edit templates or {key}"
            )
        return self

    def template_name(self, stage: str) -> str:
        """`chat`, `base`, or a text with `{instruction}`."""
        return self.templates.get(stage, "base" if stage == "base" else "chat")

    @property
    def choices(self) -> dict[str, Choice]:
        """Stage -> where its direction is taken, for the stages that are not swept."""
        if self.selected is not None:
            return dict(self.selected)
        known = load_yaml((HERE / "presets.yaml").read_text(encoding="utf-8"))
        return {stage: Choice(**choice) for stage, choice in known.get(self.family.name, {}).items()}

    def read_at(self, positions: tuple[int, ...]) -> Read:
        """Return the operation that gives a stage's directions."""
        return Read(site="resid_pre", layers="all", tokens=positions)

    def add(self, direction: str, layer: int, coefficient: float) -> Steer:
        """Return the operation that adds a direction at the input of one block."""
        return Steer(
            site="resid_pre", layers=(layer,), tokens="all", direction=direction, coefficient=coefficient
        )

    def identity(self, declared: dict[str, Any]) -> dict[str, Any]:
        """Files count by their content, not by where they lie (see FamilyJob)."""
        for kind in PUBLISHED:
            del declared[kind]["csv"]
        del declared["phrases"], declared["openings"]
        if not declared["content"]["reasoning"]:  # no stage marks any
            del declared["reasoning_tokens"], declared["content"]["reasoning"]
        return super().identity(declared)


def instruction_set(kind: str, value: Any):
    """Return the keys of an `InstructionSet` for what a job may write for a set of instructions.

    >>> instruction_set("harmful", "mine.csv")
    {'name': 'mine', 'csv': 'mine.csv'}

    Raises ValueError for a name that is no known set.
    """
    if not isinstance(value, str):
        return value
    if value.endswith(".csv"):
        return {"name": Path(value).stem, "csv": value}
    if value == "embedded":
        return {"name": value, "csv": str(EMBEDDED[kind])}
    if value == PUBLISHED[kind]:
        return {"name": value}
    raise ValueError(
        f"{kind}: {value!r} is not a known set (embedded, {PUBLISHED[kind]}); use one of these, a CSV file with a "
        "column `instruction`, or `{name, csv, column, where}`"
    )
