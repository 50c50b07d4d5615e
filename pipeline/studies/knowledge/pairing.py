"""Make pairs of a true and a false statement whose tokens lie side by side, and name the tokens.

Source: Du et al. 2025, section 3 and appendix, as in docs/decisions/002-pairs.md.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace

import regex

from posttrace.pipeline.errors import JobError
from posttrace.pipeline.statements import Statement, sampled
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
    unequal: int = 0
    """Free-form pairs that are left out, since their statements differ in length."""


def template_pairs(
    name: str,
    statements: list[Statement],
    tokenizer,
    context: str,
    suffix: str,
    pair_context: str | None = None,
    like: str | None = None,
) -> Aligned:
    r"""Pair the statements that share the set's most common token pattern.

    >>> template_pairs("cities", statements, tokenizer, "\n", " This statement is:").labels    # doctest: +SKIP
    ('The', 'city', 'of', '[s1]', '[s2]', 'is', 'in', '[o1]', '.', 'This', 'statement', 'is', ':')

    The pattern of a statement is its tokens with the subject's and the object's blanked out: statements of one pattern
    have equal length and equal tokens at every template position. Each true statement gets a false one with the same
    last word, from a pool that is used up until one is left per last word, which is then used again.

    Parameters
    ----------
    context: text in front of the statement (the end of the few-shot block), since it can change the first token.
    pair_context: the same for the tokens that decide on the pairs, where they are others; pairs that then do not lie
        side by side in `context` are left out (`available` counts them).
    like: a statement that has the wanted pattern.

    Raises
    ------
    JobError when no pair can be made.
    """
    common = _common_words(statements)
    pair_context = context if pair_context is None else pair_context

    def pattern_in(before: str, text: str) -> tuple[int, ...]:
        return _pattern(encode(tokenizer, before, text + suffix), _segments(text, common))

    by_pattern: dict[tuple, list[Statement]] = defaultdict(list)
    for statement in statements:
        by_pattern[pattern_in(pair_context, statement.text)].append(statement)
    pattern, kept = max(by_pattern.items(), key=lambda item: len(item[1]))
    if like is not None:
        pattern = pattern_in(pair_context, like)
        kept = by_pattern.get(pattern, [])
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
        which = "the most common token pattern" if like is None else f"the token pattern of {like!r}"
        raise JobError(
            f"set {name}: no pair: among the {len(kept)} statements with {which} no true and false one share their "
            "last word; add statements, or use `pairs: free` for a set of ready-made pairs"
        )
    available = len(pairs)
    if pair_context != context:
        # Patching goes token by token: what lay side by side alone has to do so in the prompt as well.
        inside = [{pattern_in(context, text) for text in pair} for pair in pairs]
        shared = Counter(next(iter(one)) for one in inside if len(one) == 1)
        if not shared:
            raise JobError(
                f"set {name}: none of the {available} pairs of bare statements has equal tokens after the examples; "
                "set pair_by: prompt"
            )
        pattern = shared.most_common(1)[0][0]
        pairs = [pair for pair, patterns in zip(pairs, inside, strict=True) if patterns == {pattern}]
    first = encode(tokenizer, context, pairs[0][0] + suffix)
    labels, roles = _name_columns(pattern, first, pairs[0][0] + suffix)
    return Aligned(pairs=tuple(pairs), available=available, labels=labels, roles=roles)


def free_pairs(
    name: str,
    statements: list[Statement],
    tokenizer,
    context: str,
    suffix: str,
    pair_context: str | None = None,
) -> Aligned:
    r"""Take consecutive true and false rows as pairs, and keep those of equal token length.

    >>> free_pairs("tulu_extracted", statements, tokenizer, "\n", " This statement is:").available  # doctest: +SKIP
    41

    Rows are tied by the file's `pair` (or `id`) column, unless that just numbers the rows. The arguments are those of
    `template_pairs`. Raises JobError when no pair has equal lengths.
    """
    pairs, lengths, i, available, unequal = [], [], 0, 0, 0
    while i + 1 < len(statements):
        first, second = statements[i], statements[i + 1]
        if first.label == second.label or first.pair != second.pair:
            i += 1
            continue
        i += 2
        true, false = (first.text, second.text) if first.label else (second.text, first.text)
        within = _lengths(tokenizer, context, suffix, true, false)
        alone = within if pair_context is None else _lengths(tokenizer, pair_context, suffix, true, false)
        available += len(set(alone)) == 1
        if len(set(alone)) == len(set(within)) == 1:
            pairs.append((true, false))
            lengths.append(within[0])
        else:
            unequal += 1
    if not pairs:
        raise JobError(
            f"set {name}: no pair: no two consecutive rows are a true and a false statement of equal token length; "
            "put the two statements of a pair in consecutive rows"
        )
    longest = max(lengths)
    labels = tuple(str(column) for column in range(longest))
    return Aligned(tuple(pairs), available, labels, ("other",) * (longest - 1) + ("last",), unequal)


def _lengths(tokenizer, context: str, suffix: str, *texts: str) -> list[int]:
    """Statement tokens of each text."""
    return [len(encode(tokenizer, context, text + suffix).statement) for text in texts]


def sample(aligned: Aligned, n: int | None, seed: str) -> Aligned:
    """At most n of the pairs, drawn with the seed and left in their order."""
    return replace(aligned, pairs=tuple(sampled(aligned.pairs, n, seed)))


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
    """Return the text of each statement token, without the spaces around it."""
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
