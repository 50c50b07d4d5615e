"""Instructions as prompts: each stage's template, its tokens after the instruction, and how answers open and end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from posttrace.pipeline.chat import TemplateFails, written_chats
from posttrace.pipeline.errors import JobError, shown
from posttrace.pipeline.files import MB, read_text
from posttrace.pipeline.plain_yaml import load_yaml
from posttrace.pipeline.studies.refusal.job import BASE_TEMPLATE, RefusalJob
from posttrace.tracers.engines.generation import Openings
from posttrace.tracers.prompts import encode, text_ids

PROBES = ("Go", "Write a poem about 7", "Why is the sky blue?")
"""Instructions that end in unlike ways, so that what prompts have in common is the template."""

Encode = Callable[[str], tuple[int, ...]]


def template_of(job: RefusalJob, stage: str, tokenizer) -> str:
    r"""Return `chat`, or a text with `{instruction}`.

    >>> template_of(job, "base", tokenizer)                           # doctest: +SKIP
    'User: {instruction}\nAssistant:'

    Raises JobError for a post-trained stage whose tokenizer has no chat template.
    """
    chosen = job.template_name(stage)
    if chosen == "chat" and not tokenizer.chat_template:
        raise JobError(
            f"stage {stage}: the tokenizer of {job.family.stages[stage].model} has no chat template; give "
            f"`templates: {{{stage}: base}}` for {BASE_TEMPLATE!r}, or a text of its own with {{instruction}}"
        )
    return BASE_TEMPLATE if chosen == "base" else chosen


def written(job: RefusalJob, stage: str, tokenizer, instructions: Sequence[str]) -> dict[str, str]:
    r"""Return instruction -> prompt, the beginning of the assistant's turn included; those of `PROBES` too.

    >>> written(job, "base", tokenizer, ["Go"])["Go"]                  # doctest: +SKIP
    'User: Go\nAssistant:'

    Raises JobError for a stage without template, or whose chat template does not give prompts.
    """
    template = template_of(job, stage, tokenizer)
    texts = list(dict.fromkeys([*instructions, *PROBES]))
    if template != "chat":
        return {text: template.replace("{instruction}", text) for text in texts}
    try:
        chats = written_chats(job, tokenizer, [[("user", text)] for text in texts])
        return dict(zip(texts, chats, strict=True))
    except TemplateFails as error:
        raise JobError(
            f"templates.{stage}: the chat template of {job.family.stages[stage].model} {shown(error, 300)}; give "
            f"`templates: {{{stage}: base}}` for {BASE_TEMPLATE!r}, or a text of its own with {{instruction}}"
        ) from None


def encoder(template: str, tokenizer) -> Encode:
    """Text of a prompt (and what follows it) -> token ids; a chat template writes its special tokens itself."""
    if template == "chat":
        return lambda text: tuple(text_ids(tokenizer, text, special=False))
    return lambda text: encode(tokenizer, "", text).ids


def tail_length(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens at their ends all prompts have in common.

    >>> tail_length([[1, 7, 8, 9], [2, 5, 8, 9]])
    2
    """
    shared = 0
    while all(len(p) > shared for p in prompts) and len({p[-1 - shared] for p in prompts}) == 1:
        shared += 1
    return shared


def openings_after(encode: Encode, prompt: str, path: str, stage: str) -> Openings:
    r"""Return the first tokens of the openings in a file, as they follow a prompt, with and without a space before.

    >>> openings_after(encode, "User: Go\nAssistant:", job.openings, "base").refusal      # doctest: +SKIP
    (43, 271)

    A token that begins openings of both kinds counts for neither. Raises JobError when the file does not fit, or no
    token is left of a kind.
    """
    try:
        known = load_yaml(read_text(path, "openings", "edit openings", largest=MB))
    except ValueError as error:
        raise JobError(f"openings: {shown(path)} is not a readable YAML file: {error}") from None
    names = ("refusal", "compliant")
    kinds: dict[str, Any] = {kind: known.get(kind) if isinstance(known, dict) else None for kind in names}
    for kind, texts in kinds.items():
        if not isinstance(texts, list):
            raise JobError(
                f"openings: {shown(path)}: {kind} is {shown(repr(texts))}; give two lists of texts, "
                f"{' and '.join(names)}"
            )
        wrong = [text for text in texts if not isinstance(text, str)]
        if wrong:
            raise JobError(
                f"openings: {shown(path)}: {kind}: YAML reads {shown(repr(wrong[0]))} as no text; quote it"
            )
    before = encode(prompt)
    found: dict[str, set[int]] = {}
    for kind, texts in kinds.items():
        wholes = [encode(prompt + space + text) for text in texts for space in ("", " ")]
        found[kind] = {
            ids[len(before)] for ids in wholes if ids[: len(before)] == before and len(ids) > len(before)
        }
    both = found["refusal"] & found["compliant"]
    for kind, tokens in found.items():
        if not tokens - both:
            raise JobError(
                f"openings: {path}: for the tokenizer of stage {stage}, no first token is of {kind} openings alone; "
                "give openings that begin unlike each other"
            )
    return Openings(
        refusal=tuple(sorted(found["refusal"] - both)), compliant=tuple(sorted(found["compliant"] - both))
    )
