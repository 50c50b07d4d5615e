"""Render a chat template in a process of its own: a request as JSON on standard input, the answer on standard output.

A checkpoint's chat template is a program. It may raise, recurse or never end, in ways that only the end of a process
stops; here it has a bounded time and memory. This file is run by its path and imports nothing of the project.
"""

import json
import sys
from datetime import datetime
from typing import Any

MEMORY = 2**29
"""Bytes beyond what the process has when the template begins."""


class Pinned:
    """A clock that stands still, at the beginning of a day."""

    def __init__(self, day: str):
        self._begin = datetime.fromisoformat(day)

    def now(self) -> datetime:
        return self._begin


def main() -> None:
    request = json.load(sys.stdin)
    from transformers.utils import chat_template_utils

    _limit(request["seconds"])
    texts, room = [], request["characters"]
    variables: dict[str, Any] = {**request["special_tokens"]}
    if request["date"]:
        clock = Pinned(request["date"])
        vars(chat_template_utils)["datetime"] = clock  # what templates ask, in this process
        variables["date_string"] = clock.now().strftime("%d %b %Y")
    variables |= request["variables"]
    try:
        for chat in request["chats"]:
            goes_on = request["open_turn"] and chat[-1]["role"] == "assistant"
            found = chat_template_utils.render_jinja_template(
                conversations=[chat],
                chat_template=request["template"],
                add_generation_prompt=request["open_turn"] and not goes_on,
                continue_final_message=goes_on,
                **variables,
            )[0][0]
            found.encode()
            texts.append(found)
            room -= len(found)
            if room < 0:
                raise OverflowError(
                    f"its chats are longer than {request['characters']:,} characters together"
                )
        answer: dict[str, str | list[str]] = {"texts": texts}
    except Exception as error:  # a template can raise anything
        answer = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    json.dump(answer, sys.stdout)


def _limit(seconds: float) -> None:
    try:
        import resource
    except ImportError:  # Windows: the other process waits for a time only
        return
    with open("/proc/self/statm" if sys.platform == "linux" else "/dev/null") as stream:
        pages = int((stream.read().split() or ["0"])[0])
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
    used = resource.getrusage(resource.RUSAGE_SELF)
    end = int(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (end, end + 1))


if __name__ == "__main__":
    main()
