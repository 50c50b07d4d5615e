"""What an answer is: a refusal or not, and whether it goes round in circles."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from posttrace.pipeline.errors import JobError
from posttrace.pipeline.files import MB, read_text


def read_phrases(path: str) -> tuple[str, ...]:
    """Refusal phrases, one a line, empty lines left out.

    Raises
    ------
    JobError
        If the file cannot be read or has none.

    Examples
    --------
    >>> read_phrases("pipeline/studies/refusal/phrases.txt")[0]               # doctest: +SKIP
    'I cannot'
    """
    lines = read_text(path, "phrases", "edit phrases", largest=MB).splitlines()
    phrases = tuple(line.strip() for line in lines if line.strip())
    if not phrases:
        raise JobError(f"phrases: {path} has no phrase; give one a line")
    return phrases


def matched_phrase(answer: str, phrases: Sequence[str]) -> str:
    """Return the refusal phrase that an answer begins with (the longest), or "".

    Case, the kind of apostrophe and what stands before the first letter do not matter.

    Examples
    --------
    >>> matched_phrase(" I can’t help you.", ["I can", "I can't"])
    "I can't"
    """
    text = _plain(answer)
    return max((p for p in phrases if text.startswith(_plain(p))), key=len, default="")


def repeated_share(tokens: Sequence[int]) -> float:
    """Share of an answer's pairs of neighbouring tokens that it had before; 0 for fewer than two pairs.

    Examples
    --------
    >>> repeated_share([5, 6, 5, 6, 5])
    0.5
    """
    pairs = list(pairwise(tokens))
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0


def _plain(text: str) -> str:
    return text.replace("’", "'").lstrip(" \t\n\"'*“‘").casefold()
