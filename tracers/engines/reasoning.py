"""Answers that begin with a reasoning block: where the block ends and the answer begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from posttrace.tracers.engines.edits import Edit
from posttrace.tracers.engines.generation import Ids, generate

BLANKS = 3
"""Tokens of white space, at most, between a block and the answer."""


@dataclass(frozen=True)
class Reasoning:
    """How a model marks its reasoning, and how much of it there may be."""

    begin: int
    """Token that opens a block."""
    end: int
    """Token that closes it."""
    close: tuple[int, ...]
    """What closes a block that is cut short, up to where the answer begins."""
    empty: tuple[int, ...]
    """A block without reasoning, up to where the answer begins."""
    blank: tuple[int, ...]
    """Tokens of white space alone, which may stand between a block and the answer."""
    max_tokens: int
    """Tokens of a block after which it is cut short."""


@dataclass(frozen=True)
class Blocks:
    """The reasoning blocks of some prompts."""

    ids: tuple[tuple[int, ...], ...]
    """Per prompt: its new tokens up to where the answer begins; none where there is no block."""
    cut: tuple[bool, ...]
    """Per prompt: whether the block was cut short."""


def reasoning_blocks(
    model,
    prompts: Sequence[Ids],
    edits: Sequence[Edit],
    reasoning: Reasoning,
    *,
    stop: Ids = (),
    max_tokens: int | None = None,
) -> Blocks:
    """Let a model reason, the stream edited, until its answers begin.

    >>> reasoning_blocks(model, prompts, [], reasoning, stop=(2,)).cut         # doctest: +SKIP
    (False, False)

    A prompt has a block if it leaves one open or the first new token opens one. A block that is longer than
    `reasoning.max_tokens`, or ends the whole answer, is closed as `reasoning.close` does. stop, max_tokens: see
    `generate`.
    """
    found: list[tuple[int, ...]] = list(_begun(model, prompts, edits, reasoning, max_tokens))
    rows = [row for row, begun in enumerate(found) if begun or _is_open(prompts[row], reasoning)]
    cut = [False] * len(prompts)
    if rows and reasoning.max_tokens:
        more = generate(
            model,
            [(*prompts[row], *found[row]) for row in rows],
            edits,
            None,
            max_new_tokens=reasoning.max_tokens,
            stop=(reasoning.end, *stop),
            max_tokens=max_tokens,
        ).ids
        for row, ids in zip(rows, more, strict=True):
            found[row] += ids[:-1] if ids[-1] in stop and ids[-1] != reasoning.end else ids
    closed = [row for row in rows if found[row] and found[row][-1] == reasoning.end]
    for row in set(rows) - set(closed):
        found[row] += reasoning.close
        cut[row] = True
    if closed:
        before = [(*prompts[row], *found[row]) for row in closed]
        more = generate(model, before, edits, None, max_new_tokens=BLANKS, max_tokens=max_tokens).ids
        for row, ids in zip(closed, more, strict=True):
            n = next((i for i, token in enumerate(ids) if token not in reasoning.blank), len(ids))
            found[row] += ids[:n]
    return Blocks(ids=tuple(found), cut=tuple(cut))


def answer_starts(
    model, prompts: Sequence[Ids], reasoning: Reasoning, max_tokens: int | None = None
) -> list[tuple[int, ...]]:
    """Prompts up to where the answer begins if the model does not reason: an empty block where it would begin one.

    >>> answer_starts(model, prompts, reasoning)                               # doctest: +SKIP
    [(1, 7, 9, 30, 31), (1, 8)]
    """
    begun = _begun(model, prompts, (), reasoning, max_tokens)
    return [
        (*prompt, *(reasoning.close if _is_open(prompt, reasoning) else reasoning.empty if begins else ()))
        for prompt, begins in zip(prompts, begun, strict=True)
    ]


def _begun(model, prompts, edits, reasoning: Reasoning, max_tokens) -> list[tuple[int, ...]]:
    """Per prompt that leaves no block open: the token that opens one, if that is the first new token."""
    closed = [row for row, prompt in enumerate(prompts) if not _is_open(prompt, reasoning)]
    found: list[tuple[int, ...]] = [()] * len(prompts)
    if closed:
        some = [prompts[row] for row in closed]
        first = generate(model, some, edits, None, max_new_tokens=1, max_tokens=max_tokens).ids
        for row, ids in zip(closed, first, strict=True):
            found[row] = ids if ids[0] == reasoning.begin else ()
    return found


def _is_open(prompt: Ids, reasoning: Reasoning) -> bool:
    """Whether a prompt ends within a reasoning block."""
    marks = [token for token in prompt if token in (reasoning.begin, reasoning.end)]
    return bool(marks) and marks[-1] == reasoning.begin
