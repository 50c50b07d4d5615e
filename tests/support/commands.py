"""The real command line in processes of its own."""

import os
import subprocess
import sys
import time

from posttrace.stores import Store


def posttrace(*arguments, cwd=None, env=None, module="posttrace"):
    """Run the real command line in its own process."""
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **(env or {})},
    )


def wait_for_units(store, n, process):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if len(Store.open(str(store)).done()) >= n:
                return
        except Exception:
            pass
        time.sleep(0.02)
