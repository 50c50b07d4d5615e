"""Read the tensors of a checkpoint from its safetensors files, whole or in blocks of rows, without a model.

The files are read, not mapped: memory holds what was asked for, and no mapped pages on top.
Format: https://huggingface.co/docs/safetensors (8 bytes length, JSON header, data).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from posttrace.tracers.errors import TracerError
from posttrace.tracers.models.files import folder_of, hub_file, named_weights

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file; nothing of it is in memory until it is read."""

    file: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    place: int
    """Byte of the file at which it begins."""

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> torch.Tensor:
        """Return the whole tensor, in its own dtype."""
        return self.rows(0, self.shape[0])

    def rows(self, begin: int, end: int) -> torch.Tensor:
        """Rows [begin, end), in the tensor's own dtype.

        >>> checkpoint.tensor("lm_head.weight").rows(0, 16).shape      # doctest: +SKIP
        torch.Size([16, 160])

        Raises TracerError when the file ends too early.
        """
        shape = (end - begin, *self.shape[1:])
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        data = torch.empty((end - begin) * row, dtype=torch.uint8)
        view, filled = data.numpy().data, 0
        with self.file.open("rb", buffering=0) as stream:
            stream.seek(self.place + begin * row)
            while filled < len(view):
                n = stream.readinto(view[filled:])
                if not n:
                    raise TracerError(f"{self.file}: ends within tensor {self.name}; fetch it again")
                filled += n
        return data.view(self.dtype).view(shape)

    def row_blocks(self, size: int) -> Iterator[torch.Tensor]:
        """All rows in order, at most `size` at a time."""
        for begin in range(0, self.shape[0], size):
            yield self.rows(begin, min(begin + size, self.shape[0]))


def spellings(name: str, prefix: str) -> tuple[str, ...]:
    """How a file may spell the name of a tensor; prefix: what a model calls its body.

    >>> spellings("model.norm.weight", "model")[1]
    'norm.weight'
    """
    bare = name.removeprefix(f"{prefix}.")
    # A multimodal checkpoint keeps its text model under a name of its own, within or around the prefix.
    return (name, bare, f"{prefix}.language_model.{bare}", f"language_model.{name}")


