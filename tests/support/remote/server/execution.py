"""Run a request on a model as NDIF does: rebuild its block, run it in a trace's scope, collect what it saved."""

import contextlib
import importlib
import io
import json
import linecache
import os
import threading
import traceback

from .sandbox import Sandbox, Told


class Models:
    """The models that are served; each is loaded when the first request for it comes."""

    def __init__(self, entries: dict[str, dict], *, dtype: str, held: str | None, sandbox: dict | None):
        self._entries = {full_key(key): entry for key, entry in entries.items()}
        self.dtype, self._held = dtype, held or dtype
        self._sandbox = Sandbox(**sandbox) if sandbox else None
        self._loaded = {}
        self._importing = threading.Lock()

    def prepare(self) -> None:
        """Import what is slow to import, so that the first request does not wait for it."""
        with self._importing:
            for name in ("torch", "transformers", "nnsight", "nnsight.schema.request", "zstandard"):
                importlib.import_module(name)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def describe(self) -> list[dict]:
        """What /status says of each model."""
        return [
            {
                "model_key": key,
                "repo_id": repo(key),
                "trust_remote_code": False,
                "deployment_level": "HOT",
                "application_state": "RUNNING",
                "dtype": self.dtype,
                "trusted": False,
                "execution_timeout_seconds": 300.0,
            }
            for key in self._entries
        ]

    def get(self, key: str):
        self.prepare()
        if key not in self._loaded:
            self._loaded[key] = self._load(self._entries[key])
        return self._loaded[key]

    def run(
        self, key: str, blob: bytes, compress: bool, env: dict, trusted: bool, raising: str = ""
    ) -> "dict | bytes":
        """What a request saved, by name; with NDIF's own code the bytes in which that comes."""
        model = self.get(key)
        if self._sandbox is None:
            return run(model, blob, compress, env, raising)
        import torch

        directory = self._entries[key]["directory"]
        dtype = getattr(torch, self._held)
        return self._sandbox.run(trusted, model, directory, dtype, blob, compress, env)

    def _load(self, entry: dict):
        import torch
        from nnsight import TransformersModel

        model = TransformersModel(
            entry["directory"], task="text-generation", dtype=getattr(torch, self._held), dispatch=True
        )
        model._module.requires_grad_(False)
        return model


def full_key(key: str) -> str:
    """A model key, or what nnsight makes of a bare hub id; a server compares keys as they are written."""
    if ":{" in key:
        return key
    identity = {"repo_id": key, "revision": None, "task": "text-generation"}
    return "nnsight.modeling.transformers.TransformersModel:" + json.dumps(identity)


def repo(key: str) -> str:
    """The hub id in a model key."""
    return json.loads(key.partition(":")[2])["repo_id"]


def run(model, blob: bytes, compress: bool, env: dict, raising: str = "") -> dict:
    """The values that a request saved, by name; `raising`: its block raises an error with these words instead."""
    from nnsight.schema.request import RequestModel

    model._remoteable_set_env(env)
    with _own_sources():
        try:
            tracer = RequestModel.deserialize(blob, model._remoteable_persistent_objects(), compress=compress)
        except Exception as error:
            raise Unreadable(
                f"Your request payload could not be read ({type(error).__name__}: {error})."
            ) from error
        place = tracer.info.frame.f_code
        if raising:
            tracer.info.code = compile(f"raise RuntimeError({raising!r})", place.co_filename, "exec")
        try:
            return _saved(tracer)
        finally:
            model.interleaver.cancel()


class Unreadable(Exception):
    """The request could not be rebuilt here; NDIF answers with a sentence, not with a traceback."""


def _saved(tracer) -> dict:
    from nnsight.tracing import tracer as tracing

    tracing.inc()
    try:
        tracer.execute(tracer.info.code)
        marked = tracing._saves()
        return {name: value for name, value in tracer.info.frame.f_locals.items() if id(value) in marked}
    finally:
        tracing.dec()


@contextlib.contextmanager
def _own_sources():
    """Let a request's sources end with it: nnsight keeps them by file name and line, and files of clients differ."""
    from nnsight.tracing.globals import BLOCKS, SOURCES

    kept = [(cache, dict(cache)) for cache in (linecache.cache, SOURCES, BLOCKS)]
    try:
        yield
    finally:
        for cache, before in kept:
            cache.clear()
            cache.update(before)


def explained(error: BaseException) -> str:
    """What a client is told of an error: the traceback of its own code, or a sentence."""
    from nnsight.tracing.util import clean_traceback, filter_traceback

    if isinstance(error, Unreadable | Told):
        return str(error)
    here = os.path.dirname(__file__)
    own = filter_traceback(
        clean_traceback(error.__traceback__), lambda frame: os.path.dirname(frame.f_code.co_filename) != here
    )
    return "".join(traceback.format_exception(type(error), error, own))


def pack(saved: "dict | bytes", compress: bool) -> bytes:
    """A result as it travels."""
    import torch
    import zstandard

    data = saved
    if isinstance(saved, dict):
        buffer = io.BytesIO()
        torch.save(saved, buffer)
        data = buffer.getvalue()
    return zstandard.ZstdCompressor(level=3).compress(data) if compress else data
