"""Check values against a JSON schema: the keywords that job schemas use, and no others."""

TYPES = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
    "array": (list, tuple),
    "object": dict,
}
SAYS_NOTHING = {"$defs", "$schema", "title", "description", "default", "discriminator", "examples"}


def faults(value, schema, whole=None, place=""):
    """What is wrong with a value, a line each."""
    whole = whole or schema
    found = []
    for keyword, wanted in schema.items():
        if keyword in SAYS_NOTHING:
            continue
        found += CHECKS[keyword](value, wanted, schema, whole, place)
    return found


def _type(value, wanted, schema, whole, place):
    fits = isinstance(value, TYPES[wanted]) and (wanted == "boolean" or not isinstance(value, bool))
    return [] if fits else [f"{place}: {value!r} is no {wanted}"]


def _any(value, wanted, schema, whole, place):
    each = [faults(value, one, whole, place) for one in wanted]
    return [] if [] in each else min(each, key=len)


def _properties(value, wanted, schema, whole, place):
    if not isinstance(value, dict):
        return []
    return [f for k, v in value.items() if k in wanted for f in faults(v, wanted[k], whole, f"{place}.{k}")]


def _additional(value, wanted, schema, whole, place):
    more = [k for k in value if k not in schema.get("properties", {})] if isinstance(value, dict) else []
    if wanted is False:
        return [f"{place}.{k}: unknown key" for k in more]
    return [f for k in more if wanted is not True for f in faults(value[k], wanted, whole, f"{place}.{k}")]


def _items(value, wanted, schema, whole, place):
    listed = value if isinstance(value, list | tuple) else []
    return [f for i, one in enumerate(listed) for f in faults(one, wanted, whole, f"{place}.{i}")]


def _in_order(value, wanted, schema, whole, place):
    pairs = zip(value, wanted, strict=False) if isinstance(value, list | tuple) else []
    return [f for i, (one, its) in enumerate(pairs) for f in faults(one, its, whole, f"{place}.{i}")]


def _limit(holds, kinds=(int, float)):
    def check(value, wanted, schema, whole, place):
        applies = isinstance(value, kinds) and not isinstance(value, bool)
        return [] if not applies or holds(value, wanted) else [f"{place}: {value!r} against {wanted}"]

    return check


CHECKS = {
    "type": _type,
    "anyOf": _any,
    "oneOf": _any,
    "properties": _properties,
    "additionalProperties": _additional,
    "items": _items,
    "prefixItems": _in_order,
    "$ref": lambda v, name, s, whole, place: faults(v, whole["$defs"][name.split("/")[-1]], whole, place),
    "const": lambda v, wanted, s, w, place: [] if v == wanted else [f"{place}: {v!r} is not {wanted!r}"],
    "enum": lambda v, wanted, s, w, place: [] if v in wanted else [f"{place}: {v!r} is none of {wanted}"],
    "required": lambda v, wanted, s, w, place: [
        f"{place}.{key}: missing" for key in wanted if isinstance(v, dict) and key not in v
    ],
    "minimum": _limit(lambda v, wanted: v >= wanted),
    "maximum": _limit(lambda v, wanted: v <= wanted),
    "exclusiveMinimum": _limit(lambda v, wanted: v > wanted),
    "exclusiveMaximum": _limit(lambda v, wanted: v < wanted),
    "multipleOf": _limit(lambda v, wanted: v % wanted == 0),
    "minLength": _limit(lambda v, wanted: len(v) >= wanted, str),
    "maxLength": _limit(lambda v, wanted: len(v) <= wanted, str),
    "minItems": _limit(lambda v, wanted: len(v) >= wanted, (list, tuple)),
    "maxItems": _limit(lambda v, wanted: len(v) <= wanted, (list, tuple)),
    "minProperties": _limit(lambda v, wanted: len(v) >= wanted, dict),
}
