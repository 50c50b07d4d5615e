"""A job: one YAML file that says which models, which statements and which operations.

>>> job = load_job("knowledge", ["max_pairs=8", "sets=[cities]"])
>>> job.study, job.max_pairs, [s.name for s in job.sets]
('knowledge', 8, ['cities'])
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path, PurePath
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from posttrace.pipeline.errors import JobError, shown
from posttrace.pipeline.files import MB, absolute, read_text
from posttrace.pipeline.plain_yaml import DEEPEST, load_yaml
from posttrace.pipeline.spec import HERE, FamilyJob, resolved
from posttrace.pipeline.studies import STUDIES, job_class
from posttrace.stores.errors import did_you_mean

BUILT_IN_JOBS = HERE / "jobs"

Job = FamilyJob
"""Any study's job; the key `study` tells them apart."""


MISTAKES = 20
"""Lines of a message at most, one a mistake."""


def built_in_jobs() -> dict[str, Path]:
    """Return the jobs known by name."""
    return {path.stem: path for path in sorted(BUILT_IN_JOBS.glob("*.yaml"))}


def question(path: Path) -> str:
    """Return the question that a built-in job answers: the first sentence of the comment at its top.

    Examples
    --------
    >>> question(built_in_jobs()["difference"])
    'What changed between the stages, on any text, with no labels and no hypothesis?'
    """
    comment = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return re.split(r"(?<=[?.]) ", " ".join(line.removeprefix("# ") for line in comment))[0]


def load_job(name: str, overrides: Sequence[str] = ()) -> Job:
    """Read a job from a YAML file or by the name of a built-in one, apply overrides, check it.

    Parameters
    ----------
    name
        A file, or a built-in job (`posttrace ls jobs`). Paths in the file are relative to the file.
    overrides
        `key.path=value` each; values are YAML, paths relative to the working directory.

    Raises
    ------
    JobError
        Names the file, the key, the value and the fix.

    Examples
    --------
    >>> load_job("knowledge", ["execution.device=cpu"]).execution.device
    'cpu'
    """
    known = built_in_jobs()
    path, near, name = known.get(name, Path(name)), did_you_mean(name, known), shown(name)
    fix = f"check the path, or name a built-in job{near} ({', '.join(known)})"
    try:
        raw = load_yaml(read_text(path, name, fix, largest=MB))
    except ValueError as error:
        raise JobError(f"{name}: not a readable YAML file: {error}") from None
    if not isinstance(raw, dict):
        raise JobError(f"{name}: a job is a YAML mapping (study: ..., family: ..., sets: ...)")
    _resolve_paths(raw, path.parent)
    for override in overrides:
        _override(raw, override)
    return check_job(raw, name)


def make_job(declared: Mapping[str, Any]) -> Job:
    """Check a job that is built in code, with the keys of a job file.

    Parameters
    ----------
    declared
        The keys; paths are relative to the working directory.

    Raises
    ------
    JobError
        Names the key, the value and the fix.

    Examples
    --------
    >>> declared = {"study": "knowledge", "family": "embedded", "sets": ["cities"], "max_pairs": 8}
    >>> make_job(declared).max_pairs
    8
    """
    raw = _plain(declared)
    if not isinstance(raw, dict):
        raise JobError(
            f"job: {shown(repr(declared))} is no mapping; write job({{'study': ..., 'family': ...}})"
        )
    _resolve_paths(raw, Path.cwd())
    return check_job(raw, "job")


