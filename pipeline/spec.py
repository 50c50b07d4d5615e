"""Building blocks of every job: families and their stages, statement sets, runtime settings."""

from __future__ import annotations

from datetime import date as calendar_date
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from posttrace.pipeline.errors import shown
from posttrace.pipeline.files import absolute
from posttrace.pipeline.plain_yaml import load_yaml
from posttrace.stores.errors import did_you_mean

HERE = Path(__file__).resolve().parent
BUILT_IN_SETS = HERE / "embedded" / "statements"
FREE_FORM_SETS = ("tulu_extracted",)
"""Built-in and published sets whose pairs stand in consecutive rows instead of sharing a template."""


LONGEST_NAME = 100


class Spec(BaseModel):
    """Common to every part of a job: unknown keys and numbers that are none are mistakes; nothing changes later."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
    short_form: ClassVar[str] = ""
    """What a text stands for where the keys could be written out; empty if a text is a mistake."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core, handler):
        """Return the schema with the short form as an alternative: a job that loads is no mistake in an editor."""
        schema = handler(core)
        if cls.short_form:
            whole = handler.resolve_ref_schema(schema)
            keys = dict(whole)
            whole.clear()
            whole["anyOf"] = [{"type": "string", "description": cls.short_form}, keys]
        return schema


class Stage(Spec):
    """One checkpoint of a family."""

    short_form = "a folder or hub id"
    model: str
    """Folder of a transformers checkpoint, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    remote_key: str | None = None
    """How a server knows the model, where `model` is a folder: a hub id, or a whole model key of nnsight."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value):
        return {"model": value} if isinstance(value, str) else value


class Family(Spec):
    """A base model and what post-training made of it."""

    short_form = "a known family (posttrace ls models)"
    name: str = Field(min_length=1, max_length=LONGEST_NAME)
    """How figures and messages call it."""
    stages: dict[str, Stage] = Field(min_length=1)
    """Stage name (base, sft, instruct ...) -> checkpoint, the base first."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value):
        if not isinstance(value, str):
            return value
        known = families()
        if value not in known:
            raise ValueError(
                f"{value!r} is not a known family{did_you_mean(value, known)} ({', '.join(known)}); use one of these, "
                "or give `family: {name: ..., stages: {base: FOLDER_OR_HUB_ID, ...}}`"
            )
        return {"name": value, "stages": known[value]}

    @field_validator("name")
    @classmethod
    def _printable(cls, name):
        if not name.isprintable():
            raise ValueError(f"{name!r} has characters that cannot be printed; take them out")
        return name

    @field_validator("stages")
    @classmethod
    def _plain_names(cls, stages):
        return check_names(stages)


class StatementSet(Spec):
    """True and false statements, from a CSV file with the columns `statement` and `label` (1 or true, 0 or false)."""

    short_form = "a known set (posttrace ls datasets), or a CSV file"
    name: str = Field(min_length=1)
    """Its group in the store."""
    csv: str
    """File of the set."""
    where: dict[str, str] = {}
    """Keep rows whose column has this value, e.g. `{split: judged}`."""
    pairs: Literal["template", "free"] = "template"
    """`template`: statements share a template, a true and a false one with the same last word make a pair;
    `free`: a pair stands in two consecutive rows, one true and one false."""
    like: str | None = None
    """With `pairs: template`: keep the statements whose tokens lie as this one's do; if absent, those of the pattern
    that most share."""
    few_shot: tuple[str, ...] | None = None
    """Labelled lines to put before each statement (`... This statement is: TRUE`); drawn from the CSV if absent."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value):
        if not isinstance(value, str):
            return value
        if value.endswith(".csv"):
            return {"name": Path(value).stem, "csv": value}
        known = datasets()
        if value not in known:
            raise ValueError(
                f"{value!r} is not a known set{did_you_mean(value, known)} ({', '.join(known)}); use one of these, "
                "or give `{name: ..., csv: FILE}` with columns statement,label"
            )
        return {
            "name": value,
            "csv": str(known[value]),
            "where": {} if value in FREE_FORM_SETS else {"split": "judged"},
            "pairs": "free" if value in FREE_FORM_SETS else "template",
        }


Amount = Annotated[float, Field(gt=0, le=1e7)]
"""Seconds (up to 115 days) or megabytes."""


