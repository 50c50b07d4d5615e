"""Run commands one after the other in one process: a JSON list of arguments in, what came of it out, by lines."""

import contextlib
import io
import json
import resource
import sys
import time
import traceback

from posttrace.pipeline.cli import main


def peak() -> int:
    """Most memory of this process since the last call, and of any of its children so far (bytes)."""
    with open("/proc/self/status") as stream:
        mine = next(int(line.split()[1]) for line in stream if line.startswith("VmHWM"))
    with open("/proc/self/clear_refs", "w") as stream:
        stream.write("5")
    return 1024 * max(mine, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


def once(arguments: list[str]) -> dict:
    peak()
    out, said, status, begun = io.StringIO(), io.StringIO(), None, time.monotonic()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(out):
        try:
            main(arguments)
        except SystemExit as end:
            status = end.code
        except BaseException:
            said.write(traceback.format_exc())
    seconds = time.monotonic() - begun
    return {
        "status": status,
        "said": said.getvalue(),
        "seconds": seconds,
        "peak": peak(),
        "out": out.getvalue(),
    }


for line in sys.stdin:
    print(json.dumps(once(json.loads(line))), flush=True)
