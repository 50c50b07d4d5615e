"""Read the tensors of a checkpoint from its safetensors files, whole or in blocks of rows, without a model.

The files are read, not mapped: memory holds what was asked for, and no mapped pages on top.
Format: https://huggingface.co/docs/safetensors (8 bytes length, JSON header, data).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from posttrace.tracers.errors import TracerError

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
        """The whole tensor, in its own dtype."""
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
        index = self._file(INDEX)
        if index is not None:
            self._shard_of = self._weight_map(index)
        else:
            single = self._file(SINGLE)
            if single is None:
                raise self._no_weights()
            self._shard_of = dict.fromkeys(_header(single)[0], SINGLE)

    def __contains__(self, name: str) -> bool:
        return name in self._shard_of

    def tensor(self, *names: str) -> StoredTensor:
        """The first of `names` that the checkpoint has; raises TracerError naming what is missing or damaged."""
        name = next((n for n in names if n in self._shard_of), None)
        if name is None:
            wanted = " or ".join(dict.fromkeys(names))
            raise TracerError(
                f"model {self.model}: no tensor {wanted} among the {len(self._shard_of)} of its safetensors files; "
                "give a complete causal language model"
            )
        shard = self._shard_of[name]
        file = self._file(shard)
        if file is None:
            raise TracerError(
                f"model {self.model}: {INDEX} puts {name} in {shard}, which is not there; fetch that file"
            )
        header, data = _header(file)
        if name not in header:
            raise TracerError(
                f"model {self.model}: {INDEX} puts {name} in {shard}, which lacks it; fetch index and shards again"
            )
        return self._stored(file, name, header[name], data)

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
                f"model {self.model}: {INDEX} is not readable ({type(error).__name__}); fetch it again"
            ) from None
        if not plain:
            raise TracerError(
                f"model {self.model}: {INDEX} names files outside the checkpoint; do not use it"
            )
        return found

    def _file(self, name: str) -> Path | None:
        """Path of a file of the checkpoint, fetched from the hub if need be; None where there is no such file."""
        folder = Path(self.model).expanduser()
        if folder.is_dir():
            return folder / name if (folder / name).is_file() else None
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

        try:
            return Path(hf_hub_download(self.model, name, revision=self.revision))
        except (EntryNotFoundError, HFValidationError, OSError) as error:
            absent = isinstance(error, EntryNotFoundError)
            # Without a network nothing says whether there is an index; a model of one file has none.
            if absent and (name == INDEX or not isinstance(error, LocalEntryNotFoundError)):
                return None
            raise TracerError(
                f"model {self.model}: no such folder, and {name} is not to be had from the hub "
                f"({type(error).__name__}); check the spelling, the network and your access to it"
            ) from None

    def _no_weights(self) -> TracerError:
        folder = Path(self.model).expanduser()
        pickles = (
            sorted(p.name for pattern in PICKLES for p in folder.glob(pattern)) if folder.is_dir() else []
        )
        if pickles:
            return TracerError(
                f"model {self.model}: its weights are pickled ({', '.join(pickles[:3])}), and reading those could run "
                "any code; convert them to safetensors (transformers' save_pretrained does)"
            )
        return TracerError(
            f"model {self.model}: neither {SINGLE} nor {INDEX} there; give a checkpoint in safetensors format"
        )


def _header(file: Path) -> tuple[dict, int]:
    """Entry of every tensor, and the byte at which the data begin."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if 8 + length > file.stat().st_size:
                raise ValueError("header beyond the end")
            header = json.loads(stream.read(length))
    except (OSError, ValueError) as error:
        raise TracerError(
            f"{file}: is no safetensors file, or was cut short ({error}); fetch it again"
        ) from None
    header.pop("__metadata__", None)
    return header, 8 + length
