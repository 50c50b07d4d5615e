"""Prompts as a checkpoint's chat template writes them, whatever the template does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

WORKER = Path(__file__).with_name("chat_worker.py")
SECONDS = 3.0
"""Time of the processor that a template may take, and as much again for every 3,000 instructions."""
WAIT = 60.0
"""Seconds after which a template is given up that does not even take that time."""
CHARACTERS = 20_000_000
"""Of all prompts together."""


class TemplateFails(Exception):
    """What a chat template does instead of giving prompts."""


def render_chats(tokenizer, instructions: Sequence[str]) -> list[str]:
    """The prompt of every instruction, the beginning of the assistant's turn included.

    >>> render_chats(tokenizer, ["Go"])                                # doctest: +SKIP
    ['<|user|>Go<|assistant|>']

    What `tokenizer.apply_chat_template` gives, from a process that ends when the template does not. Raises
    TemplateFails for a template that raises or takes too long or too much memory.
    """
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        raise TemplateFails(str(error)) from None
    if not isinstance(template, str):
        raise TemplateFails(f"is of the kind {type(template).__name__}, not a text")
    seconds = SECONDS * (1 + len(instructions) // 3000)
    request = {
        "template": template,
        "special_tokens": tokenizer.special_tokens_map,
        "instructions": list(instructions),
        "seconds": seconds,
        "characters": CHARACTERS,
    }
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(WORKER)],
            input=json.dumps(request),
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
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise TemplateFails(f"raises {answer['error']}")
    return answer["texts"]
