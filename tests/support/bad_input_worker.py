"""Run commands one after the other in one process: a JSON list of arguments in, what came of it out, by lines."""

import contextlib
import io
import json
import resource
import sys
import time
import traceback

from posttrace.pipeline.cli import main
from posttrace.pipeline.studies import STUDIES, study_class


def peak() -> int:
    """Most memory of this process since the last call, and of any of its children so far (bytes)."""
    with open("/proc/self/status") as stream:
        mine = next(int(line.split()[1]) for line in stream if line.startswith("VmHWM"))
    with open("/proc/self/clear_refs", "w") as stream:
        stream.write("5")
    return 1024 * max(mine, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


def processor() -> float:
    """Seconds of processor time, children included: what a busy machine does not change."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def once(arguments: list[str]) -> dict:
    peak()
    out, said, status, begun = io.StringIO(), io.StringIO(), None, processor()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(out):
        try:
            main(arguments)
        except SystemExit as end:
            status = end.code
        except BaseException:
            said.write(traceback.format_exc())
    seconds = processor() - begun
    return {
        "status": status,
        "said": said.getvalue(),
        "seconds": seconds,
        "peak": peak(),
        "out": out.getvalue(),
    }


for study in STUDIES:  # what is measured is the input, not how long torch takes to be imported
    study_class(study)
for line in sys.stdin:
    print(json.dumps(once(json.loads(line))), flush=True)
