"""What a job of the study `stages` declares."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from posttrace.pipeline.spec import ChatJob, Spec, StatementSet, check_names
from posttrace.pipeline.studies.confidence.job import Text
from posttrace.pipeline.studies.refusal.instructions import EMBEDDED, PUBLISHED
from posttrace.pipeline.studies.refusal.job import HERE, InstructionSet, instruction_set

KNOWN = ("refusal", "verdict", "loss", "entropy", "answer")
"""Behaviours that are known by name."""
OF_SETS = ("verdict", "answer")
"""Those that are asked of every statement set."""
OF_TEXT = ("loss", "entropy")

Known = Literal["refusal", "verdict", "loss", "entropy", "answer"]


class Documents(Spec):
    """Text whose loss and entropy are measured."""

    file: str | None = None
    """A UTF-8 text file; if absent, documents of the kind that the embedded family was trained on."""
    tokens: int = Field(default=64, ge=3, le=1_000_000)
    """Tokens of a document at most; `max_prompts` says how many documents are taken."""

    def read_as(self, documents: int) -> Text:
        """Return the text settings as `confidence` reads them."""
        return Text(file=self.file, documents=max(2, documents), tokens=self.tokens)


class Behaviour(Spec):
    """A behaviour of one's own: how likely a text is after each prompt, or how likely texts are."""

    name: str = Field(min_length=1)
    """Its label in the store."""
    prompts: tuple[str, ...] = ()
    """Texts that `answers` follow."""
    answers: tuple[str, ...] = ()
    """One text: log P of it after each prompt. Two: log P of the first minus log P of the second."""
    texts: tuple[str, ...] = ()
    """Instead of prompts: texts whose loss (nats a token) is the behaviour."""
    chat: bool = False
    """Whether prompts stand in the template of the final stage, as a user's turn."""

    @model_validator(mode="after")
    def _one_of_both(self):
        if bool(self.texts) == bool(self.prompts or self.answers) or (self.chat and self.texts):
            raise ValueError(
                f"behaviour {self.name}: give prompts and one or two answers, or texts alone"
                " (chat goes with prompts)"
            )
        if not self.texts and not (self.prompts and len(self.answers) in (1, 2)):
            raise ValueError(
                f"behaviour {self.name}: {len(self.prompts)} prompts with {len(self.answers)} answers; give at least "
                "one prompt, and one or two answers"
            )
        return self

    @property
    def unit(self) -> str:
        """Unit of its values, in words."""
        if self.texts:
            return "loss, nats a token"
        first, *second = self.answers
        return f"log P({first})" + (f" - log P({second[0]})" if second else "") + ", nats"


