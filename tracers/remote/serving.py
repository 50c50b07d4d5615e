"""What runs on the server, shipped with every request. Nothing here may need this project to be installed there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform

import nnsight
import torch
import transformers

from posttrace.tracers.errors import TracerError, WholeJob
from posttrace.tracers.models.validation import check_sites


def answer(model, engine, arguments, options, dtype, check):
    """Run an engine on the server's model and give its result as plain data (see `packed`).

    Parameters
    ----------
    dtype
        What the model must have there.
    check
        First verify that the sites are where they should be. A TracerError comes back as text under `problem`, and
        `whole_job` says whether the job's other requests would fail with it too; the server reports any other error
        with its traceback.

    Examples
    --------
    >>> answer(model, naive_run, (prompt, (1, 2)), {}, "torch.float32", False)["problem"]    # doctest: +SKIP
    ''
    """
    # Plain texts: torch.__version__ is of a class of its own, which a client that loads no classes refuses.
    versions = {"python": platform.python_version()}
    for module in (torch, transformers, nnsight):
        versions[module.__name__] = str(module.__version__)
    try:
        held = str(held_dtype(model.nn))
        if held != dtype:
            raise WholeJob(
                f"model {model.name}: the server holds it in {held}, the job wants {dtype}; "
                f"set dtype={held.removeprefix('torch.')}"
            )
        if check:
            check_sites(model)
        result = engine(model, *arguments, **options)
    except TracerError as error:
        return {"problem": str(error), "whole_job": isinstance(error, WholeJob), "versions": versions}
    return {"problem": "", "versions": versions, **packed(result)}


def held_dtype(nn):
    """Return the dtype in which a model is held where it runs: that of the stream, from a run of one token.

    Modules are not asked: where a server runs untrusted code, they have the dtype of the configuration.

    Examples
    --------
    >>> held_dtype(open_model("path/to/checkpoint", dtype="float32").nn)        # doctest: +SKIP
    torch.float32
    """
    with torch.no_grad():
        return _stream(nn).dtype


def _stream(nn):
    with nn.trace(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=False, logits_to_keep=1):
        stream = nnsight.save(nn.layers[0].input)
    return stream


def packed(result):
    """Return a result as `tensors` (own memory, on the CPU), their `structure` (JSON) and a `checksum` of both.

    Raises
    ------
    TracerError
        What is neither tensors nor plain data nor dataclasses, dicts, lists and tuples of them.

    Examples
    --------
    >>> packed({"n": 1, "x": torch.zeros(2)})["structure"]
    '{"dict": {"n": {"plain": 1}, "x": {"tensor": [[2], "torch.float32", 2]}}}'
    """
    tensors = []
    structure = json.dumps(_described(result, tensors))
    return {"structure": structure, "tensors": tensors, "checksum": checksum(structure, tensors)}


def checksum(structure, tensors):
    """SHA-256 (hex) of a result: its structure, then the bytes of its tensors."""
    total = hashlib.sha256(structure.encode())
    for tensor in tensors:
        total.update(raw(tensor))
    return total.hexdigest()


def raw(tensor):
    r"""Return the bytes of a tensor on the CPU, its values in row order.

    Examples
    --------
    >>> raw(torch.ones(3, 1)[:1].as_strided((1, 1), (7, 7)))
    b'\x00\x00\x80?'
    """
    # Where an axis has one entry its stride may be anything, also in a tensor that counts as contiguous.
    flat = tensor.contiguous().as_strided((tensor.numel(),), (1,))
    return flat.view(torch.uint8).numpy().tobytes()


def finite(tensor):
    """How many values of a tensor are finite numbers."""
    return int(torch.isfinite(tensor).sum())


def _described(value, tensors):
    if isinstance(value, torch.Tensor):
        if value.is_meta:
            # It would come back as uninitialised memory, without an error.
            raise TracerError("a result depends on weights, which the server does not show to this key")
        own = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        tensors.append(own)
        return {"tensor": [list(own.shape), str(own.dtype), finite(own)]}
    if dataclasses.is_dataclass(value):
        fields = {f.name: _described(getattr(value, f.name), tensors) for f in dataclasses.fields(value)}
        return {"data": [f"{type(value).__module__}:{type(value).__qualname__}", fields]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _described(one, tensors) for key, one in value.items()}}
    if isinstance(value, list):
        return {"list": [_described(one, tensors) for one in value]}
    if isinstance(value, tuple):
        return {"tuple": [_described(one, tensors) for one in value]}
    if isinstance(value, float):
        return {"float": value.hex()}
    if value is None or isinstance(value, bool | int | str):
        return {"plain": value}
    raise TracerError(f"a result holds a {type(value).__name__}, which cannot come back from a server")
