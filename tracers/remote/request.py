"""One call of an engine as bytes to send, and a digest by which a client that was killed finds it again."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import random
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nnsight
import numpy as np
import torch
import zstandard
from nnsight.intervention.serialization import reduce_block
from nnsight.tracing.backend import Backend
from nnsight.tracing.util import SerializedFrame
from pydantic import BaseModel

from posttrace.tracers.errors import TracerError
from posttrace.tracers.remote.serving import answer, raw
from posttrace.tracers.remote.shipping import Shipper, code_hash

FORMAT = 1
"""Increased when the same call starts to ask a server for something else."""
LEVEL = 6
"""Compression level, as in nnsight."""


@dataclass(frozen=True)
class Request:
    """What is sent for one call of an engine."""

    operation: str
    """Name of the engine, for messages."""
    blob: bytes
    digest: str
    """The same for the same call by the same code, in every process."""
    constants: int
    """Bytes of tensors in it, before compression."""


def request(view, engine, arguments: tuple, options: dict, *, dtype: str, check: bool = False) -> Request:
    """Ship `engine(view, *arguments, **options)`.

    Parameters
    ----------
    view
        The model without its weights.
    dtype, check
        See `tracers.remote.serving.answer`.

    Raises
    ------
    TracerError
        An engine or an argument that cannot travel.

    Examples
    --------
    >>> request(view, read_statements, (prompts,), options, dtype="torch.float32").operation   # doctest: +SKIP
    'read_statements'
    """
    arguments, options = _compact(arguments), _compact(options)
    capture = _Capture()
    with _SHIPPING:  # nnsight marks the model's modules while they are pickled
        _block(capture, view, engine, arguments, options, dtype, check)
    asked = [FORMAT, engine.__module__, engine.__qualname__, view.name, dtype]
    digest = hashlib.sha256(repr(asked).encode())
    digest.update(
        code_hash({k: v for k, v in capture.sources.items() if "models.validation" not in k}).encode()
    )
    _identify((arguments, options), digest.update)
    return Request(
        operation=engine.__name__,
        blob=zstandard.ZstdCompressor(level=LEVEL).compress(capture.blob),
        digest=digest.hexdigest(),
        constants=sum(tensor.nbytes for tensor in _tensors((arguments, options))),
    )


_SHIPPING = threading.Lock()


def _block(backend, view, engine, arguments, options, dtype, check):
    """Open the block that travels; the backend takes its source and does not run it."""
    with view.nn.session(backend=backend):
        outcome = nnsight.save(answer(view, engine, arguments, options, dtype, check))  # noqa: F841


class _Capture(Backend):
    """Pickles a traced block as nnsight's remote backend does, with our pickler, without sending it."""

    def __call__(self, tracer) -> None:
        frame = tracer.info.frame
        source, names, values = reduce_block(tracer.node, frame.f_globals, dict(frame.f_locals))
        # The frame says where the code came from: for messages, a name without this machine's folders is enough.
        code = frame.f_code
        tracer.info.frame = SerializedFrame(
            f"tracers/remote/{Path(code.co_filename).name}", code.co_firstlineno, code.co_name
        )
        buffer = io.BytesIO()
        shipper = Shipper(buffer)
        shipper.dump((tracer, (source, dict(sorted(names.items())), dict(sorted(values.items())))))
        self.blob, self.sources = buffer.getvalue(), shipper.sources
        tracer.info.frame = frame


def _compact(value):
    """Copy the tensors of a value: a view would be pickled with the whole tensor that it is part of."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone(memory_format=torch.contiguous_format)
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _compact(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return dataclasses.replace(value, **fields)
    if isinstance(value, dict):
        return {key: _compact(one) for key, one in value.items()}
    return type(value)(map(_compact, value)) if type(value) in (list, tuple) else value


def _tensors(value):
    if isinstance(value, torch.Tensor | np.ndarray):
        yield value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from _tensors([getattr(value, f.name) for f in dataclasses.fields(value)])
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)


def _identify(value: Any, update) -> None:
    """Feed a hash with a value, the same in every process for the same content."""
    kind = type(value).__name__
    if isinstance(value, torch.Tensor):
        update(f"{kind} {tuple(value.shape)} {value.dtype}".encode())
        update(raw(value))
    elif isinstance(value, np.ndarray):
        update(f"{kind} {value.shape} {value.dtype}".encode() + value.tobytes())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        update(kind.encode())
        _identify({f.name: getattr(value, f.name) for f in dataclasses.fields(value)}, update)
    elif isinstance(value, dict):
        update(f"{kind} {len(value)}".encode())
        for key, one in value.items():
            update(repr(key).encode())
            _identify(one, update)
    elif isinstance(value, list | tuple):
        update(f"{kind} {len(value)}".encode())
        for one in value:
            _identify(one, update)
    elif isinstance(value, BaseModel):
        update(f"{kind} {value.model_dump_json()}".encode())
    elif isinstance(value, random.Random):
        update(repr(value.getstate()).encode())
    elif value is None or isinstance(value, bool | int | float | str | range | torch.dtype):
        update(f"{kind} {value!r}".encode())
    elif callable(value) and hasattr(value, "__qualname__"):
        update(f"{value.__module__}.{value.__qualname__}".encode())
    else:
        raise TracerError(f"an argument of an engine is a {kind}, which cannot be sent to a server")
