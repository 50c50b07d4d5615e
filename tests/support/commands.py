"""The real command line in processes of its own."""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from posttrace.stores import Store


def posttrace(*arguments, cwd=None, env=None, module="posttrace"):
    """Run the command line to its end, in a process that has everything imported (tests/support/forkserver.py)."""
    command = Command(*arguments, cwd=cwd, env=env, module=module)
    command.wait()
    return subprocess.CompletedProcess(command.arguments, command.returncode, command.out, command.err)


def posttrace_anew(*arguments, cwd=None, env=None):
    """The same by a new interpreter: what it imports, and in what order, is looked at too. Seconds slower."""
    return subprocess.run(
        [sys.executable, "-m", "posttrace", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **(env or {})},
    )


class Command:
    """A command that was started; as subprocess.Popen as far as it goes."""

    def __init__(self, *arguments, cwd=None, env=None, module="posttrace"):
        self.arguments = list(map(str, arguments))
        self.returncode = None
        self._output = [Path(_folder()) / f"{time.monotonic_ns()}.{end}" for end in ("out", "err")]
        for path in self._output:
            path.touch()
        order = {
            "module": module,
            "arguments": self.arguments,
            "environment": {**os.environ, **(env or {})},
            "folder": str(cwd or Path.cwd()),
            "output": list(map(str, self._output)),
        }
        self.pid = _ask(**order)["pid"]

    def poll(self):
        if self.returncode is None:
            self.returncode = _ask(pid=self.pid)["status"]
        return self.returncode

    def wait(self, timeout=600):
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            assert time.monotonic() < deadline, f"{' '.join(self.arguments)}: still there after {timeout} s"
            time.sleep(0.005)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    @property
    def out(self):
        return self._output[0].read_text()

    @property
    def err(self):
        return self._output[1].read_text()


def wait_for_units(store, n, process):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if len(Store.open(str(store)).done()) >= n:
                return
        except Exception:
            pass
        time.sleep(0.02)


@functools.cache
def _folder():
    folder = tempfile.TemporaryDirectory(prefix="posttrace-commands-")
    atexit.register(folder.cleanup)
    return folder.name


@functools.cache
def _server():
    command = [sys.executable, "-m", "tests.support.forkserver"]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(server.stdin.close)
    return server


def _ask(**order):
    server = _server()
    print(json.dumps(order), file=server.stdin, flush=True)
    return json.loads(server.stdout.readline())