class Checkpoint:
    """The safetensors files of a model, one or several.

    >>> Checkpoint("path/to/checkpoint").tensor("lm_head.weight").shape    # doctest: +SKIP
    (2048, 160)

    model: directory of a checkpoint, or a hub id, of which only the files that are needed are fetched. Raises
    TracerError when there are no safetensors (pickled weights are refused), or the index cannot be read.
    """

    def __init__(self, model: str, revision: str | None = None):
        self.model, self.revision = model, revision
        self._shards: dict[str, tuple[Path, dict, int]] = {}
        self._folder = folder_of(model, revision)
        config = self._file("config.json")
        named = None if config is None else named_weights(config)
        if named is not None and Path(named).name != named:
            raise TracerError(f"model {model}: config.json names weights elsewhere ({named}); do not use it")
        # The first that is there, in transformers' order, so that both read the same weights.
        for name in (SINGLE, INDEX) if named is None else (named,):
            file = self._file(name)
            if file is not None:
                index = name.endswith(".index.json")
                self._shard_of = self._weight_map(file) if index else dict.fromkeys(_header(file)[0], name)
                return
        raise self._no_weights()

    def tensor(self, *names: str, shape: tuple[int | None, ...] | None = None) -> StoredTensor:
        """Return the first of `names` that the checkpoint has; raises TracerError naming what is missing or damaged.

        shape: what the configuration asks for, None where any size will do; another one is an error.
        """
        name = next((n for n in names if n in self._shard_of), None)
        if name is None:
            wanted = " or ".join(dict.fromkeys(names))
            raise TracerError(
                f"model {self.model}: no tensor {wanted} among the {len(self._shard_of)} of its safetensors files; "
                "give a complete causal language model"
            )
        file, header, data = self._shard(self._shard_of[name], [name])
        stored = self._stored(file, name, header[name], data)
        sizes = shape and tuple(stored.shape[i] if n is None else n for i, n in enumerate(shape))
        if shape is not None and stored.shape != sizes:
            raise TracerError(
                f"model {self.model}: {name} has shape {stored.shape}, its config.json asks for {sizes}; the files do "
                "not belong together, fetch them again"
            )
        return stored

    def _shard(self, shard: str, names: Sequence[str]) -> tuple[Path, dict, int]:
        """Return a file, its header and where its data begin, read once; raises TracerError where it lacks a name."""
        if shard not in self._shards:
            file = self._file(shard)
            if file is None:
                raise TracerError(
                    f"model {self.model}: the index puts {names[0]} in {shard}, which is not there; fetch that file"
                )
            self._shards[shard] = (file, *_header(file))
        found = self._shards[shard]
        lacking = next((name for name in names if name not in found[1]), None)
        if lacking is not None:
            raise TracerError(
                f"model {self.model}: the index puts {lacking} in {shard}, which lacks it; fetch index and shards again"
            )
        return found

    def _stored(self, file: Path, name: str, entry: dict, data: int) -> StoredTensor:
        if entry["dtype"] not in DTYPES:
            raise TracerError(
                f"model {self.model}: {name} is stored as {entry['dtype']}, which is none of {', '.join(DTYPES)}; "
                "give a checkpoint that is not quantised"
            )
        begin, end = entry["data_offsets"]
        stored = StoredTensor(file, name, DTYPES[entry["dtype"]], tuple(entry["shape"]), data + begin)
        if stored.n_bytes != end - begin or data + end > file.stat().st_size:
            raise TracerError(f"{file}: tensor {name} is cut short or misdeclared; fetch the file again")
        return stored

    def _weight_map(self, index: Path) -> dict[str, str]:
        try:
            found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            plain = all(Path(shard).name == shard for shard in found.values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise TracerError(
                f"model {self.model}: {index.name} is not readable ({type(error).__name__}); fetch it again"
            ) from None
        if not plain:
            raise TracerError(
                f"model {self.model}: {index.name} names files outside the checkpoint; do not use it"
            )
        return found

    def check(self) -> None:
        """Check that every file is there and whole, from their headers; reads no tensor.

        >>> Checkpoint("path/to/checkpoint").check()                   # doctest: +SKIP

        Raises TracerError naming the first file that is missing, cut short or lacks what the index puts there.
        """
        names: dict[str, list[str]] = {}
        for name, shard in self._shard_of.items():
            names.setdefault(shard, []).append(name)
        for shard, wanted in names.items():
            file, header, data = self._shard(shard, wanted)
            end = data + max((entry["data_offsets"][1] for entry in header.values()), default=0)
            if file.stat().st_size != end:
                raise TracerError(
                    f"{file}: has {file.stat().st_size:,} bytes, its header says {end:,}: it was cut short or is "
                    "damaged; fetch the file again"
                )

    def _file(self, name: str) -> Path | None:
        """Path of a file of the checkpoint, fetched from the hub if need be; None where there is no such file."""
        if self._folder is not None:
            return self._folder / name if (self._folder / name).is_file() else None
        return hub_file(self.model, name, self.revision)

    def _no_weights(self) -> TracerError:
        folder = self._folder
        found = [p.name for pattern in PICKLES for p in folder.glob(pattern)] if folder else []
        if found:
            return TracerError(
                f"model {self.model}: its weights are pickled ({', '.join(sorted(found)[:3])}), and reading those "
                "could run any code; convert them to safetensors (transformers' save_pretrained does)"
            )
        if folder and any(folder.glob("*.gguf")):
            return TracerError(
                f"model {self.model}: its weights are a GGUF file; give a checkpoint in safetensors format "
                "(from_pretrained(..., gguf_file=...) and save_pretrained write one)"
            )
        if folder is None:
            return TracerError(
                f"model {self.model}: no such folder, and neither {SINGLE} nor {INDEX} is to be had from the hub; "
                "check the spelling, the network and your access to it, or fetch it first (`posttrace fetch`)"
            )
        return TracerError(
            f"model {self.model}: neither {SINGLE} nor {INDEX} there; give a checkpoint in safetensors format"
        )


def _header(file: Path) -> tuple[dict, int]:
    """Entry of every tensor, and the byte at which the data begin."""
    try:
        with file.open("rb") as stream:
            first = stream.read(8)
            if first == b"version ":
                raise ValueError("a Git LFS pointer, `git lfs pull` fetches what it stands for")
            length = int.from_bytes(first, "little")
            if 8 + length > file.stat().st_size:
                raise ValueError("header beyond the end")
            header = json.loads(stream.read(length))
    except (OSError, ValueError) as error:
        raise TracerError(
            f"{file}: is no safetensors file, or was cut short ({error}); fetch it again"
        ) from None
    header.pop("__metadata__", None)
    return header, 8 + length
