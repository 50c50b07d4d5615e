"""Read YAML that people write: nothing but mappings, lists, texts and numbers, of a size that a person can mean."""

from __future__ import annotations

from typing import Any

import yaml

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

DEEPEST = 32
"""Levels of nesting."""
MOST = 200_000
"""Values, counted wherever an alias repeats them."""
INTEGERS = 2**63
TAGS = {
    f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "merge", "seq", "map")
}


def load_yaml(text: str) -> Any:
    """Return the value that a YAML text stands for.

    Raises
    ------
    ValueError
        Saying what is wrong and where: not YAML, a key that stands twice, nesting, aliases or numbers beyond every
        use, text that is no Unicode, tags and dates.

    Examples
    --------
    >>> load_yaml("{a: [1, x], b: null}")
    {'a': [1, 'x'], 'b': None}
    """
    try:
        text.encode()
        _check_depth(text)
        loader = Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _count(node, {}, set())
            value = loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except UnicodeEncodeError:
        raise ValueError("text with a lone surrogate, which is no Unicode character") from None
    _check_values(value, set())
    return value


def _check_depth(text: str) -> None:
    """Before anything is built, since building goes as deep as the text does."""
    depth = 0
    for event in yaml.parse(text, Loader=Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"{_line(event)}: nested more than {DEEPEST} levels deep")


def _count(node: yaml.Node, known: dict[int, int], above: set[int]) -> int:
    """Values below a node, itself included, were every alias written out."""
    if id(node) in above:
        raise ValueError(f"{_line(node)}: an alias (*) that contains itself")
    if id(node) in known:
        return known[id(node)]
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        below = [part for pair in node.value for part in pair]
    else:
        below = node.value if isinstance(node, yaml.SequenceNode) else []
    above.add(id(node))
    total = 1 + sum(_count(part, known, above) for part in below)
    above.remove(id(node))
    if total > MOST:
        raise ValueError(f"{_line(node)}: more than {MOST:,} values, those that aliases (*) repeat included")
    known[id(node)] = total
    _check_kind(node)
    return total


def _check_kind(node: yaml.Node) -> None:
    """Whether a node is what it looks like: a tag can claim a kind that its text is not of."""
    scalar = isinstance(node, yaml.ScalarNode)
    what = f"{_line(node)}: {node.value[:80]!r}" if scalar else _line(node)
    if scalar and node.tag.endswith(":timestamp"):
        raise ValueError(f"{what} is read as a date; quote it")
    plain = yaml.resolver.Resolver().resolve(yaml.ScalarNode, node.value, (True, False)) if scalar else None
    if node.tag not in TAGS or (scalar and node.tag not in (plain, "tag:yaml.org,2002:str")):
        raise ValueError(
            f"{what} has the tag {node.tag[:80]!r}; use plain texts, numbers, lists and mappings"
        )
    if scalar and node.tag.endswith(":int") and len(node.value) > 100:
        raise ValueError(f"{_line(node)}: an integer of {len(node.value):,} digits; integers have 64 bits")


def _check_keys(node: yaml.MappingNode) -> None:
    seen = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if (key.tag, key.value) in seen:
                raise ValueError(f"{_line(key)}: the key {key.value[:80]!r} stands twice in one mapping")
            seen.add((key.tag, key.value))


def _check_values(value: Any, seen: set[int]) -> None:
    if isinstance(value, dict | list):
        if id(value) in seen:
            return
        seen.add(id(value))
        for part in [*value, *value.values()] if isinstance(value, dict) else value:
            _check_values(part, seen)
    elif isinstance(value, str):
        if "\0" in value:
            raise ValueError("text with a NUL character")
    elif isinstance(value, int) and not -INTEGERS <= value < INTEGERS:
        raise ValueError("an integer of more than 64 bits")


def _line(place) -> str:
    return f"line {place.start_mark.line + 1}"
