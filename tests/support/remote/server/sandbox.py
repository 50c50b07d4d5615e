"""Run requests with the code of NDIF's own server, PyPI `ndif`, without its Ray, Redis and queue.

A key that is trusted has its block run next to the weights, any other one in a *runner*: another process without them,
which asks this one over a socket for every value (see runners.py, and ndif's services/ray/sandbox).
"""

import io
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from .runners import as_on_cuda

PATIENCE = 120.0
"""Seconds for the process that runners are forked from to import everything."""


class Told(Exception):
    """What NDIF answers as it is: a traceback that the runner formatted, or a sentence."""


class Sandbox:
    """Runs blocks as NDIF does; `autocast`, `meta`: see the server's CONFIG."""

    def __init__(self, *, autocast: bool, meta: bool):
        self._options = [str(int(autocast)), str(int(meta))]
        self._nests: dict[str, Nest] = {}
        if autocast:
            as_on_cuda()

    def run(
        self, trusted: bool, model, directory: str, dtype, blob: bytes, compress: bool, env: dict
    ) -> bytes:
        """What the block saved, as the server puts it into its object store (before compression)."""
        from ndif.common.errors import RequestError
        from ndif.services.ray.deployments.modeling.nns import block_scope
        from ndif.services.ray.sandbox.driver import RunnerError

        with block_scope():
            model._remoteable_set_env(env)
            try:
                if trusted:
                    return self._next_to_weights(model, dtype, blob, compress)
                return self._in_runner(model, directory, dtype, blob, compress, env)
            except (RunnerError, RequestError) as error:
                raise Told(str(error)) from error
            finally:
                model.interleaver.cancel()

    def _next_to_weights(self, model, dtype, blob, compress) -> bytes:
        import torch
        from ndif.common.schema.request import BackendRequestModel
        from ndif.services.ray.deployments.modeling.nns import execute_traced_block, prepare_traced_block
        from ndif.services.ray.deployments.modeling.util import cpu_pickle_module

        tracer, _ = prepare_traced_block(model, blob, compress, deserialize=BackendRequestModel.deserialize)
        buffer = io.BytesIO()
        torch.save(execute_traced_block(tracer, dtype), buffer, pickle_module=cpu_pickle_module())
        return buffer.getvalue()

    def _in_runner(self, model, directory, dtype, blob, compress, env) -> bytes:
        from ndif.services.ray.sandbox.driver import SandboxDriver

        if directory not in self._nests:
            self._nests[directory] = Nest(directory, self._options)
        connection = self._nests[directory].runner()
        try:
            connection.send((blob, compress, str(dtype), None, env))
            data, _ = SandboxDriver(model, dtype, on_log=lambda text: None).pump(connection)
            return data
        finally:
            connection.close()


class Nest:
    """Where the runners of one model come from: each request gets a fresh one, forked from a process that is warm."""

    def __init__(self, directory: str, options: list[str]):
        key = {"repo_id": directory, "revision": None, "task": "text-generation"}
        self._folder = tempfile.mkdtemp(prefix="runners")  # a short path, which sockets need
        self._lock = threading.Lock()
        self._n = 0
        named = "nnsight.modeling.transformers.TransformersModel:" + json.dumps(key)
        order = [sys.executable, "-I", "-m", f"{__package__}.runners", named, self._folder, *options]
        self._process = subprocess.Popen(order, stdin=subprocess.PIPE, text=True)

    def runner(self):
        """A connection to a fresh runner."""
        from ndif.services.ray.sandbox.host import Connection

        with self._lock:
            self._n += 1
            path = str(Path(self._folder) / str(self._n))
            self._process.stdin.write(path + "\n")
            self._process.stdin.flush()
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return Connection.open(path)
            except OSError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.01)