class StagesJob(ChatJob):
    """Effects of each stage's update of the weights, and where in the weights they arise."""

    study: Literal["stages"]
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """How weights are held: in float32, or as bfloat16 files have them, in half the memory. All is computed in float32:
    between two checkpoints bfloat16 rounds by as much as a gentle stage does."""
    behaviours: tuple[Known | Behaviour, ...] = Field(default=("refusal", "verdict", "loss"), min_length=1)
    """Names (refusal, verdict, loss, entropy, answer), or behaviours of one's own."""
    sets: tuple[StatementSet, ...] = ()
    """Statement sets of `verdict` and `answer`."""
    few_shot: int = Field(default=4, ge=0, le=32, multiple_of=2)
    """Labelled examples before a statement, half of them true."""
    suffix: str = " This statement is:"
    """What follows a statement and asks for the answer."""
    answers: tuple[str, str] = (" TRUE", " FALSE")
    """The two answers, single tokens each, that for a true statement first."""
    harmful: InstructionSet = InstructionSet(name="embedded", csv=str(EMBEDDED["harmful"]))
    """Instructions of `refusal`: `embedded`, `advbench` (downloaded), a CSV file, or `{name, csv, column, where}`."""
    harmless: InstructionSet = InstructionSet(name="embedded", csv=str(EMBEDDED["harmless"]))
    """The same, harmless: `embedded`, `alpaca` (downloaded) ..."""
    template: str = "chat"
    """How an instruction is put, for every stage alike: `chat` (the final stage's own), or a text with
    `{instruction}`."""
    openings: str = str(HERE / "openings.yaml")
    """File with the openings (`refusal`, `compliant`) that log-odds are of."""
    text: Documents = Documents()
    """Text of `loss` and `entropy`."""
    max_prompts: int = Field(default=64, ge=2)
    """Prompts of a behaviour (and set) at most, drawn with the seed."""
    alphas: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(0.25, 0.5, 0.75, 1.0), min_length=1
    )
    """Shares of an update that are removed."""
    tolerance: float = Field(default=0.02, gt=0, le=1)
    """Share of a prompt's effect that its attribution may miss, 0.01 nats aside."""
    swaps: tuple[Literal["insert", "remove", "cumulative"], ...] = ("insert", "remove", "cumulative")
    """Modules swapped between two stages."""
    recipe: Literal["embedded"] | None = None
    """`embedded`: train the later stages again without each earlier one, and estimate that without training. For
    families that `posttrace.pipeline.embedded.train` wrote."""
    controls: int = Field(default=20, ge=0, le=1000)
    """Draws of each kind of control: Gaussian directions, permuted updates, rounding."""
    prompts_per_unit: int = Field(default=16, ge=1)
    """Prompts in one unit of work."""

    @model_validator(mode="before")
    @classmethod
    def _named_sets(cls, raw: Any):
        if not isinstance(raw, dict):
            return raw
        return {**raw, **{kind: instruction_set(kind, raw[kind]) for kind in PUBLISHED if kind in raw}}

    @field_validator("behaviours")
    @classmethod
    def _named_once(cls, behaviours):
        names = [one if isinstance(one, str) else one.name for one in behaviours]
        check_names(dict.fromkeys(names))
        twice = {name for name in names if names.count(name) > 1}
        taken = [one.name for one in behaviours if not isinstance(one, str) and one.name in KNOWN]
        if twice or taken:
            raise ValueError(f"{sorted(twice) or taken}: give each behaviour a name of its own")
        return behaviours

    @field_validator("alphas", "swaps")
    @classmethod
    def _each_once(cls, values):
        if len(set(values)) < len(values):
            raise ValueError(f"{list(values)} has a value twice; give each once")
        return values

    @model_validator(mode="after")
    def _what_is_needed(self):
        if len(self.stage_names) < 2:
            raise ValueError(
                f"stages: {list(self.stage_names)}: an update lies between two stages; give at least two"
            )
        if self.recipe and len(self.stage_names) < 3:
            raise ValueError(
                f"recipe: after the update of {self.stage_names[-1]} nothing is trained; take recipe out: removing the "
                "last update (alphas: [1]) shows the model without it, or name stages that come later"
            )
        if self.recipe and self.effects_only:
            raise ValueError(
                f"recipe: execution.backend is {self.execution.backend}, and a server trains nothing; take recipe out, "
                "or set execution.backend=local"
            )
        asked = [name for name in self.behaviours if name in OF_SETS]
        if asked and not self.sets:
            raise ValueError(f"sets: {asked[0]} is asked of statements; give sets, e.g. [cities]")
        if self.template != "chat" and self.template.count("{instruction}") != 1:
            raise ValueError(
                f"template: {self.template!r} is neither chat nor a text with {{instruction}} once"
            )
        if self.template != "chat" and self.chat_keys:
            raise ValueError(
                f"{self.chat_keys[0]}: only chat templates take it; set template: chat or take it out"
            )
        return self

    @property
    def effects_only(self) -> bool:
        """Whether behaviours are all that is measured: no server hands out the weights of a second checkpoint."""
        return self.execution.backend != "local"

    def identity(self, declared: dict[str, Any]) -> dict[str, Any]:
        """Files count by their content, not by where they lie (see ChatJob)."""
        for kind in PUBLISHED:
            del declared[kind]["csv"]
        if self.text.file is not None:
            declared["text"]["file"] = "given"
        del declared["openings"]
        return super().identity(declared)
