"""Check what came back from a server, and rebuild it.

A result is loaded as tensors and plain data only (`weights_only`), so a server cannot run code here.
"""

from __future__ import annotations

import io
import json
from dataclasses import is_dataclass
from pkgutil import resolve_name
from typing import Any

import torch
import zstandard

from posttrace.tracers.errors import TracerError
from posttrace.tracers.remote.serving import checksum, finite
from posttrace.tracers.remote.shipping import OURS

NAME = "outcome"
"""The one variable that a request saves."""


class CorruptResult(Exception):
    """The bytes are not a complete result; fetch it again."""


def loaded(content: bytes, limit: int) -> dict[str, Any]:
    """Return the saved value in a result, checked against its own checksum; raises CorruptResult.

    Parameters
    ----------
    limit
        Bytes that it may have when unpacked.
    """
    try:
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(content)) as stream:
            data = stream.read(limit + 1)
    except zstandard.ZstdError as error:
        raise CorruptResult(f"the result cannot be unpacked ({error})") from None
    if len(data) > limit:
        raise TracerError(
            f"a result is larger than {limit:,} bytes; lower the number of prompts or pairs in a unit, or raise "
            "execution.remote.max_result_mb"
        )
    try:
        saved = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # what torch and pickle raise on bytes that are not theirs has no common class
        why = " ".join(str(error).split())[:160]
        raise CorruptResult(f"the result cannot be read ({type(error).__name__}: {why})") from None
    if not isinstance(saved, dict) or set(saved) != {NAME} or not isinstance(saved[NAME], dict):
        raise CorruptResult("the result does not hold what the request saves")
    outcome = saved[NAME]
    if outcome.get("problem"):
        return outcome
    structure, tensors = outcome.get("structure"), outcome.get("tensors")
    if not isinstance(structure, str) or not isinstance(tensors, list):
        raise CorruptResult("the result lacks its structure or its tensors")
    if not all(isinstance(tensor, torch.Tensor) for tensor in tensors):
        raise CorruptResult("the result holds something else where tensors should be")
    _check_tensors(structure, tensors)
    if checksum(structure, tensors) != outcome.get("checksum"):
        raise CorruptResult("the result does not have the checksum that was computed on the server")
    return outcome


def rebuilt(outcome: dict[str, Any]):
    """Return what the engine returned, as it would have locally."""
    return _rebuilt(json.loads(outcome["structure"]), iter(outcome["tensors"]))


def _check_tensors(structure: str, tensors: list[torch.Tensor]) -> None:
    """Shapes, dtypes and the number of finite values, tensor by tensor, are those that the server noted."""
    noted = list(_noted(json.loads(structure)))
    if len(noted) != len(tensors):
        raise CorruptResult(f"the result holds {len(tensors)} tensors, the server noted {len(noted)}")
    for i, (note, tensor) in enumerate(zip(noted, tensors, strict=True)):
        found = [list(tensor.shape), str(tensor.dtype), finite(tensor)]
        if found != note:
            raise CorruptResult(
                f"tensor {i} of the result has shape, dtype and finite values {found}, must be {note}"
            )


def _noted(structure):
    (kind, content), *_ = structure.items()
    if kind == "tensor":
        yield content
    inner = {"data": lambda: content[1].values(), "dict": lambda: content.values()}.get(kind)
    for one in inner() if inner else content if kind in ("list", "tuple") else ():
        yield from _noted(one)


def _rebuilt(structure, tensors):
    (kind, content), *_ = structure.items()
    if kind == "tensor":
        return next(tensors)
    if kind == "data":
        name, fields = content
        return _class(name)(**{key: _rebuilt(one, tensors) for key, one in fields.items()})
    if kind == "dict":
        return {key: _rebuilt(one, tensors) for key, one in content.items()}
    if kind == "list":
        return [_rebuilt(one, tensors) for one in content]
    if kind == "tuple":
        return tuple(_rebuilt(one, tensors) for one in content)
    return float.fromhex(content) if kind == "float" else content


def _class(name: str):
    """Return a dataclass of the tracers; a server may name nothing else."""
    found = resolve_name(name) if name.startswith(f"{OURS}.") else None
    if not (isinstance(found, type) and is_dataclass(found)):
        raise TracerError(f"a result names {name!r}, which is no result of an engine; it was not used")
    return found
