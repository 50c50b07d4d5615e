"""Chats as a checkpoint's template writes them, whatever the template does; and the tokens that end a turn."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from posttrace.pipeline.spec import ChatJob
from posttrace.tracers.engines.reasoning import Reasoning
from posttrace.tracers.prompts import text_ids

WORKER = Path(__file__).with_name("chat_worker.py")
SECONDS = 3.0
"""Time of the processor that a template may take, and as much again for every 3,000 chats."""
WAIT = 60.0
"""Seconds after which a template is given up that does not even take that time."""
CHARACTERS = 20_000_000
"""Of all chats together."""
ANSWER = "Yes7"
"""What the assistant says in the chat that shows how its turn ends."""

Chat = Sequence[Mapping[str, str]]
"""Messages, each with a role and a content."""


class TemplateFails(Exception):
    """What a chat template does instead of writing chats."""


def render_chats(
    tokenizer,
    chats: Sequence[Chat],
    *,
    date: str | None = None,
    variables: Mapping[str, Any] | None = None,
    open_turn: bool = True,
) -> list[str]:
    """Return the text of every chat.

    >>> render_chats(tokenizer, [[{"role": "user", "content": "Go"}]])     # doctest: +SKIP
    ['<|user|>Go<|assistant|>']

    What `tokenizer.apply_chat_template` gives, from a process that ends when the template does not. Raises
    TemplateFails for a template that raises or takes too long or too much memory.

    Parameters
    ----------
    date: YYYY-MM-DD, what the template reads from the clock and as `date_string`; today if absent.
    variables: further variables of the template.
    open_turn: whether the beginning of the assistant's turn follows; a last message of the assistant's own is left open
        instead, so that the model goes on with it.
    """
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        raise TemplateFails(str(error)) from None
    if not isinstance(template, str):
        raise TemplateFails(f"is of the kind {type(template).__name__}, not a text")
    seconds = SECONDS * (1 + len(chats) // 3000)
    request = {
        "template": template,
        "special_tokens": tokenizer.special_tokens_map,
        "chats": [list(map(dict, chat)) for chat in chats],
        "date": date,
        "variables": dict(variables or {}),
        "open_turn": open_turn,
        "seconds": seconds,
        "characters": CHARACTERS,
    }
    # Another time of the day would be another answer.
    ask = _ask_worker.__wrapped__ if date is None and reads_clock(tokenizer) else _ask_worker
    answer = json.loads(ask(json.dumps(request), seconds))
    if "error" in answer:
        raise TemplateFails(f"raises {answer['error']}")
    return answer["texts"]


@lru_cache(maxsize=4)
def _ask_worker(request: str, seconds: float) -> str:
    """Return the worker's answer; stages of a family often have one template."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(WORKER)],
            input=request,
            capture_output=True,
            encoding="utf-8",
            timeout=WAIT + seconds,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
    except subprocess.TimeoutExpired:
        raise TemplateFails(f"does not end within {WAIT + seconds:g} s") from None
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        raise TemplateFails(f"does not end within {seconds:g} s of processor time")
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise TemplateFails(
            f"ends its process with status {done.returncode} ({said[-1] if said else 'silent'})"
        )
    return done.stdout


def written_chats(job: ChatJob, tokenizer, chats: Sequence[Sequence[tuple[str, str]]]) -> list[str]:
    """Return the text of chats (role and content of each message) with the system prompt, date ... that a job gives.

    >>> written_chats(job, tokenizer, [[("user", "Go")]])              # doctest: +SKIP
    ['<|user|>Go<|assistant|>']

    Raises TemplateFails as `render_chats` does.
    """
    before = [] if job.system is None else [("system", job.system)]
    messages = [[{"role": role, "content": content} for role, content in (*before, *chat)] for chat in chats]
    return render_chats(tokenizer, messages, date=job.date, variables=job.chat_template_kwargs)


def reads_clock(tokenizer) -> bool:
    """Whether a tokenizer's chat template asks for the date of today.

    >>> reads_clock(tokenizer)                                         # doctest: +SKIP
    False
    """
    return "strftime_now" in str(tokenizer.chat_template or "")


THINK = ("<think>", "</think>")
"""How today's models mark their reasoning."""


def reasoning_of(tokenizer, prompt: Sequence[int], max_tokens: int) -> Reasoning | None:
    """How a model marks its reasoning; None if its tokenizer has no tokens for that, or a prompt closes a block itself.

    >>> reasoning_of(tokenizer, prompt, max_tokens=512) is None        # doctest: +SKIP
    True
    """
    begin, end = (tokenizer.get_added_vocab().get(mark) for mark in THINK)
    if begin is None or end is None or end in prompt:
        return None

    def ids(text: str) -> tuple[int, ...]:
        return tuple(text_ids(tokenizer, text, special=False))

    after = ids(f"{THINK[1]}\n\n")
    blank = {one[0] for text in ("\n", "\n\n", "\n\n\n", " ", "  ", "\t") if len(one := ids(text)) == 1}
    return Reasoning(
        begin=begin,
        end=end,
        close=(*ids("\n"), *after),
        empty=ids(f"{THINK[0]}\n\n{THINK[1]}\n\n"),
        blank=tuple(sorted(blank)),
        max_tokens=max_tokens,
    )


def end_tokens(model: str, revision: str | None, tokenizer) -> tuple[int, ...]:
    """Return the ids that end an answer: the tokenizer's, the generation settings', the one that the template writes.

    >>> end_tokens("path/to/checkpoint", None, tokenizer)             # doctest: +SKIP
    (1, 5)
    """
    from transformers import GenerationConfig

    try:
        found = GenerationConfig.from_pretrained(
            model,
            revision=revision,  # type: ignore[arg-type]  # None is the main one, which the signature does not tell
        )
        given = found.eos_token_id
    except (OSError, ValueError):
        given = None  # a checkpoint need not have any
    ids = given if isinstance(given, list) else [given]
    ids = [*ids, tokenizer.eos_token_id, _turn_end(tokenizer)]
    return tuple(sorted({i for i in ids if i is not None}))


def _turn_end(tokenizer) -> int | None:
    """Return the special token that a chat template writes after the assistant's answer, if it writes one."""
    if not tokenizer.chat_template:
        return None
    chat = [{"role": "user", "content": "Go"}, {"role": "assistant", "content": ANSWER}]
    try:
        (text,) = render_chats(tokenizer, [chat], open_turn=False)
    except TemplateFails:  # said where the template is used
        return None
    after = text.rpartition(ANSWER)[2].lstrip()
    ids = text_ids(tokenizer, after, special=False) if after else []
    return ids[0] if ids and ids[0] in tokenizer.added_tokens_decoder else None
