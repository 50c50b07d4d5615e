"""What a free-form job declares: prompts, and operations on the runs of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from posttrace.pipeline.rows import read_rows
from posttrace.pipeline.spec import FamilyJob, Spec, check_names
from posttrace.tracers.operations import Patch, Read, Steer


class TracePrompt(Spec):
    """One text that is run as it is."""

    prompt: str = Field(min_length=1)
    source: str | None = None
    """For `patch`: the text whose run the activations come from; the prompt itself if absent."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value):
        return {"prompt": value} if isinstance(value, str) else value


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


Operation = Annotated[Read | Patch | Steer, Field(discriminator="op")]


class TraceJob(FamilyJob):
    """Operations of one's own: every patch and steer acts in one run of each prompt, reads see what they left."""

    study: Literal["trace"]
    prompts: tuple[TracePrompt, ...] = Field(min_length=1)
    """Texts, or `{csv: FILE}` with a column `prompt` and, where patches need it, `source`."""
    operations: tuple[Operation, ...] = ()
    directions: dict[str, Direction] = Field(default={})
    """The directions that `steer` operations name."""
    top: int = Field(default=10, ge=1, le=1000)
    """Most probable next tokens to keep of each run."""
    generate: int = Field(default=0, ge=0, le=4096)
    """New tokens to generate greedily for each prompt, steered at every token (0: none)."""
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

    @model_validator(mode="after")
    def _generation_is_steered_throughout(self):
        for i, operation in enumerate(self.operations):
            if self.generate and not isinstance(operation, Read) and operation.tokens != "all":
                raise ValueError(
                    f"operations.{i}: {operation.op} at tokens {operation.tokens!r}: while generating only `steer` "
                    "with tokens: all has a meaning; set generate: 0, or change the operation"
                )
            if self.generate and isinstance(operation, Patch):
                raise ValueError(f"operations.{i}: a patch has no meaning for new tokens; set generate: 0")
        return self

    def identity(self, declared: dict) -> dict:
        """A direction counts by its values, which the study hashes, not by where they lie (see FamilyJob)."""
        return {**declared, "directions": sorted(declared["directions"])}

    @property
    def reads(self) -> list[Read]:
        """The operations that keep activations."""
        return [o for o in self.operations if isinstance(o, Read)]

    @property
    def patches(self) -> list[Patch]:
        """The operations that put in activations of another run."""
        return [o for o in self.operations if isinstance(o, Patch)]

    @property
    def interventions(self) -> tuple[str, ...]:
        """`none`: the prompt as it is; `all`: every patch and steer at work, where there are any."""
        return ("none", "all") if len(self.reads) < len(self.operations) else ("none",)


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
