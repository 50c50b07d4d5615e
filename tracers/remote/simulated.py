"""The bytes of a request, loaded and run in this process: a quick check that a job can be shipped.

Weaker than a server: this project is importable here, the library versions are the same by construction, and nothing
passes a network. What it does catch: engines and arguments that do not travel, and results that do not come back.
nnsight's `remote="local"` does the same with nnsight's own pickler, which does not know ours.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import torch
import zstandard
from nnsight.intervention.serialization import CustomCloudUnpickler
from nnsight.schema.request import RequestModel
from nnsight.tracing import tracer as tracing

from posttrace.tracers.errors import TracerError
from posttrace.tracers.models.loading import OpenModel
from posttrace.tracers.remote.errors import JobFailed
from posttrace.tracers.remote.request import request
from posttrace.tracers.remote.result import NAME, loaded, rebuilt
from posttrace.tracers.remote.view import view_of

MAX_RESULT = 2**31


@dataclass(frozen=True)
class SimulatedModel(OpenModel):
    """An open model whose `run` goes through the bytes that a server would get, and back."""

    ships = True

    def run(self, engine, *arguments, **options):
        """As `RemoteModel.run`, on the weights in this process; raises TracerError for what cannot be shipped."""
        view = view_of(self.name, self.nn, self.tokenizer, self.architecture, self.dtype)
        asked = request(view, engine, arguments, options, dtype=str(self.dtype))
        saved = _executed(self.nn, zstandard.ZstdDecompressor().decompress(asked.blob))
        buffer = io.BytesIO()
        torch.save(saved, buffer)
        outcome = loaded(zstandard.compress(buffer.getvalue()), MAX_RESULT)
        if outcome["problem"]:
            raise JobFailed(f"{asked.operation}: {outcome['problem']}")
        return rebuilt(outcome)


def simulated(model: OpenModel) -> SimulatedModel:
    """Return an open model, reached as a server's would be.

    Examples
    --------
    >>> simulated(open_model("path/to/checkpoint")).ships              # doctest: +SKIP
    True
    """
    return SimulatedModel(model.name, model.nn, model.tokenizer, model.architecture)


class _WithoutUs(CustomCloudUnpickler):
    def find_class(self, module, name):
        """As on a server: nothing of this project is there."""
        if module.partition(".")[0] == "posttrace":
            raise TracerError(
                f"the request names {module}.{name}, which a server does not have; please report it"
            )
        return super().find_class(module, name)


def _executed(nn, blob: bytes) -> dict:
    tracer = RequestModel.deserialize(blob, nn._remoteable_persistent_objects(), unpickler=_WithoutUs)
    tracing.inc()
    try:
        tracer.execute(tracer.info.code)
        saved = {k: v for k, v in tracer.info.frame.f_locals.items() if id(v) in tracing._saves()}
    finally:
        tracing.dec()
    return {NAME: saved[NAME]}
