"""Which files a model reference means, and whether they are there and whole: looked at before anything is loaded."""

from __future__ import annotations

import json
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

from posttrace.tracers.errors import TracerError

READ = (".json", ".safetensors", ".jinja", ".txt", ".model")
ADAPTER = "adapter_config.json"
TOKENIZERS = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"),
    *("spiece.model", "sentencepiece.bpe.model", "tekken.json"),
)
"""Files of which a tokenizer needs one."""


def folder_of(model: str, revision: str | None = None) -> Path | None:
    """Return the folder that a model reference means; None for a hub id.

    >>> folder_of("allenai/OLMo-2-0425-1B") is None
    True

    What looks like a path, or lies in a folder that is there, is no hub id unless a revision is given with it. Raises
    TracerError for a folder that is missing.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    is_path = model.count("/") > 1 or model.startswith((".", "/", "~"))
    if not is_path and (revision is not None or "/" not in model or not folder.parent.is_dir()):
        return None
    there = sorted(p.name for p in folder.parent.iterdir() if p.is_dir()) if folder.parent.is_dir() else []
    close = get_close_matches(folder.name, there, n=1)
    hint = f"did you mean {close[0]}? {folder.parent} has" if close else f"{folder.parent} has"
    has = f" ({hint} {', '.join(there[:8])}{' ...' if len(there) > 8 else ''})" if there else ""
    hub = "" if is_path else f" of that name with its revision: {{model: {model}, revision: main}}"
    raise TracerError(
        f"model {model}: no such folder{has}; give the folder of a transformers checkpoint, or a hub id{hub}"
    )


def hub_file(model: str, name: str, revision: str | None = None) -> Path | None:
    """Return a file of a hub id, fetched if need be; None where the checkpoint has none, or nothing tells.

    >>> hub_file("allenai/OLMo-2-0425-1B", "config.json").name          # doctest: +SKIP
    'config.json'

    Raises TracerError when the hub, or its copy in the cache, cannot be had.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    try:
        return Path(hf_hub_download(model, name, revision=revision))
    except EntryNotFoundError:  # LocalEntryNotFoundError is one: without a network nothing says more
        return None
    except (HFValidationError, OSError) as error:
        raise TracerError(
            f"model {model}: no such folder, and {name} is not to be had from the hub ({type(error).__name__}); check "
            "the spelling, the network and your access to it"
        ) from None


def check_folder(model: str, revision: str | None = None) -> None:
    """Check that a reference means a whole model, whose files can be read and are all applied.

    >>> check_folder("path/to/checkpoint")                             # doctest: +SKIP

    Raises TracerError for a folder without config.json, with pipes or devices for files, and for adapters: whether
    transformers applies one depends on what is installed.
    """
    folder = folder_of(model, revision)
    if folder is None:
        if _hub_adapter(model, revision):
            raise _adapter(model)
        return
    for path in sorted(folder.iterdir()):
        if path.suffix in READ and not path.is_file():
            raise TracerError(f"model {model}: {path.name} is no regular file; fetch the checkpoint again")
    if (folder / ADAPTER).is_file():
        raise _adapter(model)
    if not (folder / "config.json").is_file():
        raise TracerError(
            f"model {model}: no config.json there; name the folder that holds a transformers checkpoint (config.json, "
            "*.safetensors, tokenizer files)"
        )


def check_tokenizer(model: str, revision: str | None = None) -> None:
    """Check that a folder has a tokenizer; raises TracerError naming the files.

    >>> check_tokenizer("path/to/checkpoint")                          # doctest: +SKIP
    """
    folder = folder_of(model, revision)
    if folder is not None and not any((folder / name).is_file() for name in TOKENIZERS):
        raise TracerError(
            f"model {model}: no tokenizer there (none of {', '.join(TOKENIZERS)}); save it next to the weights with "
            "tokenizer.save_pretrained, or copy tokenizer.json and tokenizer_config.json from the model it was trained "
            "from"
        )


def _adapter(model: str) -> TracerError:
    return TracerError(
        f"model {model}: {ADAPTER} there: a PEFT adapter, which would be applied or left out depending on what is "
        "installed; merge it first (peft's model.merge_and_unload().save_pretrained(FOLDER)) and name that folder, or "
        f"take {ADAPTER} away to study the weights without it"
    )


@lru_cache(maxsize=64)
def _hub_adapter(model: str, revision: str | None) -> bool:
    try:
        return hub_file(model, ADAPTER, revision) is not None
    except TracerError:  # what asks for the configuration says it
        return False


def named_weights(config: Path) -> str | None:
    """Return the file of weights that a config.json names itself, which transformers takes instead of the usual ones.

    >>> named_weights(Path("path/to/checkpoint/config.json"))         # doctest: +SKIP
    """
    try:
        named = json.loads(config.read_text(encoding="utf-8")).get("transformers_weights")
    except (OSError, ValueError, AttributeError):
        return None
    return named if isinstance(named, str) else None
