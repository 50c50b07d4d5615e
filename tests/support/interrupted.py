"""Interrupt a run in this process again and again: JOB FOLDER TIMES SEED -> a line of JSON per run."""

import contextlib
import io
import json
import os
import random
import signal
import sys
import threading
import time

from posttrace.pipeline.cli import main


def run(job: str, store: str, after: float | None) -> dict:
    """One run, with a signal `after` seconds; whether the signal came before the end, and the exit status."""
    fired = []

    def fire():
        fired.append(time.monotonic())
        os.kill(os.getpid(), number)

    number = random.choice([signal.SIGINT, signal.SIGTERM])
    timer, begun, said = threading.Timer(after or 0, fire), time.monotonic(), io.StringIO()
    if after is not None:
        timer.start()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            main(["run", job, "--store", store])
    except SystemExit as end:
        status = end.code
    ended = time.monotonic()
    signal.signal(number, signal.SIG_IGN)  # a signal between two runs is none
    timer.cancel()
    if timer.is_alive():
        timer.join()
    late = ended - fired[0] if fired else 0.0
    return dict(fired=late > 0, status=status, seconds=ended - begun, late=late, said=said.getvalue())


if __name__ == "__main__":
    job, folder, times, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    random.seed(seed)
    run(job, f"{folder}/first", None)
    whole = run(job, f"{folder}/second", None)
    for i in range(times):
        after = random.uniform(0.3, 1.0) * whole["seconds"]
        print(json.dumps(run(job, f"{folder}/{i}", after)), flush=True)
