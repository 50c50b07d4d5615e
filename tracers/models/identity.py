"""Say which weights a model reference means, without loading them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from posttrace.tracers.errors import TracerError
from posttrace.tracers.models.files import check_folder, folder_of
from posttrace.tracers.models.hashes import file_hashes

FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "tiktoken.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
}
"""Files other than the weights that decide what a model computes."""


def model_identity(model: str, revision: str | None = None) -> str:
    """Return a string that changes when the weights, the configuration or the tokenizer do.

    >>> model_identity("path/to/checkpoint")                  # doctest: +SKIP
    'sha256:9c2e...'

    A directory is identified by the whole content of its configuration, tokenizer and safetensors files; the hash of a
    large file is kept (see tracers.models.hashes). A hub id is identified by its commit in the local cache. Raises
    TracerError when `model` is neither a directory with a config.json nor a known hub id.
    """
    directory = folder_of(model, revision)
    if directory is not None:
        return "sha256:" + _hash_directory(directory)
    return f"hub:{model}@{_commit(model, revision)}"


def _hash_directory(directory: Path) -> str:
    check_folder(str(directory))
    files = [f for f in sorted(directory.iterdir()) if f.suffix == ".safetensors" or f.name in FILES]
    total = hashlib.sha256()
    for file, digest in zip(files, file_hashes(files), strict=True):
        total.update(json.dumps([file.name, file.stat().st_size, digest]).encode())
    return total.hexdigest()


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
