"""What a job of a study may say: every key with its type, default, range and meaning, read off its classes.

>>> schema("knowledge")["properties"]["max_pairs"]["default"] is None
True
"""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

from posttrace.pipeline.errors import JobError, shown
from posttrace.pipeline.spec import FamilyJob, portable
from posttrace.pipeline.studies import STUDIES, job_class
from posttrace.stores.errors import did_you_mean

WIDTH = 100
"""Columns of the text."""

TYPES = {"string": "text", "integer": "whole number", "boolean": "true or false", "null": "null"}
LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "multipleOf": "a multiple of {}",
    "minLength": "not empty",
    "maxLength": "at most {} characters",
}


class Key(NamedTuple):
    """One key of a job."""

    place: str
    """`execution.device`; `sets[].name` in a list, `family.stages.*.model` in a mapping with names of one's own."""
    type: str
    default: str
    """As YAML; `required` if there is none."""
    range: str
    """Allowed values beyond the type, in words."""
    doc: str


def schema(study: str) -> dict[str, Any]:
    """Return the JSON schema of a study's jobs, by which editors complete and check a YAML file.

    >>> schema("trace")["properties"]["study"]["const"]
    'trace'

    Raises JobError for an unknown study.
    """
    if study not in STUDIES:
        raise JobError(
            f"{shown(study)}: no such study{did_you_mean(study, STUDIES)}; there are {', '.join(STUDIES)}"
        )
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return portable(dialect | job_class(study).model_json_schema())


def keys(study: str) -> list[Key]:
    """Every key of a study's jobs, nested ones after the key that holds them.

    >>> [key.place for key in keys("confidence") if key.place.startswith("text.")]
    ['text.file', 'text.documents', 'text.tokens', 'text.per_unit']

    Raises JobError for an unknown study.
    """
    whole = schema(study)
    found: dict[str, Key] = {}
    for key in _keys(whole, whole, ""):
        first = found.setdefault(key.place, key)
        if first.type != key.type:  # the tag of one of several kinds of mapping
            found[key.place] = first._replace(type=f"{first.type} | {key.type}", default="required")
    return list(found.values())


def described(study: str) -> str:
    """Return the keys of a study's jobs as text.

    >>> described("knowledge").splitlines()[0]
    'knowledge: Causal tracing within and across the stages of a family (Du et al. 2025, section 3).'

    Raises JobError for an unknown study.
    """
    found = keys(study)
    about = inspect.getdoc(job_class(study)) or ""
    lines = [f"{study}: {about.splitlines()[0]}"]
    for key in found:
        facts = [key.type, key.default if key.default == "required" else f"default {key.default}"]
        lines += ["", f"{key.place}   {', '.join([*facts, *([key.range] if key.range else [])])}"]
        lines += textwrap.wrap(key.doc, WIDTH, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def _keys(whole: dict[str, Any], node: dict[str, Any], prefix: str) -> Iterator[Key]:
    """Yield the keys of the mapping that a schema node stands for, or of each kind of mapping."""
    for one in _alternatives(whole, node):
        if one.get("type") == "array" and isinstance(one.get("items"), dict):
            yield from _keys(whole, one["items"], f"{prefix[:-1]}[].")
        if isinstance(one.get("additionalProperties"), dict):
            yield from _keys(whole, one["additionalProperties"], f"{prefix}*.")
        required = one.get("required", ())
        for name, inner in one.get("properties", {}).items():
            nested = list(_keys(whole, inner, f"{prefix}{name}."))
            default = "required" if name in required else _default(inner, bool(nested))
            doc = inner.get("description") or _alternatives(whole, inner)[0].get("description")
            if doc is None and not prefix and name in FamilyJob.model_fields:  # narrowed by the study
                doc = FamilyJob.model_fields[name].description
            kind = _type(whole, inner)
            yield Key(f"{prefix}{name}", kind, default, _range(whole, inner), " ".join((doc or "").split()))
            yield from nested


def _default(node: dict[str, Any], nested: bool) -> str:
    value = node.get("default", {} if node.get("type") == "object" else None)
    # The keys within say what they default to.
    return (
        "as below" if nested and isinstance(value, dict) and value else json.dumps(value, ensure_ascii=False)
    )


def _alternatives(whole: dict[str, Any], node: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the node itself, or what it refers to or may be instead, as far as that goes."""
    if "$ref" in node:
        return _alternatives(whole, whole["$defs"][node["$ref"].rpartition("/")[2]])
    several = node.get("anyOf") or node.get("oneOf")
    return [one for inner in several for one in _alternatives(whole, inner)] if several else [node]


def _type(whole: dict[str, Any], node: dict[str, Any]) -> str:
    return " or ".join(dict.fromkeys(_word(whole, one) for one in _alternatives(whole, node)))


def _word(whole: dict[str, Any], node: dict[str, Any]) -> str:
    if "const" in node or "enum" in node:
        return " | ".join(map(str, node.get("enum", [node.get("const")])))
    kind = node.get("type")
    if kind == "array" and "prefixItems" in node:
        return f"[{', '.join(_type(whole, one) for one in node['prefixItems'])}]"
    if kind == "array":
        return f"list of ({_type(whole, node['items'])})"
    if kind == "object":
        return "mapping"
    if kind == "string" and "title" not in node and "description" in node:
        return node["description"]  # the short form of a mapping
    return TYPES.get(str(kind), str(kind or "anything"))


def _range(whole: dict[str, Any], node: dict[str, Any]) -> str:
    words = []
    for one in _alternatives(whole, node):
        if one.get("type") == "array" and "items" in one:
            words += ["not empty"] if one.get("minItems") else []
            words += [
                f"each {inner}" for inner in [_range(whole, one["items"])] if inner and inner != "not empty"
            ]
        elif one.get("type") in ("integer", "number", "string"):
            words += [text.format(_number(one[key])) for key, text in LIMITS.items() if key in one]
    return ", ".join(dict.fromkeys(words))


def _number(value: Any) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"
