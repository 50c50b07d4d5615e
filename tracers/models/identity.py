"""Say which weights a model reference means, without loading them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from posttrace.tracers.errors import TracerError

FILES = {
    "config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
}
"""Files other than the weights that decide what a model computes."""
SAMPLE = 64 * 1024
"""Bytes of each tensor that are hashed, its whole header aside: an edited or merged tensor differs everywhere."""


def model_identity(model: str, revision: str | None = None) -> str:
    """A string that changes when the weights, the configuration or the tokenizer do.

    >>> model_identity("path/to/checkpoint")                  # doctest: +SKIP
    'sha256:9c2e...'

    A directory is identified by its configuration and tokenizer files, and by the header and the first 64 KiB of
    every tensor of its safetensors files (which is all of a small one). A hub id is identified by its commit in
    the local cache. Raises TracerError when `model` is neither a directory with a config.json nor a known hub id.
    """
    directory = Path(model).expanduser()
    if directory.is_dir():
        return "sha256:" + _hash_directory(directory)
    return f"hub:{model}@{_commit(model, revision)}"


def _hash_directory(directory: Path) -> str:
    if not (directory / "config.json").is_file():
        raise TracerError(
            f"model {directory}: no config.json there; name the folder that holds a transformers checkpoint "
            "(config.json, *.safetensors, tokenizer files)"
        )
    total = hashlib.sha256()
    for file in sorted(directory.iterdir()):
        if file.suffix == ".safetensors" or file.name in FILES:
            digest = (
                _hash_weights(file)
                if file.suffix == ".safetensors"
                else hashlib.sha256(file.read_bytes()).hexdigest()
            )
            total.update(json.dumps([file.name, file.stat().st_size, digest]).encode())
    return total.hexdigest()


def _hash_weights(file: Path) -> str:
    """Hash of the header (names, types, shapes, places) and of the beginning of every tensor."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > file.stat().st_size:
            raise TracerError(
                f"model {file.parent}: {file.name} is no safetensors file, or was cut short; fetch it again"
            )
        header = stream.read(length)
        digest = hashlib.sha256(header)
        for name, tensor in sorted(json.loads(header).items()):
            if name != "__metadata__":
                begin, end = tensor["data_offsets"]
                stream.seek(8 + length + begin)
                digest.update(stream.read(min(SAMPLE, end - begin)))
    return digest.hexdigest()


def _commit(model: str, revision: str | None) -> str:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        config = hf_hub_download(model, "config.json", revision=revision)
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise TracerError(
            f"model {model}: no such folder, and not to be had from the hub ({type(error).__name__}); give the "
            "folder of a checkpoint or a hub id, and check the spelling, the network and your access to it"
        ) from None
    return Path(config).parent.name
