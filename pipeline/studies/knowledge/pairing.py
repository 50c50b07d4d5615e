"""Make pairs of a true and a false statement whose tokens lie side by side, and name the tokens.

Source: Du et al. 2025, section 3 and appendix, as in docs/decisions/002-pairs.md.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import dataclass

import regex

from posttrace.pipeline.errors import JobError
from posttrace.pipeline.statements import Statement
from posttrace.tracers.prompts import Prompt, encode

WORD = regex.compile(r"[\w\p{M}]+(?:[-'’][\w\p{M}]+)*")
"""Letters, digits and the marks on them, joined by hyphens and apostrophes."""
COMMON = 0.9
"""A word that stands in this share of a set's statements belongs to the template."""


@dataclass(frozen=True)
class Aligned:
    """The pairs of one set and what their token columns mean."""

    pairs: tuple[tuple[str, str], ...]
    """(true statement, false statement), suffix not included."""
    available: int
    """Pairs that the set has; `pairs` may be a sample of them."""
    labels: tuple[str, ...]
    """Per token column: the token's text, `[s1]`, `[s2]` ... in the subject, `[o1]` ... in the object."""
    roles: tuple[str, ...]
    """Per token column: subject, object, last or other."""


def template_pairs(name: str, statements: list[Statement], tokenizer, context: str, suffix: str) -> Aligned:
    """Pair the statements that share the set's most common token pattern.

    >>> template_pairs("cities", statements, tokenizer, "\\n", " This statement is:").labels    # doctest: +SKIP
    ('The', 'city', 'of', '[s1]', '[s2]', 'is', 'in', '[o1]', '.', 'This', 'statement', 'is', ':')

    context: text in front of the statement (the end of the few-shot block), since it can change the first
    token. The pattern of a statement is its tokens with the subject's and the object's blanked out: statements
    of one pattern have equal length and equal tokens at every template position. Each true statement gets a
    false one with the same last word, from a pool that is used up until one is left per last word, which is
    then used again. Raises JobError when no pair can be made.
    """
    common = _common_words(statements)
    by_pattern: dict[tuple, list[Statement]] = defaultdict(list)
    for statement in statements:
        prompt = encode(tokenizer, context, statement.text + suffix)
        by_pattern[_pattern(prompt, _segments(statement.text, common))].append(statement)
    pattern, kept = max(by_pattern.items(), key=lambda item: len(item[1]))
    pool: dict[str, list[str]] = defaultdict(list)
    for statement in kept:
        if not statement.label:
            pool[_last_word(statement.text)].append(statement.text)
    pairs = []
    for statement in kept:
        candidates = pool[_last_word(statement.text)] if statement.label else []
        if candidates:
            pairs.append((statement.text, candidates.pop() if len(candidates) > 1 else candidates[0]))
    if not pairs:
        raise JobError(
            f"set {name}: no pair: among the {len(kept)} statements with the most common token pattern no true and "
            "false one share their last word; add statements, or use `pairs: free` for a set of ready-made pairs"
        )
    first = encode(tokenizer, context, pairs[0][0] + suffix)
    labels, roles = _name_columns(pattern, first, pairs[0][0] + suffix)
    return Aligned(pairs=tuple(pairs), available=len(pairs), labels=labels, roles=roles)


def free_pairs(name: str, statements: list[Statement], tokenizer, context: str, suffix: str) -> Aligned:
    """Take consecutive true and false rows as pairs, and keep those of equal token length.

    >>> free_pairs("tulu_extracted", statements, tokenizer, "\\n", " This statement is:").available  # doctest: +SKIP
    41

    Rows are tied by the file's `pair` (or `id`) column, unless that just numbers the rows. Raises JobError when
    no pair has equal lengths.
    """
    pairs, lengths, i = [], [], 0
    while i + 1 < len(statements):
        first, second = statements[i], statements[i + 1]
        if first.label == second.label or first.pair != second.pair:
            i += 1
            continue
        i += 2
        true, false = (first, second) if first.label else (second, first)
        encoded = [encode(tokenizer, context, s.text + suffix) for s in (true, false)]
        if len(encoded[0].statement) == len(encoded[1].statement):
            pairs.append((true.text, false.text))
            lengths.append(len(encoded[0].statement))
    if not pairs:
        raise JobError(
            f"set {name}: no pair: no two consecutive rows are a true and a false statement of equal token length; "
            "put the two statements of a pair in consecutive rows"
        )
    longest = max(lengths)
    labels = tuple(str(column) for column in range(longest))
    return Aligned(tuple(pairs), len(pairs), labels, ("other",) * (longest - 1) + ("last",))


def sample(aligned: Aligned, n: int | None, seed: str) -> Aligned:
    """At most n of the pairs, drawn with the seed and left in their order."""
    if n is None or n >= len(aligned.pairs):
        return aligned
    chosen = sorted(random.Random(seed).sample(range(len(aligned.pairs)), n))
    return Aligned(tuple(aligned.pairs[i] for i in chosen), aligned.available, aligned.labels, aligned.roles)


def roles_within(clean: Prompt, corrupt: Prompt, width: int) -> list[str]:
    """Per column of a free-form pair: knowledge (the tokens differ), last, other, or "" past its end.

    The two prompts must have statements of equal length.
    """
    roles = [
        "knowledge" if a != b else "other" for a, b in zip(clean.statement, corrupt.statement, strict=True)
    ]
    roles[-1] = "last"
    return roles + [""] * (width - len(roles))


def token_texts(prompt: Prompt, statement: str) -> list[str]:
    """The text of each statement token, without the spaces around it."""
    return [_shown(statement[begin:end]) for begin, end in prompt.spans]


def _common_words(statements: list[Statement]) -> set[str]:
    counts = Counter(word for s in statements for word in set(WORD.findall(s.text)))
    return {word for word, count in counts.items() if count >= COMMON * len(statements)}


def _segments(text: str, common: set[str]) -> list[tuple[int, int]]:
    """Character spans of the runs of words that are not the template's: subject first, object last."""
    segments: list[tuple[int, int]] = []
    open_run = False
    for word in WORD.finditer(text):
        if word.group() in common:
            open_run = False
        elif open_run:
            segments[-1] = (segments[-1][0], word.end())
        else:
            segments.append(word.span())
            open_run = True
    return segments


def _pattern(prompt: Prompt, segments: list[tuple[int, int]]) -> tuple[int, ...]:
    """Per statement token: its id, or -1 - k where it touches segment k."""
    pattern = []
    for token, (begin, end) in zip(prompt.statement, prompt.spans, strict=True):
        touched = [k for k, (a, b) in enumerate(segments) if begin < b and end > a]
        pattern.append(-1 - touched[0] if touched else token)
    return tuple(pattern)


def _name_columns(pattern: tuple[int, ...], prompt: Prompt, statement: str):
    segments = sorted({-1 - p for p in pattern if p < 0})
    letter = {k: "x" for k in segments}
    letter.update({segments[0]: "s"} if segments else {})
    letter.update({segments[-1]: "o"} if len(segments) > 1 else {})
    labels, roles, counts = [], [], Counter[str]()
    for p, text in zip(pattern, token_texts(prompt, statement), strict=True):
        kind = letter[-1 - p] if p < 0 else ""
        counts[kind] += 1
        labels.append(f"[{kind}{counts[kind]}]" if kind else text)
        roles.append({"s": "subject", "o": "object"}.get(kind, "other"))
    roles[-1] = "last"
    return tuple(labels), tuple(roles)


def _last_word(text: str) -> str:
    return text.split()[-1]


def _shown(text: str) -> str:
    return text.strip() or repr(text)[1:-1]
