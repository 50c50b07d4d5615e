"""Start commands in processes that need not import anything: python -m tests.support.forkserver

Orders come in on standard input and answers go out on standard output, a line of JSON each. The process that answers
has imported what commands import and run nothing; each command is a fork of it that does what `python -m MODULE` does,
with the module, arguments, environment, folder and output files of the order.
"""

import atexit
import gc
import json
import os
import runpy
import signal
import sys
import threading
from importlib import import_module

MODULES = (
    *("nnsight", "obstore.store", "tokenizers", "zarr", "zarr.storage", "matplotlib.backends.backend_agg"),
    *("transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama"),
    *(
        "posttrace.figures",
        "posttrace.figures.page",
        "posttrace.figures.rendering",
        "posttrace.stores.verify",
    ),
    *("posttrace.pipeline.executors.server", "posttrace.pipeline.preflight", "posttrace.pipeline.run"),
)


def answer(order: dict) -> dict:
    """Whether a command has ended, and how."""
    ended, status = os.waitpid(order["pid"], os.WNOHANG)
    return {"status": os.waitstatus_to_exitcode(status) if ended else None}


def become(order: dict) -> str:
    """Make this process the command's; gives its module."""
    for number, (path, flags) in enumerate(
        [
            (os.devnull, os.O_RDONLY),
            *((path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for path in order["output"]),
        ]
    ):
        opened = os.open(path, flags)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin, sys.stdout = open(0), open(1, "w", closefd=False)
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["folder"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [order["module"], *order["arguments"]]
    return order["module"]


def serve() -> str | None:
    """Answer until the orders end; in the process of a command, return its module at once."""
    for line in sys.stdin:
        order = json.loads(line)
        if "module" not in order:
            said = answer(order)
        elif pid := os.fork():
            said = {"pid": pid}
        else:
            return become(order)
        print(json.dumps(said), flush=True)
    return None


def end(code: object) -> None:
    """End this process as an interpreter does after SystemExit, but for taking its modules apart (a second)."""
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal is for pytest
    from posttrace.pipeline.studies import STUDIES, study_class

    for module in MODULES:
        import_module(module)
    for study in STUDIES:
        study_class(study)
    gc.freeze()  # collections in the forks leave alone what is shared
    if (command := serve()) is not None:
        try:
            runpy.run_module(command, run_name="__main__", alter_sys=True)
            end(0)
        except SystemExit as ended:
            end(ended.code)
