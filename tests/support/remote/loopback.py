"""Start the server of tests/support/remote/server in its own process and environment, and order it about."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from pathlib import Path

from tests.support.remote.isolation import make_environment, names_of_project

KEY = "00000000-0000-4000-8000-00000000c0de"
"""The API key that the server accepts, and trusts."""
UNTRUSTED = "00000000-0000-4000-8000-0000000070b0"
"""One that it accepts without the tag `trusted`."""
BASE = "posttrace/embedded-base"
"""What the tests' server calls the embedded family's base."""
_SERVER = Path(__file__).parent / "server"


class Loopback:
    """A running server.

    >>> with Loopback(folder, {"posttrace/embedded-base": checkpoint}) as server:         # doctest: +SKIP
    ...     server.fault("post_status", code=429, retry_after=1)

    folder: where its environment and its log go. models: hub id -> folder of the checkpoint. options: more of the
    server's CONFIG (tests/support/remote/server/__main__.py). links: packages besides those installed (isolation.py).
    """

    def __init__(
        self, folder: Path, models: dict[str, Path], links: dict[str, Path] | None = None, **options
    ):
        self.log_path = folder / "server.jsonl"
        self.key = KEY
        self._read = 0
        python = make_environment(folder / "environment", loopback_server=_SERVER, **(links or {}))
        config = {
            "models": {name: {"directory": str(path)} for name, path in models.items()},
            "log": str(self.log_path),
            "absent": names_of_project(),
            "keys": {KEY: ["trusted"], UNTRUSTED: []},
            **options,
        }
        (folder / "server.json").write_text(json.dumps(config))
        with (folder / "server.err").open("w") as errors:
            # -I and another directory: neither PYTHONPATH nor the working directory leads to this project.
            self.process = subprocess.Popen(
                [python, "-I", "-m", "loopback_server", folder / "server.json"],
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=folder,
                text=True,
            )
        port = self.process.stdout.readline().strip()
        if not port:
            raise RuntimeError(f"the server did not start: {(folder / 'server.err').read_text()[-2000:]}")
        self.url = f"http://127.0.0.1:{port}"

    def __enter__(self) -> Loopback:
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    @staticmethod
    def model_key(name: str) -> str:
        """What nnsight calls the model with that hub id."""
        identity = {"repo_id": name, "revision": None, "task": "text-generation"}
        return "nnsight.modeling.transformers.TransformersModel:" + json.dumps(identity)

    def fault(self, kind: str, times: int | None = 1, skip: int = 0, **options) -> None:
        """Arm a fault (tests/support/remote/server/faults.py): it happens `times` times after `skip` that go well."""
        self._order("fault", kind=kind, times=times, skip=skip, **options)

    def clear(self) -> None:
        """Disarm every fault, and let jobs that are held go on."""
        self._order("clear")
        self._order("release")

    def release(self) -> int:
        """Let jobs that are held go on; says how many there were."""
        return self._order("release")["released"]

    def restart(self, seconds: float = 0.5, forget: bool = False) -> None:
        """Refuse connections for a while, with what was accepted kept or forgotten; returns when it is away."""
        before = len(self.log("down"))
        self._order("restart", seconds=seconds, forget=forget)
        self._until(lambda: len(self.log("down")) > before, "down")

    def wait_up(self) -> None:
        """Until it listens again."""
        self._until(lambda: len(self.log("down")) == len(self.log("up")), "up")

    def settle(self) -> None:
        """Until no accepted job is under way any more."""

        def idle() -> bool:
            with urllib.request.urlopen(f"{self.url}/_state", timeout=30) as answer:
                return json.loads(answer.read())["unfinished"] == 0

        self._until(idle, "end of the last job")

    def log(self, event: str | None = None) -> list[dict]:
        """What the server recorded, of one kind or all."""
        lines = map(json.loads, self.log_path.read_text().splitlines())
        return [line for line in lines if event in (None, line["event"])]

    def since(self, event: str | None = None) -> list[dict]:
        """What it recorded since `mark` was called."""
        return [line for line in self.log()[self._read :] if event in (None, line["event"])]

    def mark(self) -> None:
        self._read = len(self.log())

    def wait_for(self, event: str, seconds: float = 60, alive=lambda: True, **fields) -> dict:
        """The first record since `mark` of that kind and with those fields.

        Raises TimeoutError, also when what should cause it is no longer `alive`.
        """

        def found() -> dict | None:
            lines = self.since(event)
            return next((x for x in lines if all(x.get(n) == v for n, v in fields.items())), None)

        return self._until(found, f"{event} with {fields}", seconds, alive)

    def _until(self, found, what: str, seconds: float = 60, alive=lambda: True):
        deadline = time.monotonic() + seconds
        while not (result := found()):
            if time.monotonic() > deadline or not alive():
                raise TimeoutError(f"the server recorded no {what} in {seconds} s, or its client ended")
            time.sleep(0.02)
        return result

    def _order(self, name: str, **options) -> dict:
        self.wait_up()
        request = urllib.request.Request(
            f"{self.url}/_{name}", data=json.dumps(options).encode(), method="POST"
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())
