"""Cut a text file into documents."""

from __future__ import annotations

import re
from collections.abc import Iterator

SPACES = re.compile(r"\s*")
CHARACTERS_PER_TOKEN = 4
"""Of a text file, from which documents are cut for all tokenizers alike."""


def cut(content: str, size: int) -> Iterator[str]:
    r"""Yield pieces of at most `size` characters, cut at ends of lines where there are any, else of words.

    >>> list(cut("one two three\nfour\nfive", 10))
    ['one two', 'three\nfour', 'five']
    """
    content = content.strip()
    begin = 0
    while len(content) - begin > size:
        head = content[begin : begin + size + 1]
        end = next((at for at in (head.rfind("\n"), head.rfind(" ")) if at > 0), size)
        yield head[:end].strip()
        rest = SPACES.match(content, begin + end)
        assert rest is not None  # it matches no space, too
        begin = rest.end()
    if content[begin:]:
        yield content[begin:]
