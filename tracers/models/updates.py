"""What one stage of training added to the weights: two checkpoints, read tensor by tensor from their files."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.autograd.graph import saved_tensors_hooks

from posttrace.tracers.errors import TracerError
from posttrace.tracers.models.safetensors import Checkpoint, StoredTensor, spellings

BLOCK_VALUES = 2**22
"""Values of a tensor that are read at a time, where two are read together."""


class Update:
    """The update between two checkpoints of one shape, float32; nothing is read before it is asked for.

    Parameters
    ----------
    structure: the modules of either, weights or none; its parameters name the tensors, a tied one once.

    Raises
    ------
    TracerError for quantised files, and tensors that are missing or of different shapes.
    """

    def __init__(self, structure, earlier: Checkpoint, later: Checkpoint):
        self._pairs: dict[str, tuple[StoredTensor, StoredTensor]] = {}
        prefix = structure.base_model_prefix
        for name, parameter in structure.named_parameters():
            one, two = (c.tensor(*spellings(name, prefix)) for c in (earlier, later))
            for stored, checkpoint in ((one, earlier), (two, later)):
                if stored.shape != tuple(parameter.shape):
                    raise TracerError(
                        f"model {checkpoint.model}: {name} has shape {stored.shape}, the other stage's is "
                        f"{tuple(parameter.shape)}; an update is a difference of equal shapes: bring both to one "
                        "vocabulary, or choose stages of one shape"
                    )
            self._pairs[name] = one, two

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters, in the model's order."""
        return tuple(self._pairs)

    def earlier(self, name: str) -> torch.Tensor:
        """Return a weight of the earlier stage (float32)."""
        return self._pairs[name][0].read().float()

    def later(self, name: str) -> torch.Tensor:
        """Return a weight of the later stage (float32)."""
        return self._pairs[name][1].read().float()

    def difference(self, name: str) -> torch.Tensor:
        """Later minus earlier (float32), made block by block, so that no other whole tensor is in memory."""
        pair = self._pairs[name]
        shape = pair[0].shape
        rows = max(1, BLOCK_VALUES // math.prod(shape[1:]))
        found, begin = torch.empty(shape), 0
        for one, two in zip(*(stored.row_blocks(rows) for stored in pair), strict=True):
            begin += len(one)
            torch.sub(two.float(), one.float(), out=found[begin - len(one) : begin])
        return found


class Streamed(Mapping[str, torch.Tensor]):
    """Weights by name, each made when it is asked for, on the device of the parameter of that name.

    keep: hold on to what was made. Without it at most the weights in use are in memory, which are those of one module.
    """

    def __init__(
        self,
        make: Callable[[str], torch.Tensor],
        parameters: Mapping[str, torch.Tensor],
        *,
        keep: bool = False,
    ):
        self._make, self._parameters, self.keep = make, parameters, keep
        self._kept: dict[str, torch.Tensor] = {}
        self._live: dict[int, tuple[str, weakref.ref]] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        if name in self._kept:
            return self._kept[name]
        made = self._make(name).to(self._parameters[name].device)
        if self.keep:
            self._kept[name] = made
        else:
            self._live[made.untyped_storage().data_ptr()] = name, weakref.ref(made)
        return made

    def __contains__(self, name: object) -> bool:
        return name in self._parameters

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    def name_of(self, tensor: torch.Tensor) -> str | None:
        """Return the weight that a tensor is, or is a view of; None for others and for those that are kept."""
        name, alive = self._live.get(tensor.untyped_storage().data_ptr(), ("", None))
        return None if alive is None or alive() is None else name


def made_again(*weights: Mapping[str, torch.Tensor]) -> AbstractContextManager:
    """Have a backward pass make streamed weights again, instead of keeping those of a forward pass within."""
    streams = [one for one in weights if isinstance(one, Streamed) and not one.keep]

    def pack(tensor: torch.Tensor):
        for one in streams:
            if (name := one.name_of(tensor)) is not None:
                return one, name, tensor.size(), tensor.stride(), tensor.storage_offset()
        return tensor

    def unpack(kept) -> torch.Tensor:
        if isinstance(kept, torch.Tensor):
            return kept
        one, name, *view = kept
        return one[name].as_strided(*view)

    return saved_tensors_hooks(pack, unpack) if streams else nullcontext()


def sizes(
    update: Update, others: Mapping[str, Update]
) -> Iterator[tuple[str, dict[str, float], dict[str, float]]]:
    """For each parameter: norm of the update and of the earlier weight, share changed, and cosines with other updates.

    One tensor of each update is in memory at a time. A cosine with an update of norm 0 is NaN.
    """
    for name in update.names:
        before = update.earlier(name)
        mine = (update.later(name) - before).double()
        norm = mine.norm()
        about = {
            "update_norm": float(norm),
            "weight_norm": float(before.double().norm()),
            "changed": float((mine != 0).double().mean()),
        }
        cosines = {}
        for other, theirs in others.items():
            difference = mine if theirs is update else theirs.difference(name).double()
            lengths = norm * difference.norm()
            inner = (mine * difference).sum()
            cosines[other] = float(inner / lengths) if lengths > 0 else float("nan")
        yield name, about, cosines