def _plain(value: Any) -> Any:
    """Return the value as YAML would give it."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, PurePath) else value


def check_job(raw: dict, name: str) -> Job:
    """Return the job that a mapping declares; raises JobError with a line per mistake."""
    study = raw.get("study")
    if not isinstance(study, str) or study not in STUDIES:
        near = did_you_mean(study, STUDIES)
        raise JobError(
            f"{name}: study: {shown(repr(study))} is none of {', '.join(STUDIES)}{near}; edit study"
        )
    kind = job_class(study)
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        # A value that may have several types gives a line for each: the last one, of the fullest type, says most.
        lines = {e["loc"][:1] if e["loc"][:1] == ("layers",) else e["loc"]: e for e in error.errors()}
        # An item that is wrong is no item, of which pydantic complains again.
        wrong = {place[:n] for place in lines for n in range(len(place))}
        said = [
            f"{name}: {_explain(study, kind, e)}"
            for place, e in lines.items()
            if e["type"] != "too_short" or place not in wrong
        ]
        more = [f"{name}: and {len(said) - MISTAKES} more mistakes"] if len(said) > MISTAKES else []
        raise JobError("\n".join([*said[:MISTAKES], *more])) from None


def _explain(study: str, kind: type[Job], error: ErrorDetails) -> str:
    kinds = ("tuple[", "literal[", "constrained-")
    place = shown(".".join(str(p) for p in error["loc"] if not str(p).startswith(kinds)))
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        *parents, key = error["loc"]
        keys = _keys_at(kind, parents)
        holder = shown(".".join(map(str, parents))) or "a job of this study"
        return (
            f"{place}: unknown key{did_you_mean(key, keys)}; {holder} has {', '.join(keys)} "
            f"(posttrace describe {study})"
        )
    if place.startswith("answers") and isinstance(error["input"], bool):
        return f"{place}: YAML reads {error['input']} as a boolean; quote it, with its leading space"
    got = "" if error["type"] in ("missing", "value_error") else f" (it is {shown(repr(error['input']))})"
    return f"{place}: {message}{got}" if place else f"{message}{got}"


def _keys_at(kind: type[Job], parents: Sequence[int | str]) -> list[str]:
    """Return the keys that a job may have at a place, e.g. those of `execution`."""
    kinds: list[type[BaseModel]] = [kind]
    for part in parents:
        fields = [one.model_fields[str(part)] for one in kinds if part in one.model_fields]
        # What is no field is a number in a list, a name in a mapping, or the tag of one of several kinds.
        kinds = [one for field in fields for one in _kinds_in(field.annotation)] if fields else kinds
    return list(dict.fromkeys(key for one in kinds for key in one.model_fields))


def _kinds_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for inner in get_args(annotation) for kind in _kinds_in(inner)]


def _override(raw: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    override = shown(override)
    if not (key and equals):
        raise JobError(f"--set {override}: write it as key.path=value, e.g. --set max_pairs=8")
    try:
        value = load_yaml(text)
    except ValueError as error:
        raise JobError(f"--set {override}: not a YAML value: {error}") from None
    *parents, last = key.split(".")
    if len(parents) >= DEEPEST:
        raise JobError(f"--set {override}: {len(parents)} keys deep, a job goes {DEEPEST} deep at most")
    place: Any = raw
    for depth, parent in enumerate(parents):
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            where = ".".join(parents[: depth + 1])
            raise JobError(
                f"--set {override}: {where} is {shown(repr(place))} in the job, it has no keys; set {where} as a whole"
            )
    place[last] = value
    alone: dict[str, Any] = {}
    branch = alone
    for parent in parents:
        branch = branch.setdefault(parent, {})
    branch[last] = value
    _resolve_paths(alone, Path.cwd())
    place[last] = branch[last]


FILES = ("csv", "file", "messages", "store", "phrases", "openings")
"""Keys of a job, in whatever depth, whose values are paths."""


def _resolve_paths(raw: dict, base: Path) -> None:
    """Make every path in a job absolute, in place."""
    family = raw.get("family")
    if isinstance(family, dict) and isinstance(family.get("stages"), dict):
        for stage, value in family["stages"].items():
            if isinstance(value, str):
                family["stages"][stage] = resolved(value, base)
            elif isinstance(value, dict) and isinstance(value.get("model"), str):
                value["model"] = resolved(value["model"], base, hub=value.get("revision") is not None)
    sets = raw["sets"] if isinstance(raw.get("sets"), list) else []
    for i, value in enumerate(sets):
        if isinstance(value, str) and value.endswith(".csv"):
            sets[i] = _absolute(value, base)
    for kind in ("harmful", "harmless"):
        if isinstance(raw.get(kind), str) and raw[kind].endswith(".csv"):
            raw[kind] = _absolute(raw[kind], base)
    _resolve_files(raw, base)


def _resolve_files(value, base: Path) -> None:
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(inner, dict | list):
            _resolve_files(inner, base)
        elif key in FILES and isinstance(inner, str) and "://" not in inner:
            value[key] = _absolute(inner, base)


def _absolute(text: str, base: Path) -> str:
    return str(absolute(text, base))
