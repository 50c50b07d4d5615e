"""The documents of a job as text: plain, or conversations with the span of each message."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from posttrace.pipeline.chat import Chat, TemplateFails, render_chats
from posttrace.pipeline.embedded import corpus
from posttrace.pipeline.errors import JobError, shown
from posttrace.pipeline.files import read_text
from posttrace.pipeline.rows import read_rows
from posttrace.pipeline.studies.difference.job import DifferenceJob, Texts
from posttrace.pipeline.text_pieces import CHARACTERS_PER_TOKEN, cut

CHAT = corpus.Mix(plain=0.0, judging=0.0, deeds=0.0, dialogue=0.0, chat=1.0, aside=0.2, varied=0.6)
ROLES = {"user": "user", "system": "user", "assistant": "answer"}
"""Role of a message -> role of its tokens."""
MARK = "\ue000{}\ue001"
"""What stands for a message's content where a template's own text is found; from the private use area."""
FALLBACK = {"user": "User: {}\n", "system": "{}\n", "assistant": "Assistant: {}\n"}
"""How `own` renders messages for a stage without a chat template."""


@dataclass(frozen=True)
class Rendered:
    """One document as text."""

    text: str
    spans: tuple[tuple[int, int, str], ...] = ()
    """(begin, end, role) of the messages' characters, in order; none in plain text."""
    templated: bool = False
    """Whether the text writes its special tokens itself."""


def read_documents(texts: Texts, seed: int) -> tuple[list[str], list[Chat]]:
    """Return the documents of a set, texts or conversations; the other list is empty.

    >>> [len(some) for some in read_documents(Texts(name="plain", documents=3), seed=0)]
    [3, 0]

    Raises JobError for a file that cannot be read, or has fewer than two documents.
    """
    found: list[str] = []
    conversations: list[Chat] = []
    if texts.messages is not None:
        conversations = list(islice(_conversations(texts), texts.documents))
    elif texts.file is not None:
        content = read_text(texts.file, f"texts {texts.name}", "edit texts")
        found = list(islice(cut(content, CHARACTERS_PER_TOKEN * texts.tokens), texts.documents))
    elif texts.csv is not None:
        rows = read_rows(
            texts.csv,
            f"texts {texts.name}",
            "edit texts",
            needed=(texts.column,),
            where=texts.where,
            help="`column` names the column of the documents",
        )
        found = [row.text(0) for row in rows if row.text(0).strip()][: texts.documents]
    elif texts.name == "plain":
        found = [corpus.common_text(rng) for rng in _generators(texts, seed)]
    else:
        conversations = [_exchange(rng) for rng in _generators(texts, seed)]
    n = len(found) + len(conversations)
    if n < 2:
        raise JobError(f"texts {texts.name}: {n} documents, and intervals over documents need two; give more")
    return found, conversations


def _generators(texts: Texts, seed: int) -> Iterator[random.Random]:
    """One for each embedded document."""
    for i in range(texts.documents):
        yield random.Random(f"difference/{seed}/{texts.name}/{i}")


def _exchange(rng: random.Random) -> Chat:
    asked, answer = corpus.chat_exchange(rng, CHAT)
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def _conversations(texts: Texts) -> Iterator[Chat]:
    path = str(texts.messages)
    place = f"texts {texts.name}: {shown(path)}"
    for number, line in enumerate(read_text(path, f"texts {texts.name}", "edit texts").splitlines(), 1):
        if not line.strip():
            continue
        try:
            messages = json.loads(line)["messages"]
            plain = bool(messages) and all(
                m["role"] in ROLES and isinstance(m["content"], str) and m["content"].strip()
                for m in messages
            )
        except (ValueError, KeyError, TypeError, RecursionError):
            plain = False
        if not plain:
            raise JobError(
                f'{place} line {number}: is no {{"messages": [{{"role": ..., "content": ...}}, ...]}} with roles '
                f"{', '.join(ROLES)} and contents that are texts; edit the file"
            )
        yield [{"role": m["role"], "content": m["content"].strip()} for m in messages]


def render(
    job: DifferenceJob, name: str, stage: str, tokenizer, conversations: Sequence[Chat]
) -> list[Rendered]:
    """Conversations in a stage's chat template, with the characters of each message.

    >>> render(job, "chat", "sft", tokenizer, [[{"role": "user", "content": "Go"}]])[0].spans      # doctest: +SKIP
    ((28, 30, 'user'),)

    The job's system message comes before each that has none. A template's own text is what it writes around marks that
    stand for the contents; that it writes the same around the contents is checked. Raises JobError for a template that
    fails or does not write every message as it is.
    """
    if job.system is not None:
        system = {"role": "system", "content": job.system}
        conversations = [one if one[0]["role"] == "system" else [system, *one] for one in conversations]
    marked = [
        [{"role": m["role"], "content": MARK.format(i)} for i, m in enumerate(one)] for one in conversations
    ]
    try:
        frames, texts = (
            render_chats(tokenizer, some, date=job.date, variables=job.chat_template_kwargs, open_turn=False)
            for some in (marked, conversations)
        )
    except TemplateFails as error:
        raise JobError(
            f"texts {name}: the chat template of stage {stage} {shown(error, 300)}; choose another `template`"
        ) from None
    found = []
    for one, frame, text in zip(conversations, frames, texts, strict=True):
        rendered = _filled(one, frame)
        if rendered is None or rendered.text != text:
            raise JobError(
                f"texts {name}: the chat template of stage {stage} does not write every message as it is (it gives "
                f"{shown(repr(text))}); choose another `template`, or give the documents as plain text"
            )
        found.append(rendered)
    return found


def render_plainly(conversations: Sequence[Chat]) -> list[Rendered]:
    r"""Write conversations as "User: ...", "Assistant: ...", for a stage without a chat template.

    >>> render_plainly([[{"role": "user", "content": "Go"}]])[0]
    Rendered(text='User: Go\n', spans=((6, 8, 'user'),), templated=False)
    """
    found = []
    for one in conversations:
        frame = "".join(FALLBACK[m["role"]].format(MARK.format(i)) for i, m in enumerate(one))
        rendered = _filled(one, frame)
        assert rendered is not None, "every message has its mark"
        found.append(Rendered(rendered.text, rendered.spans))
    return found


def _filled(conversation: Chat, frame: str) -> Rendered | None:
    """Return a frame with contents in the place of their marks; None if a mark is missing or not in order."""
    text, spans, at = "", [], 0
    for i, message in enumerate(conversation):
        mark = MARK.format(i)
        place = frame.find(mark, at)
        if place < 0:
            return None
        text += frame[at:place]
        spans.append((len(text), len(text) + len(message["content"]), ROLES[message["role"]]))
        text += message["content"]
        at = place + len(mark)
    return Rendered(text + frame[at:], tuple(spans), templated=True)
