"""Text to tokens: which tokens of a prompt belong to its statement, and which answers are single tokens."""

from __future__ import annotations

from collections.abc import Sequence
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


def encode(tokenizer, prefix: str, statement: str, special: bool = True) -> Prompt:
    """Tokenise `prefix + statement` as a whole and find the statement's tokens from character offsets.

    >>> encode(tokenizer, "", "The city of Lyon is in France.").start      # doctest: +SKIP
    1

    A token that straddles the border counts as the statement's. A beginning-of-text token is the prefix's, whoever
    wrote it: where the text begins with what the tokenizer puts in front of texts, that stands there once. Raises
    TracerError when the tokenizer gives the statement no token, or the model has no embedding for one.

    special: whether the tokenizer puts it there at all; a chat template writes it itself.
    """
    text = prefix + statement
    ids, offsets, added = _tokens(tokenizer, text, special)
    border = len(prefix)
    start = next((i for i, (_, end) in enumerate(offsets) if i >= added and end > border), None)
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
    before, found = text_ids(tokenizer, prompt), []
    for answer in answers:
        after = text_ids(tokenizer, prompt + answer)
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


def text_ids(tokenizer, text: str, special: bool = True) -> list[int]:
    """Token ids of a text that is to be continued, as `encode` gives them.

    >>> text_ids(tokenizer, "The city of Lyon")                            # doctest: +SKIP
    [1, 83, 287, 12, 941]

    special: see `encode`. Raises TracerError for a token that the model has no embedding for.
    """
    return _tokens(tokenizer, text, special)[0]


def has_unknown(tokenizer, ids: Sequence[int]) -> bool:
    """Whether a text has words that its tokenizer does not know.

    Examples
    --------
    >>> has_unknown(tokenizer, [5, 3])                                     # doctest: +SKIP
    True
    """
    unknown = getattr(tokenizer, "unk_token_id", None)
    # Some tokenizers, which know every byte, name the end of the text as their unknown token.
    return unknown is not None and unknown in ids and tokenizer.unk_token != tokenizer.eos_token


def _tokens(tokenizer, text: str, special: bool = True) -> tuple[list[int], list[tuple[int, int]], int]:
    """Ids and character offsets of a text that is to be continued, and how many of the ids begin it.

    An end-of-text token is left out.
    """
    encoding = tokenizer(text, return_offsets_mapping=True, add_special_tokens=special)
    ids, offsets = list(encoding["input_ids"]), list(encoding["offset_mapping"])
    known = set(tokenizer.all_special_ids)
    while ids and offsets[-1][0] == offsets[-1][1] and ids[-1] in known:
        ids.pop()
        offsets.pop()
    added = 0  # tokens without text of their own
    while added < len(ids) and offsets[added][0] == offsets[added][1] and ids[added] in known:
        added += 1
    if added and ids[:added] == ids[added : 2 * added]:  # the text writes them, too
        ids, offsets = ids[added:], offsets[added:]
    if not added and ids and ids[0] == tokenizer.bos_token_id:
        added = 1
    _check_embedded(tokenizer, ids)
    return ids, offsets, added


def _check_embedded(tokenizer, ids: list[int]) -> None:
    """Whether the tokenizer's model has an embedding for every token (see tracers.models.loading.load_tokenizer)."""
    known = getattr(tokenizer, "embedded", None)
    if known is not None and max(ids, default=0) >= known:
        beyond = next(i for i in ids if i >= known)
        token = tokenizer.convert_ids_to_tokens(beyond)
        raise TracerError(
            f"tokenizer {tokenizer.name_or_path}: token {token!r} has the id {beyond}, but the model embeds ids 0-"
            f"{known - 1} only; take it out of the prompts, or give a checkpoint whose "
            "embedding was resized with its tokenizer"
        )
