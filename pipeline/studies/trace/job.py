"""What a free-form job declares: prompts, and operations on the runs of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from posttrace.pipeline.rows import read_rows
from posttrace.pipeline.spec import ChatJob, Spec, check_names
from posttrace.tracers.operations import Lens, Patch, Read, Steer


class Message(Spec):
    """One message of a chat."""

    role: str = Field(min_length=1)
    """Who speaks: user, assistant, system."""
    content: str
    """What is said."""


Messages = Annotated[tuple[Message, ...], Field(min_length=1)]
"""A chat, written by the stage's own template. The assistant's turn is opened, or its last message gone on with."""


class TracePrompt(Spec):
    """One text that is run as it is, or a chat."""

    short_form = "the prompt alone"
    prompt: str | None = Field(default=None, min_length=1)
    """The text."""
    messages: Messages | None = None
    """A chat in its place."""
    source: str | Messages | None = None
    """For `patch`: the text (or chat) whose run the activations come from; the prompt itself if absent."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value):
        return {"prompt": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_of_both(self):
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either `prompt: TEXT` or `messages: [{role: user, content: ...}]`")
        return self

    @property
    def run(self) -> str | Messages:
        """What is run."""
        return self.prompt if self.prompt is not None else self.messages or ()

    @property
    def source_run(self) -> str | Messages:
        """What patches take their values from."""
        return self.run if self.source is None else self.source


def as_text(run: str | Messages) -> str:
    """Return a prompt or a chat as a person reads it.

    >>> as_text((Message(role="user", content="Go"),))
    'user: Go'
    """
    return run if isinstance(run, str) else "\n".join(f"{one.role}: {one.content}" for one in run)


class Direction(Spec):
    """Where a direction comes from: a file, or the store of another job."""

    file: str | None = None
    """A .npy file; dims hidden, or layer x hidden (one per block of the model)."""
    store: str | None = None
    """Folder or s3:// URL of a store."""
    array: str | None = None
    """In a store: `group/array`, e.g. `refusal/direction`."""
    at: dict[str, str | int] = Field(default={})
    """In a store: coordinate -> label, until hidden, or layer and hidden, are left."""

    @model_validator(mode="after")
    def _one_place(self):
        if (self.file is None) == (self.store is None) or (self.store is None) != (self.array is None):
            raise ValueError("give either `file: VECTOR.npy`, or `store: ..., array: GROUP/ARRAY, at: {...}`")
        return self


def _or_a_file(schema: dict) -> None:
    listed = {key: schema.pop(key) for key in ("type", "items", "minItems")}
    file = {
        "type": "object",
        "properties": {"csv": {"type": "string", "title": "Csv", "description": "File."}},
        "required": ["csv"],
    }
    schema["anyOf"] = [listed, {**file, "additionalProperties": False}]


Operation = Annotated[Read | Lens | Patch | Steer, Field(discriminator="op")]


class TraceJob(ChatJob):
    """Operations of one's own: every patch and steer acts in one run of each prompt, reads see what they left."""

    study: Literal["trace"]
    prompts: tuple[TracePrompt, ...] = Field(min_length=1, json_schema_extra=_or_a_file)
    """Texts, chats (`{messages: [...]}`), or `{csv: FILE}` with a column `prompt` and, for patches, `source`."""
    operations: tuple[Operation, ...] = ()
    """What to read, patch and steer, and where to look through the lens."""
    directions: dict[str, Direction] = Field(default={})
    """The directions that `steer` operations name; reads also keep the projection of what they read onto each."""
    top: int = Field(default=10, ge=1, le=1000)
    """Most probable next tokens to keep of each run."""
    generate: int = Field(default=0, ge=0, le=4096)
    """New tokens to generate greedily for each prompt (0: none). Patches, and steers at some tokens, act in the prompt;
    steers at `all` tokens act in the new ones as well."""
    prompts_per_unit: int = Field(default=16, ge=1, le=64)
    """Prompts in one unit of work, the smallest piece that a rerun need not repeat."""

    @field_validator("prompts", mode="before")
    @classmethod
    def _from_file(cls, value):
        named = isinstance(value, dict) and set(value) == {"csv"} and isinstance(value["csv"], str)
        return _read_prompts(value["csv"]) if named else value

    @model_validator(mode="after")
    def _names_are_known(self):
        check_names(self.directions)
        for i, operation in enumerate(self.operations):
            if isinstance(operation, Steer) and operation.direction not in self.directions:
                raise ValueError(
                    f"operations.{i}: direction {operation.direction!r} is none of {list(self.directions)}; "
                    "declare it under directions"
                )
            if isinstance(operation, Patch) and operation.source not in self.family.stages:
                raise ValueError(
                    f"operations.{i}: source {operation.source!r} is no stage of {self.family.name} "
                    f"({', '.join(self.family.stages)}); edit source"
                )
        return self

    @property
    def has_chats(self) -> bool:
        """Whether a chat template writes any of the prompts."""
        return any(not isinstance(run, str) for p in self.prompts for run in (p.run, p.source_run))

    @model_validator(mode="after")
    def _chats_have_a_use(self):
        if self.chat_keys and not self.has_chats:
            key = self.chat_keys[0]
            raise ValueError(f"{key}: no prompt is a chat; give `messages`, or take {key} out")
        return self

    def identity(self, declared: dict) -> dict:
        """Return the part of the job that enters its fingerprint; a direction counts by its values (see FamilyJob)."""
        return {**declared, "directions": sorted(declared["directions"])}

    @property
    def stages_read(self) -> tuple[str, ...]:
        """Those in use, and the sources of patches."""
        used = {*self.stage_names, *(patch.source for patch in self.patches)}
        return tuple(name for name in self.family.stages if name in used)

    @property
    def reads(self) -> list[Read]:
        """The operations that keep activations."""
        return [o for o in self.operations if isinstance(o, Read)]

    @property
    def lenses(self) -> list[Lens]:
        """The operations that keep what the stream would say next."""
        return [o for o in self.operations if isinstance(o, Lens)]

    @property
    def patches(self) -> list[Patch]:
        """The operations that put in activations of another run."""
        return [o for o in self.operations if isinstance(o, Patch)]

    @property
    def interventions(self) -> tuple[str, ...]:
        """`none`: the prompt as it is; `all`: every patch and steer at work, where there are any."""
        return ("none", "all") if any(isinstance(o, Patch | Steer) for o in self.operations) else ("none",)


def _read_prompts(path: str) -> list[dict[str, str | None]]:
    rows = read_rows(
        path,
        "prompts",
        "edit prompts",
        needed=("prompt",),
        optional=("source",),
        help="prompts need it, and may have 'source'",
    )
    return [{"prompt": row.cells[0], "source": row.cells[1] or None} for row in rows]