class Remote(Spec):
    """Limits of the requests to a server; docs/remote.md says what happens at each."""

    deadline: Amount = 3600
    """Seconds from submission to result, the time to load a cold model aside."""
    silence: Amount = 300
    """Seconds without a sensible answer about a job, after which it is submitted again."""
    deploy: Amount = 1800
    """Seconds that the server may take to load a cold model."""
    attempts: int = Field(default=3, ge=1, le=20)
    """Submissions of one request, when the server evicts or loses jobs."""
    retries: int = Field(default=6, ge=1, le=50)
    """Tries of one HTTP call."""
    first_wait: Amount = 1
    """Seconds before the first retry; doubled each time, with jitter, up to a minute."""
    poll: Amount = 0.5
    """Seconds between questions about a job, at first; they grow to 10."""
    max_request_mb: Amount = 64
    """Largest request that is sent, MB."""
    max_result_mb: Amount = 2048
    """Largest result that is accepted, MB unpacked."""


class Execution(Spec):
    """Runtime settings; they do not affect results (beyond rounding) and may change on resume."""

    backend: Literal["local", "remote", "simulated"] = "local"
    """`local`: the weights are read into this process; `remote`: on the server that nnsight is configured with (NDIF);
    `simulated`: local, but through the bytes that a server would get (a quick check, weaker than a server)."""
    in_flight: int = Field(default=4, ge=1, le=64)
    """Requests that a server has at one time; fewer when it says that they are too many."""
    remote: Remote = Remote()
    """Limits of the requests to a server."""
    device: str = "auto"
    """`auto` (the fewest GPUs that hold the model, else the CPU), `cpu`, `cuda`, `cuda:1` ..."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Tokens of patched runs in one forward pass: by default 4096 on a CPU, on a GPU what fits; halved by itself when
    memory runs out."""
    check_share: float = Field(default=0.01, ge=0, le=1)
    """Share of a unit's values (cells, prompts) that is computed again by whole forward passes: at least one value and
    at most 8. A difference stops the run. 0: none."""


class FamilyJob(Spec):
    """Common to every study: the models it looks at, and how it runs."""

    family: Family
    """The models: base and post-trained stages of one size."""
    stages: tuple[str, ...] | None = None
    """Stages to use, all of the family's if absent."""
    seed: int = Field(default=0, ge=0)
    """For everything that is drawn."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: float32 on a CPU, the checkpoint's own on a GPU."""
    execution: Execution = Execution()
    """Runtime settings; they do not affect results (beyond rounding) and may change on resume."""
    study: str
    """Name of the study, the one that a job of its kind has."""
    reads_weights: ClassVar[bool] = False
    """Whether the study reads weights from the checkpoint's files, also where models run on a server."""
    reserved: ClassVar[tuple[str, ...]] = ()
    """Labels that the study puts next to the stages' names on an axis; `random-` stands for all that begin so."""

    @field_validator("sets", mode="after", check_fields=False)
    @classmethod
    def _sets_once(cls, sets):
        check_names(dict.fromkeys(s.name for s in sets))
        twice = {s.name for s in sets if [t.name for t in sets].count(s.name) > 1}
        if twice:
            raise ValueError(f"{sorted(twice)} named twice; give each set its own name")
        return sets

    @model_validator(mode="after")
    def _known_stages(self):
        unknown = [s for s in self.stages or () if s not in self.family.stages]
        if unknown or self.stages == ():
            raise ValueError(
                f"stages: {unknown} not in family {self.family.name}; it has {list(self.family.stages)}; edit stages"
            )
        return self

    @model_validator(mode="after")
    def _labels_are_free(self):
        taken = [
            s for s in self.stage_names for r in self.reserved if s == r or (r[-1] == "-" and s.startswith(r))
        ]
        if taken:
            labels = ", ".join(f"{r}..." if r[-1] == "-" else r for r in self.reserved)
            raise ValueError(
                f"stages: {taken}: in this study {labels} have a meaning of their own; rename the stage"
            )
        return self

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The stages in use, in the family's order."""
        return tuple(s for s in self.family.stages if self.stages is None or s in self.stages)

    @property
    def stages_read(self) -> tuple[str, ...]:
        """The stages whose checkpoints the job looks at, in the family's order."""
        return self.stage_names

    def identity(self, declared: dict[str, Any]) -> dict[str, Any]:
        """Return the part of the job that enters its fingerprint; keys that change no result are left out."""
        return declared


