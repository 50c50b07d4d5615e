"""What a job of the study `difference` declares."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from posttrace.pipeline.spec import ChatJob, Spec, check_names

EMBEDDED = ("plain", "chat")
"""Texts known by name: documents and dialogues of the kinds that the embedded family was trained on."""
SOURCES = ("file", "messages", "csv")


class Texts(Spec):
    """Documents of one kind."""

    short_form = "plain or chat"
    name: str = Field(min_length=1)
    """`plain` and `chat` are the embedded ones, unless a file is given."""
    file: str | None = None
    """A UTF-8 text file, cut into documents of about `tokens` tokens."""
    messages: str | None = None
    """A JSONL file, each line `{"messages": [{"role": ..., "content": ...}, ...]}`."""
    csv: str | None = None
    """A CSV file with a document in each row's `column`."""
    column: str = "text"
    """Column of `csv`."""
    where: dict[str, str] = Field(default_factory=dict)
    """Keep rows of `csv` whose column has this value."""
    documents: int = Field(default=96, ge=2, le=100_000)
    """Documents to take, from the beginning of a file."""
    tokens: int = Field(default=96, ge=3, le=1_000_000)
    """Tokens of a document at most."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value):
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_source(self):
        given = [key for key in SOURCES if getattr(self, key) is not None]
        if len(given) > 1 or not (given or self.name in EMBEDDED):
            raise ValueError(
                f"texts {self.name}: {' and '.join(given) or 'no file'} given; name one of {', '.join(EMBEDDED)}, or "
                "give one of file (text), messages (JSONL) and csv"
            )
        return self

    @property
    def is_chat(self) -> bool:
        """Whether the documents are conversations."""
        named = self.name == "chat" and self.file is None and self.csv is None
        return named or self.messages is not None


class Steering(Spec):
    """Test whether adding the mean difference to the source makes it behave like the target."""

    documents: int = Field(default=8, ge=1)
    """Held-out documents of each set, from the beginning."""
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Blocks whose output is steered, one at a time; three, evenly spaced, if absent."""
    coefficients: tuple[float, ...] = Field(default=(1.0,), min_length=1)
    """Multiples of the mean difference that are added."""
    random: int = Field(default=20, ge=1, le=1000)
    """Random directions of the mean difference's length, to compare with."""
    prompts: int = Field(default=2, ge=1)
    """Held-out documents whose beginning is continued."""
    new_tokens: int = Field(default=12, ge=1)
    """Tokens of a continuation at most."""


class Patchscope(Spec):
    """Read mean differences by putting them into a prompt that repeats tokens, where known tokens can be read so."""

    prompt: str = "cat -> cat\n1135 -> 1135\nhello -> hello\n? ->"
    """What is predicted after it is what is read."""
    slot: str = Field(default="?", min_length=1)
    """Text of the token, its last one in the prompt, whose stream is replaced."""
    known: int = Field(default=30, ge=1, le=1000)
    """Samples with different tokens whose own streams are put there first. At a block where fewer than half of them are
    read back, among the ten most probable tokens, nothing is read."""

    @model_validator(mode="after")
    def _has_its_slot(self):
        if self.slot not in self.prompt:
            raise ValueError(f"patchscope.slot: {self.slot!r} is not in the prompt; name a text that it has")
        return self


class DifferenceJob(ChatJob):
    """What changed between the stages of a family, on any text."""

    reads_weights = True
    study: Literal["difference"]
    texts: tuple[Texts, ...] = Field(min_length=1)
    """Sets of documents."""
    render: Literal["same", "own"] = "same"
    """Conversations: `same` gives all stages one token sequence; `own` gives each its own template, and compares them
    at the tokens of the messages."""
    template: str | None = None
    """Stage whose chat template `same` uses; the last one that has a template if absent."""
    control: tuple[str, str] | None = None
    """Two stages trained without the difference that is sought (seeds, neighbouring checkpoints)."""
    samples: int = Field(default=512, ge=8)
    """Tokens of each set whose streams are kept for CKA, R², PCA and contexts."""
    sampled_layers: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Blocks at which they are kept; eight at most, evenly spaced, if absent."""
    stream_dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    """In which the streams of all tokens are stored; `auto`: the model's if it has 16 bits, else float16."""
    projection: int | None = Field(default=None, ge=8)
    """Dimensions to which the stored streams are projected at random (64: lengths of differences within about 9 %);
    null stores them as they are."""
    steering: Steering | None = Steering()
    """null: no steering."""
    patchscope: Patchscope | None = Patchscope()
    """null: no patchscope."""

    @field_validator("texts")
    @classmethod
    def _named_once(cls, texts):
        names = [one.name for one in texts]
        check_names(dict.fromkeys(names))
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"{sorted(twice)} named twice; give each set its own name")
        return texts

    @model_validator(mode="after")
    def _stages_are_there(self):
        unknown = [s for s in (*(self.control or ()), self.template) if s and s not in self.stage_names]
        if unknown:
            raise ValueError(
                f"control, template: {unknown} not among the stages {list(self.stage_names)}; edit them"
            )
        if self.control and self.control[0] == self.control[1]:
            raise ValueError(f"control: {self.control[0]} twice; name two stages")
        return self

    @model_validator(mode="after")
    def _chats_are_there(self):
        if self.chat_keys and not any(one.is_chat for one in self.texts):
            raise ValueError(f"{self.chat_keys[0]}: no conversations among the texts; take it out")
        return self

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """All ordered pairs (source, target) of stages; a stage that is alone is compared with itself."""
        stages = self.stage_names
        if len(stages) == 1:
            return ((stages[0], stages[0]),)
        return tuple((source, target) for source in stages for target in stages if source != target)

    def identity(self, declared: dict) -> dict:
        """Files count by their content, not by where they lie (see FamilyJob)."""
        declared = super().identity(declared)
        for one in declared["texts"]:
            for key in SOURCES:
                one[key] = None if one[key] is None else "given"
        return declared
