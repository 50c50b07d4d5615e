"""Text to tokens: which tokens of a prompt belong to its statement, and which answers are single tokens."""

from __future__ import annotations

from dataclasses import dataclass

from posttrace.tracers.errors import TracerError


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt, split where its statement begins.

    The statement is the last, unlabelled one of a few-shot prompt, its suffix included; everything before it
    (beginning-of-text token, few-shot block) is the prefix.
    """

    text: str
    ids: tuple[int, ...]
    start: int
    """Index of the first statement token in `ids`."""
    spans: tuple[tuple[int, int], ...]
    """Per statement token: its [begin, end) characters, counted from where the statement begins."""

    @property
    def prefix(self) -> tuple[int, ...]:
        return self.ids[: self.start]

    @property
    def statement(self) -> tuple[int, ...]:
        return self.ids[self.start :]


def encode(tokenizer, prefix: str, statement: str) -> Prompt:
    """Tokenise `prefix + statement` as a whole and find the statement's tokens from character offsets.

    >>> encode(tokenizer, "", "The city of Lyon is in France.").start      # doctest: +SKIP
    1

    A token that straddles the border counts as the statement's. Raises TracerError when the tokenizer gives
    the statement no token.
    """
    text = prefix + statement
    ids, offsets = _tokens(tokenizer, text)
    border = len(prefix)
    start = next((i for i, (_, end) in enumerate(offsets) if end > border), None)
    if start is None:
        raise TracerError(f"prompt {text[-60:]!r}: its statement has no token; give it a text")
    spans = tuple((max(begin - border, 0), end - border) for begin, end in offsets[start:])
    return Prompt(text=text, ids=tuple(ids), start=start, spans=spans)


def answer_ids(tokenizer, prompt: str, answers: tuple[str, str]) -> tuple[int, int]:
    """Token ids of the two answers that continue `prompt`, each a single token.

    >>> answer_ids(tokenizer, "This statement is:", (" TRUE", " FALSE"))   # doctest: +SKIP
    (287, 288)

    Raises TracerError when an answer is not exactly one token there, or two answers are the same one.
    """
    (before, _), found = _tokens(tokenizer, prompt), []
    for answer in answers:
        after, _ = _tokens(tokenizer, prompt + answer)
        if len(after) != len(before) + 1 or after[: len(before)] != before:
            pieces = tokenizer.convert_ids_to_tokens(tokenizer(answer, add_special_tokens=False)["input_ids"])
            raise TracerError(
                f"answers: {answer!r} after {prompt[-24:]!r} is not one token ({len(pieces)}: {pieces}); "
                "choose answers that the tokenizer keeps whole (a leading space often matters); edit answers"
            )
        found.append(after[-1])
    if len(set(found)) < len(found):
        raise TracerError(f"answers: {list(answers)} are the same token for this tokenizer; edit answers")
    first, second = found
    return first, second


def _tokens(tokenizer, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and character offsets of a text that is to be continued, without an end-of-text token."""
    encoding = tokenizer(text, return_offsets_mapping=True)
    ids, offsets = list(encoding["input_ids"]), list(encoding["offset_mapping"])
    while ids and offsets[-1][0] == offsets[-1][1] and ids[-1] in tokenizer.all_special_ids:
        ids.pop()
        offsets.pop()
    return ids, offsets