RESERVED_VARIABLES = {
    *("messages", "conversations", "chat_template", "strftime_now"),
    *("add_generation_prompt", "continue_final_message", "return_assistant_tokens_mask"),
}
"""What a chat template is given by us."""


class ChatJob(FamilyJob):
    """Common to studies whose prompts a chat template may write."""

    system: str | None = None
    """The system's message before every chat; absent: none is given, and a template may write one of its own. `""`: an
    empty one."""
    date: str | None = None
    """YYYY-MM-DD, the day that chat templates take for today (and get as `date_string`), so that a run can go on after
    midnight."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further variables of chat templates, e.g. `{enable_thinking: false}`; as in transformers and vLLM."""

    @field_validator("date")
    @classmethod
    def _day(cls, value):
        if value is not None:
            try:
                value = calendar_date.fromisoformat(value).isoformat()
            except ValueError:
                raise ValueError(f"{value!r} is no day; write YYYY-MM-DD in quotes") from None
        return value

    @field_validator("chat_template_kwargs")
    @classmethod
    def _free_variables(cls, value):
        taken = sorted(RESERVED_VARIABLES & set(value))
        if taken:
            raise ValueError(
                f"{', '.join(taken)}: set by posttrace itself; name other variables of the template"
            )
        return value

    @property
    def chat_keys(self) -> list[str]:
        """The keys about chats that the job sets."""
        keys = ("system", "date", "chat_template_kwargs")
        return [key for key in keys if getattr(self, key) not in (None, {})]

    def identity(self, declared: dict[str, Any]) -> dict[str, Any]:
        """Keys that are not set change nothing (see FamilyJob)."""
        for key in {"system", "date", "chat_template_kwargs"} - set(self.chat_keys):
            del declared[key]
        return super().identity(declared)


def families() -> dict[str, dict[str, str]]:
    """Return the families known by name: stage -> folder or hub id."""
    return {
        name: {stage: resolved(model, HERE) for stage, model in about["stages"].items()}
        for name, about in _families().items()
    }


def about_families() -> dict[str, str]:
    """Licence, access and peculiarities of the families known by name, in words.

    >>> about_families()["llama-2-7b"]
    'licence Llama 2; accept it on the hub first (base, instruct)'
    """
    found = {}
    for name, about in _families().items():
        parts = [f"licence {about['licence']}"]
        if about.get("gated"):
            parts.append(f"accept it on the hub first ({', '.join(about['gated'])})")
        found[name] = "; ".join([*parts, *([about["note"]] if "note" in about else [])])
    return found


def _families() -> dict[str, dict[str, Any]]:
    return load_yaml((HERE / "families.yaml").read_text(encoding="utf-8"))


def datasets() -> dict[str, Path]:
    """Return the statement sets known by name."""
    return {path.stem: path for path in sorted(BUILT_IN_SETS.glob("*.csv"))}


def resolved(text: str, base: Path, hub: bool = False) -> str:
    """Absolute path of a folder that is there relative to `base`, or missing from a folder that is there.

    A hub id stays as it is. hub: whether what is not there is meant as one.
    """
    path = absolute(text, base)
    missing = "/" in text and path.parent.is_dir() and not hub
    return str(path) if missing or path.exists() else text


def check_names(names: dict):
    """Return the names, if all of them can be part of a path; raises ValueError for the first that cannot."""
    for name in names:
        plain = name.isascii() and all(c.isalnum() or c in "-_." for c in name)
        if not plain or not 1 <= len(name) <= LONGEST_NAME or name.startswith("."):
            raise ValueError(
                f"{shown(repr(name))} is no usable name: 1 to {LONGEST_NAME} letters (a-z, A-Z), digits, '-', '_' and "
                "'.', no leading '.'"
            )
    return names


def portable(value: Any) -> Any:
    """Return a job or schema with paths into this package under one name, wherever it is installed.

    >>> portable({"csv": f"{HERE}/embedded/facts/cities.csv"})
    {'csv': 'posttrace:embedded/facts/cities.csv'}
    """
    if isinstance(value, dict):
        return {key: portable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [portable(one) for one in value]
    return value.replace(f"{HERE}/", "posttrace:", 1) if isinstance(value, str) else value
